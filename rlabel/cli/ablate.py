"""`rlabel ablate`: RegionGPT's tables, measured small on a corpus of one's own."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import ends_cleanly
from rlabel.config import EMBEDDED_MODEL
from rlabel.errors import UsageError
from rlabel.records import JsonObject

if TYPE_CHECKING:
    from rlabel.evaluation.ablations import Mode, TableName
    from rlabel.evaluation.records import Evaluation
    from rlabel.training.ablation import AblationOptions
    from rlabel.training.cells import Variant

_TABLES = Literal["refinement", "masks", "tokens", "data", "modes"]
_DEFAULT_TABLES = "refinement,masks,data,tokens"
TABLES_FILE = "tables.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateJob:
    """What is compared on what. out: folder of cells. tables: names, in order. num_seeds: trainings of a cell. limit: pictures of the training corpus."""

    images: str
    annotations: str
    val_images: str
    val_annotations: str
    out: str
    provenance: str | None = None
    tables: tuple[str, ...] = tuple(_DEFAULT_TABLES.split(","))
    num_seeds: int = 3
    vision: str = "efficientnet-lite2"
    image_size_px: int | None = None
    epochs: float = 4.0
    limit: int | None = None
    model: str = EMBEDDED_MODEL
    threads: int = 1


@click.command(context_settings={"max_content_width": 110})
@click.option("--images", required=True, help="Folder of the training pictures.")
@click.option("--annotations", required=True, help="Labeled COCO JSON of the training pictures.")
@click.option("--val-images", required=True, help="Folder of the pictures to judge on.")
@click.option("--val-annotations", required=True, help="Labeled COCO JSON of the pictures to judge on.")
@click.option("--provenance", help="JSON that says of each region to judge on whether training showed its picture.")
@click.option("--out", required=True, help="Folder of the cells, made or continued; tables.md is written there.")
@click.option(
    "--tables", default=_DEFAULT_TABLES, show_default=True, help=f"Of {', '.join(get_args(_TABLES))}, joined by commas."
)
@click.option("--seeds", type=click.IntRange(1, 20), default=3, show_default=True, help="Trainings of each cell.")
@click.option("--epochs", type=FiniteRange(min=0, min_open=True), default=4.0, show_default=True)
@click.option("--vision", default="efficientnet-lite2", show_default=True, help="Frozen tower, as for rlabel assemble.")
@click.option(
    "--image-size-px", type=click.IntRange(32), help="Side the picture is squeezed to [default: the tower's own]."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N training pictures.")
@click.option("--model", default=EMBEDDED_MODEL, show_default=True, help="Labeler that table modes asks.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option("--quick", is_flag=True, help="1 seed, 1 epoch: to see that it works.")
@ends_cleanly
def ablate(
    images: str,
    annotations: str,
    val_images: str,
    val_annotations: str,
    provenance: str | None,
    out: str,
    tables: str,
    seeds: int,
    epochs: float,
    vision: str,
    image_size_px: int | None,
    limit: int | None,
    model: str,
    threads: int,
    quick: bool,
) -> None:
    """Train small models that differ in one thing each, and print RegionGPT's tables with ours beside them.

    \b
    Example:
      rlabel ablate --images train/images --annotations train/instances.json \\
        --val-images val/images --val-annotations val/instances.json --out ablation/

    Run it again to go on: cells that are finished are kept. More seeds or tables may be asked of the same folder.
    """
    run_ablate(
        AblateJob(
            images=images,
            annotations=annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            provenance=provenance,
            out=out,
            tables=parse_tables(tables),
            num_seeds=1 if quick else seeds,
            vision=vision,
            image_size_px=image_size_px,
            epochs=1.0 if quick else epochs,
            limit=limit,
            model=model,
            threads=threads,
        )
    )


def parse_tables(text: str) -> tuple[str, ...]:
    """Return the names of tables in a text, once each. Raises UsageError for a name that no table has."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = get_args(_TABLES)
    if not names or (unknown := [name for name in names if name not in known]):
        got = repr(unknown[0]) if names else "none"
        raise UsageError(f"--tables: expected names out of {', '.join(known)}, joined by commas, got {got}.")
    return names


def run_ablate(job: AblateJob) -> None:
    """Measure what is missing, write OUT/tables.md and print it."""
    from rlabel.evaluation.ablations import TRAINED, table_to_markdown, variants_of
    from rlabel.training.cells import claim_folder, read_cells

    names: list[TableName] = [name for name in job.tables]  # type: ignore[misc]
    out = Path(job.out)
    trained = [name for name in names if name in TRAINED]
    claim_folder(out, _deciding(job))
    known = {cell.variant for cell in read_cells(out)}
    missing = [variant for variant in variants_of(trained, job.num_seeds) if variant not in known]
    if missing:
        _measure(job, out, missing)
    cells = read_cells(out)
    texts = [table_to_markdown(TRAINED[name], cells) for name in trained]
    if "modes" in names:
        texts.append(_modes(job, out))
    text = "\n".join(texts)
    (out / TABLES_FILE).write_text(text, encoding="utf-8")
    print(text, end="")
    _say(f"wrote {out / TABLES_FILE}")


def _deciding(job: AblateJob) -> JsonObject:
    """Return what all cells of a folder share."""
    return {
        "annotations_sha256": _sha256(job.annotations),
        "val_annotations_sha256": _sha256(job.val_annotations),
        "provenance_sha256": _sha256(job.provenance) if job.provenance else None,
        "limit": job.limit,
        **asdict(_options(job)),
    }


def _options(job: AblateJob) -> AblationOptions:
    from rlabel.training.ablation import AblationOptions

    return AblationOptions(vision=job.vision, image_size_px=job.image_size_px, epochs=job.epochs)


def _sha256(url: str) -> str:
    from rlabel.storage import open_url

    digest = hashlib.sha256()
    with open_url(url) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _measure(job: AblateJob, out: Path, variants: Sequence[Variant]) -> None:
    from rlabel.training.ablation import measure_here
    from rlabel.training.parts import load_corpus

    corpus = load_corpus(job.images, job.annotations, job.limit)
    judged = load_corpus(job.val_images, job.val_annotations)
    measure_here(variants, _options(job), corpus, judged, _unseen(job.provenance), out, job.threads, _say)


def _unseen(provenance: str | None) -> frozenset[str] | None:
    from rlabel.evaluation.reading import read_provenance

    if provenance is None:
        return None
    return frozenset(key for key, origin in read_provenance(provenance).items() if not origin.seen_in_train)


def _modes(job: AblateJob, out: Path) -> str:
    """Label the judged corpus once in each mode, as runs that are continued, and return their table."""
    from rlabel.evaluation.ablations import MODES, modes_to_markdown

    evaluations: dict[Mode, Evaluation] = {}
    seconds: dict[Mode, float | None] = {}
    for mode in MODES:
        evaluations[mode], seconds[mode] = _label_in(mode, job, out / "modes" / mode)
    return modes_to_markdown(evaluations, seconds, _trained_for(job.model))


def _label_in(mode: str, job: AblateJob, run: Path) -> tuple[Evaluation, float | None]:
    """Return how right a run in one mode is and how long it took, None where it was there already."""
    from rlabel.cli.label import run_label
    from rlabel.config import LabelSettings
    from rlabel.evaluation.evaluate import evaluate_run

    took = None
    if not (run / "labels.json").is_file():
        since = time.monotonic()
        with redirect_stdout(sys.stderr):  # the run's own last line
            run_label(
                LabelSettings.model_validate(
                    {
                        "images": job.val_images,
                        "regions": job.val_annotations,
                        "vocabulary": job.val_annotations,
                        "out": str(run),
                        "model": job.model,
                        "mode": mode,
                        "max_failure_rate": 1.0,  # a mode that the model was not trained for may fail everywhere
                        "no_ray": True,
                        "cpus_per_actor": job.threads,
                    }
                )
            )
        took = time.monotonic() - since
    return evaluate_run(str(run), job.val_annotations, job.provenance), took


def _trained_for(model: str) -> tuple[str, ...] | None:
    """Return the modes that a model's recipe trained it in; None where its folder does not tell. `spell` asks one question a conversation."""
    if model == EMBEDDED_MODEL:
        from rlabel.training.recipe import load_recipe

        stages = load_recipe("mini").model_dump()["stages"]
    else:
        try:
            stages = json.loads((Path(model) / "training.json").read_text(encoding="utf-8"))["recipe"]["stages"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
    spoken = [stage for stage in stages if stage["objective"] != "align"]
    return tuple({"separate" if stage["objective"] == "spell" else str(stage["conversation"]) for stage in spoken})


def _say(text: str) -> None:
    print(f"rlabel: {text}", file=sys.stderr, flush=True)
