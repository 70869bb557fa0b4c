"""`rlabel evaluate`: how right a run is."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import click

from rlabel.cli.convert import FORMATS
from rlabel.cli.options import ends_cleanly, print_json

if TYPE_CHECKING:
    from rlabel.formats.guess import SourceFormat
    from rlabel.formats.rows import Boxes


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option(
    "--truth",
    required=True,
    help="The labeled regions with their categories: COCO JSON, or the file or folder of another layout that was labeled.",
)
@click.option(
    "--truth-format",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help="Layout of --truth.",
)
@click.option(
    "--truth-boxes",
    type=click.Choice(["xywh", "xyxy"]),
    default="xywh",
    show_default=True,
    help="Of --truth in parquet or tar: how it means four numbers.",
)
@click.option("--provenance", help="JSON that says of each region whether training showed its picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--images", help="Folder of the pictures: also write RUN/report.html, its folder RUN/report, and RUN/sheet.png."
)
@click.option(
    "--semantic", is_flag=True, help="Also how near answers are to the true names in meaning, by Osprey's protocol."
)
@click.option("--embedder", help="of --semantic: sentence-transformers folder or id; bundled MiniLM if left out.")
@ends_cleanly
def evaluate(
    run: str,
    truth: str,
    truth_format: SourceFormat | Literal["auto"],
    truth_boxes: Boxes,
    provenance: str | None,
    as_json: bool,
    images: str | None,
    semantic: bool,
    embedder: str | None,
) -> None:
    """Compare a run with the truth: accuracy, coverage, mAP, confusions.

    \b
    Example:
      rlabel evaluate run/ --truth instances.json --images photos/
      rlabel evaluate run/ --truth yolo/ --images yolo/images/
    """
    from rlabel.cli.regions_in import truth_as_coco
    from rlabel.evaluation.same_regions import check_numbered_alike

    with truth_as_coco(truth, truth_format, images, truth_boxes) as labels:
        if labels.was_converted:
            check_numbered_alike(run, labels.file, truth)
        run_evaluate(run, labels.file, provenance, as_json, images, semantic, embedder)


def run_evaluate(
    run: str,
    truth: str,
    provenance: str | None,
    as_json: bool,
    images: str | None,
    semantic: bool = False,
    embedder: str | None = None,
) -> None:
    """Evaluate, print, and where images are given write the page."""
    from rlabel.evaluation.evaluate import evaluate_run
    from rlabel.evaluation.text import evaluation_to_text

    evaluation = evaluate_run(run, truth, provenance)
    if semantic:
        from rlabel.evaluation.semantic import evaluate_semantic
        from rlabel.vocabulary.embedding import MiniLmEmbedder

        evaluation = replace(evaluation, semantic=evaluate_semantic(run, truth, MiniLmEmbedder(embedder)))
    if as_json:
        print_json(evaluation.to_json())
    else:
        print(evaluation_to_text(evaluation), end="")
    if images is not None:
        from rlabel.cli.live import counted_live
        from rlabel.report.page import write_report

        with counted_live("regions drawn") as beat:
            written = write_report(run, images, truth, evaluation, beat=beat)
        for path in written:
            print(f"rlabel: wrote {path}", file=sys.stderr)
