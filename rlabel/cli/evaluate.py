"""`rlabel evaluate`: how right a run is."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from rlabel.cli.options import ends_cleanly, print_json


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option("--truth", required=True, help="COCO JSON with categories for the same regions.")
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
    """
    run_evaluate(run, truth, provenance, as_json, images, semantic, embedder)


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
