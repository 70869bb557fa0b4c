"""`rlabel compare`: two runs on the same regions."""

from __future__ import annotations

import click

from rlabel.cli.options import ends_cleanly, print_json
from rlabel.errors import UsageError


@click.command(context_settings={"max_content_width": 110})
@click.argument("run_a")
@click.argument("run_b")
@click.option(
    "--truth", help="COCO JSON with categories for the same regions; without it the runs' agreement is shown."
)
@click.option("--provenance", help="JSON that says of each region whether training showed its picture; with --truth.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all changed regions.")
@ends_cleanly
def compare(run_a: str, run_b: str, truth: str | None, provenance: str | None, as_json: bool) -> None:
    """Compare two runs on the same regions: which is right more often, and whether that may be chance.

    \b
    Example:
      rlabel compare old-run/ new-run/ --truth instances.json
    """
    from rlabel.evaluation.comparing import compare_runs
    from rlabel.evaluation.comparing_text import comparison_to_text

    if provenance is not None and truth is None:
        raise UsageError("--provenance tells the truth's regions apart: name the truth with --truth as well.")
    comparison = compare_runs(run_a, run_b, truth, provenance)
    if as_json:
        print_json(comparison.to_json())
    else:
        print(comparison_to_text(comparison), end="")
