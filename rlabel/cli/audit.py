"""`rlabel audit`: human labels that a run contradicts."""

from __future__ import annotations

import json
import sys

import click

from rlabel.cli.options import ends_cleanly, print_json
from rlabel.errors import UsageError


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option("--truth", required=True, help="COCO JSON with the human labels of the same regions.")
@click.option(
    "--calibrator",
    help="JSON by `rlabel calibrate`: how often answers are right. Without it that is read off from how often people agree.",
)
@click.option("--top", type=int, help="List the N labels that are likeliest to be wrong.")
@click.option("--precision", type=float, help="List as many as are expected to be wrong for this share, as in 0.5.")
@click.option("--out", help="Also write those listed as COCO JSON: the human annotations and the case against each.")
@click.option("--images", help="Folder of the pictures, for --sheet.")
@click.option("--sheet", help="Also write a PNG of the pictures with the most suspects; needs --images.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@ends_cleanly
def audit(
    run: str,
    truth: str,
    calibrator: str | None,
    top: int | None,
    precision: float | None,
    out: str | None,
    images: str | None,
    sheet: str | None,
    as_json: bool,
) -> None:
    """List the human labels that a run contradicts, those that are likeliest to be wrong first.

    A run made with --decoding hybrid finds far more of them: it says how likely the human's own category is, too.

    \b
    Example:
      rlabel audit run/ --truth instances.json --top 100 --out suspects.json --images photos/ --sheet suspects.png
    """
    from rlabel.evaluation.auditing import audit_run, choose_suspects, suspects_document
    from rlabel.evaluation.auditing_text import audit_to_text
    from rlabel.report.suspects import write_suspects_sheet
    from rlabel.storage import split_url

    if (images is None) != (sheet is None):
        raise UsageError("--sheet and --images belong together: the picture to write, and the folder to draw from.")
    found = audit_run(run, truth, calibrator)
    for warning in found.warnings:
        print(f"rlabel: {warning}", file=sys.stderr)
    listed = choose_suspects(found, top, precision)
    document = suspects_document(truth, listed)
    if out is not None:
        store, name = split_url(out)
        store.put(name, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
        print(f"rlabel: wrote {store.join(name)}", file=sys.stderr)
    if images is not None and sheet is not None:
        num_pictures = write_suspects_sheet(document, images, sheet)
        print(f"rlabel: wrote {num_pictures} pictures to {sheet}", file=sys.stderr)
    if as_json:
        print_json(found.to_json(listed))
    else:
        print(audit_to_text(found, listed), end="")
