"""What an ablation measures and keeps: a variant of the model, the masks it was judged on, and how many regions were right. No torch.

Cells are JSON lines in the folder of an ablation: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from rlabel.errors import InputError, UsageError
from rlabel.records import JsonObject

# How regions are given: as they are, as filled boxes, or by masks with a moved edge (a kernel of 5 on a picture of 336 px, as in RegionGPT's table).
Given = Literal["mask", "box", "dilated", "eroded"]
GIVEN: tuple[Given, ...] = get_args(Given)

CELLS = "cells.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model to train: plain RegionGPT (mask pooling on the whole picture, no zoom) with these choices.

    trained_on: the masks of training. per_category: at most so many regions of each category; None: all. seed: of fresh weights, order and choice.
    """

    refine: bool = True
    trained_on: Literal["mask", "box"] = "mask"
    tokens_per_region: int = 1
    region_pooling: Literal["grid", "attention"] = "grid"
    per_category: int | None = None
    seed: int = 0

    def with_seed(self, seed: int) -> Variant:
        return Variant(**{**asdict(self), "seed": seed})

    @property
    def judged_on(self) -> tuple[Given, ...]:
        """The masks that a trained model is judged on: judging costs seconds, so a model of masks is judged on all."""
        return GIVEN if self.trained_on == "mask" else ("box",)


def name_of(variant: Variant) -> str:
    """Return a variant in a few words, for a log."""
    data = "all" if variant.per_category is None else f"{variant.per_category} a category"
    tokens = f"{variant.tokens_per_region} token{'s' if variant.tokens_per_region > 1 else ''}"
    if variant.region_pooling == "attention":
        tokens += " by attention"
    return f"{'refined' if variant.refine else 'coarse'}, {variant.trained_on}, {tokens}, {data}, seed {variant.seed}:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How a trained variant did on one kind of masks. The unseen regions are those whose picture training never showed; 0 of 0 where nothing says so."""

    variant: Variant
    given: Given
    num_right: int
    num_regions: int
    num_right_unseen: int = 0
    num_unseen: int = 0
    num_trained_on: int = 0
    num_steps: int = 0
    seconds: float = 0.0

    @property
    def top1(self) -> float | None:
        return self.num_right / self.num_regions if self.num_regions else None

    @property
    def top1_unseen(self) -> float | None:
        return self.num_right_unseen / self.num_unseen if self.num_unseen else None


def append_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Add cells to the folder's file, in one write: a variant's cells are there together or not at all."""
    lines = "".join(json.dumps(asdict(cell), sort_keys=True) + "\n" for cell in cells)
    with (folder / CELLS).open("a", encoding="utf-8") as stream:
        stream.write(lines)


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells that are kept in a folder; [] for a fresh one. A last line that a kill cut off is left out.

    Raises InputError for another line that is no cell.
    """
    path = folder / CELLS
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    cells = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            cells.append(Cell(**{**row, "variant": Variant(**row["variant"])}))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(text.splitlines()) and not text.endswith("\n"):
                path.write_text(text[: -len(line)], encoding="utf-8")  # what follows must begin on a line of its own
                break
            raise InputError(
                f"{path}, line {number}: expected a cell of an ablation, got {line[:80]!r}. Delete the line; its cell is then trained again."
            ) from error
    return cells


def claim_folder(folder: Path, settings: JsonObject) -> None:
    """Bind a folder to the settings that decide its cells: written down the first time, compared ever after.

    Raises UsageError where the folder was begun with other settings, naming the first that differs, or holds something else.
    """
    path = folder / SETTINGS
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"--out {folder}: expected a new or empty folder or one of an ablation, got other files.")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got: {error}. Give another --out.") from error
    for name, value in settings.items():
        if not isinstance(old, dict) or old.get(name) != value:
            before = old.get(name) if isinstance(old, dict) else old
            raise UsageError(
                f"--out {folder}: was begun with {name} {before!r}, now it is {value!r}; their cells cannot stand in one table. "
                "Give another --out, or that setting."
            )
