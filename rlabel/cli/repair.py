"""`rlabel repair`: damaged shards, found and taken out."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from rlabel.cli.options import ends_cleanly, print_json, stop_on_sigterm
from rlabel.errors import UsageError

_TELL_S = 10.0


@click.command()
@click.argument("run")
@click.option("--check", is_flag=True, help="Only look and tell; touch nothing.")
@click.option("--delete", is_flag=True, help="Delete damaged shards instead of moving them to RUN/damaged.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@ends_cleanly
def repair(run: str, check: bool, delete: bool, as_json: bool) -> None:
    """Verify every shard of a run by its hash and take damaged ones out; the run's own command then makes these alone anew.

    \b
    Example:
      rlabel repair run/            # moves damaged shards to run/damaged
      rlabel repair run/ --check    # only tells

    Exit codes: 0 all shards that are there are whole, 1 some are damaged (each is named) or the run cannot be read, 2 wrong call.
    """
    from rlabel.run.directory import RunDirectory
    from rlabel.run.repair import take_out, verify_run
    from rlabel.storage import Store

    if check and delete:
        raise UsageError("--check: touches nothing, got --delete. Leave one of the two out.")
    stop_on_sigterm()
    directory = RunDirectory.open(Store.open(run))
    told_at = time.monotonic()

    def beat(done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_S:
            told_at = time.monotonic()
            print(f"rlabel: {done} shards verified", file=sys.stderr, flush=True)

    found = verify_run(directory, beat)
    if not check:
        found = take_out(directory, found, delete=delete)
    exit_code = 1 if found.damaged else 0
    if as_json:
        print_json(
            {
                "run": run,
                "shards_total": found.num_shards,
                "shards_checked": found.num_checked,
                "shards_missing": found.num_missing,
                "damaged": [asdict(bad) for bad in found.damaged],
                "taken_out": None if check else "deleted" if delete else "moved",
                "exit_code": exit_code,
            }
        )
    else:
        print(
            f"{run}: {found.num_checked} of {found.num_shards} shards verified, {len(found.damaged)} damaged, {found.num_missing} not made yet"
        )
        for bad in found.damaged:
            became = "left where it is" if check else "deleted" if delete else f"moved to {bad.moved_to}"
            print(f"  shard {bad.shard}: {bad.file}: {bad.reason}; {became}")
        if found.damaged and check:
            print(f"`rlabel repair {run}` moves them aside, `rlabel repair {run} --delete` deletes them.")
        elif found.damaged:
            print(
                "Run the command of this run again (rlabel label or rlabel snap, the same --out): it makes only these."
            )
        elif found.num_missing:
            print("Run the command of this run again to make the others.")
    sys.exit(exit_code)
