"""Gives a human caption and asks which region of its picture is meant; regions with the same caption or name are no choices.

    python benchmarks/referring.py --images DIR --truth instances.json [--model DIR] [--refer-by likelihood] [--num-images 200] [--provenance FILE]

Choices are all other regions of the picture, as in training's `refer` task (rlabel/prompts/tasks.py), which takes at most 6. Chance is the mean of
1 / choices. An expression without an answer counts as wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rlabel.evaluation.reading import read_provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An expression of one region, and the regions to choose from, itself among them."""

    image_id: Any
    region_id: str
    expression: str
    choices: tuple[str, ...]


@click.command()
@click.option("--images", required=True)
@click.option("--truth", required=True)
@click.option("--model", default="embedded")
@click.option("--refer-by", "ways", multiple=True, default=("likelihood", "mixture", "number"))
@click.option("--num-images", default=10**9)
@click.option("--provenance")
@click.option("--threads", default=2)
def main(
    images: str, truth: str, model: str, ways: tuple[str, ...], num_images: int, provenance: str | None, threads: int
) -> None:
    """Accuracy of the chosen region, and chance."""
    asked = expressions_of(json.loads(Path(truth).read_text()), num_images)
    groups = {"all": asked}
    if provenance is not None:
        origins = read_provenance(provenance)
        groups["unseen"] = [
            one for one in asked if one.region_id in origins and not origins[one.region_id].seen_in_train
        ]
    print(
        "| | "
        + " | ".join(f"{name} ({len(group)})" for name, group in groups.items())
        + " |\n| --- |"
        + " --- |" * len(groups)
    )
    print(row("chance", [[1 / len(one.choices) for one in group] for group in groups.values()]))
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            chosen = choose(asked, images, truth, model, way, threads, Path(folder) / way)
            right = {one.region_id: float(chosen.get(one.region_id) == one.region_id) for one in asked}
            print(row(way, [[right[one.region_id] for one in group] for group in groups.values()]), flush=True)


def expressions_of(corpus: dict[str, Any], num_images: int) -> list[Asked]:
    """Return the captions that mean one region alone among at least two."""
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in corpus["annotations"]:
        if not one.get("iscrowd"):
            by_image[one["image_id"]].append(one)
    asked = []
    for image_id, regions in list(by_image.items())[:num_images]:
        for region in regions:
            words = said(region)
            others = [
                str(one["id"])
                for one in regions
                if one is not region and said(one) != words and one["category_id"] != region["category_id"]
            ]
            if words and others:
                choices = tuple(sorted([*others, str(region["id"])]))  # in an order that says nothing of the answer
                asked.append(Asked(image_id=image_id, region_id=str(region["id"]), expression=words, choices=choices))
    return asked


def said(region: dict[str, Any]) -> str:
    return str(region.get("caption") or "").strip().rstrip(".")


def choose(
    asked: list[Asked], images: str, truth: str, model: str, way: str, threads: int, folder: Path
) -> dict[str, str]:
    """Return {region that an expression was made of: region that was chosen for it}."""
    from rlabel.cli.label import run_label
    from rlabel.config import LabelSettings

    folder.mkdir()
    rows = [
        {"image_id": one.image_id, "id": one.region_id, "expression": one.expression, "region_ids": list(one.choices)}
        for one in asked
    ]
    (folder / "expressions.json").write_text(json.dumps(rows))
    with redirect_stdout(sys.stderr):  # the run's own last line
        run_label(
            LabelSettings.model_validate(
                {
                    "images": images,
                    "regions": truth,
                    "task": "refer",
                    "expressions": str(folder / "expressions.json"),
                    "refer_by": way,
                    "out": str(folder / "run"),
                    "model": model,
                    "max_failure_rate": 1.0,
                    "no_ray": True,
                    "cpus_per_actor": threads,
                }
            )
        )
    rows = json.loads((folder / "run" / "referred.json").read_text())["referrals"]
    return {str(one["expression_id"]): str(one["region_id"]) for one in rows}


def row(name: str, groups: list[list[float]]) -> str:
    return f"| {name} | " + " | ".join(f"{100 * sum(group) / max(len(group), 1):.1f} %" for group in groups) + " |"


if __name__ == "__main__":
    main()
