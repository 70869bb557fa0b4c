"""`rlabel review`: what people decided on the page, applied."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from rlabel.cli.options import ends_cleanly, print_json


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.argument("decisions", nargs=-1, required=True)
@ends_cleanly
def review(run: str, decisions: tuple[str, ...]) -> None:
    """Write RUN/labels.reviewed.json: the labels with the decisions that `rlabel report`'s page downloads, one file or several.

    Who decided is in each row, and what the label was before; RUN/reviewed.jsonl lists the decisions. Shards and labels.json
    stay as they are.

    \b
    Example:
      rlabel review run/ decisions.json
    """
    from rlabel.run.directory import RunDirectory
    from rlabel.run.review import REVIEWED, apply_decisions, read_decisions
    from rlabel.storage import Store

    directory = RunDirectory.open(Store.open(run))
    counts = apply_decisions(directory, read_decisions(decisions, directory))
    file = directory.store.join(REVIEWED)
    print(
        f"rlabel: {counts.accepted} accepted, {counts.changed} changed, {counts.abstained} abstained, "
        f"{counts.undecided} undecided; {counts.labels} labels: {file}",
        file=sys.stderr,
    )
    if counts.dropped:
        print(
            f"rlabel: {counts.dropped} {'region' if counts.dropped == 1 else 'regions'} that an earlier review decided "
            f"{'is' if counts.dropped == 1 else 'are'} undecided now; to keep such decisions, name their file too",
            file=sys.stderr,
        )
    print_json({"run": run, "file": file, **asdict(counts)})
