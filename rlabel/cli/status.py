"""`rlabel status`: how far a run is."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from rlabel.cli.options import ends_cleanly, print_json


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@ends_cleanly
def status(run: str, as_json: bool) -> None:
    """Count what a run has committed, from its directory alone.

    \b
    Example:
      rlabel status run/
    """
    from rlabel.run.directory import RunDirectory
    from rlabel.run.progress import heartbeat
    from rlabel.run.status import compute_status, read_status, status_to_json
    from rlabel.storage import Store

    directory = RunDirectory.open(Store.open(run))
    written = read_status(directory.store)
    counted = compute_status(
        directory,
        written.state if written else "running",
        now=datetime.now(UTC),
        exit_code=written.exit_code if written else None,
        message=written.message if written else "",
    )
    if as_json:
        document = status_to_json(counted)
        if written is not None:
            document |= {
                "started_at": written.started_at,
                "updated_at": written.updated_at,
                "regions_per_s": written.regions_per_s,
            }
        print_json(document)
        return
    print(f"{run}: {counted.state}, {heartbeat(counted)}")
    if written is not None and written.updated_at:
        rate = f", {written.regions_per_s:.1f} {counted.unit}/s" if written.regions_per_s else ""
        print(f"last sign of life {written.updated_at}{rate}")
    for kind, count in counted.failures_by_kind.items():
        print(f"  {count} failures of kind {kind}")
    if counted.message:
        print(counted.message)
