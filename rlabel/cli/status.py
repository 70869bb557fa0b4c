"""`rlabel status`: how far a run is."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import ends_cleanly, print_json

if TYPE_CHECKING:
    from rlabel.run.status import RunStatus, SignOfLife


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch, one a look.")
@click.option("--watch", is_flag=True, help="Look again and again until the run is not running any more.")
@click.option("--every-s", type=FiniteRange(min=0.1), default=10.0, show_default=True, help="Of --watch.")
@ends_cleanly
def status(run: str, as_json: bool, watch: bool, every_s: float) -> None:
    """Say how far a run is, from its directory alone: what is committed, rate, failures, actors, and whether its driver lives.

    \b
    Example:
      rlabel status run/
      rlabel status s3://bucket/run --watch
    """
    from rlabel.run.directory import RunDirectory
    from rlabel.run.progress import heartbeat
    from rlabel.run.status import Counted, current_status, sign_of_life, status_to_json
    from rlabel.storage import Store

    directory, counted = RunDirectory.open(Store.open(run)), Counted()
    while True:
        now = current_status(directory, counted)
        sign, silent_for_s = sign_of_life(directory.store, now, datetime.now(UTC))
        is_last = not watch or sign != "fresh"
        if as_json:
            print_json({**status_to_json(now), "sign_of_life": sign, "silent_for_s": silent_for_s})
        elif is_last:
            print("\n".join([f"{run}: {now.state}, {heartbeat(now)}", *_details(now, sign, silent_for_s)]), flush=True)
        else:
            print(f"{run}: {now.state}, {heartbeat(now)}", flush=True)
        if is_last:
            return
        time.sleep(every_s)


def _details(now: RunStatus, sign: SignOfLife | None, silent_for_s: float | None) -> list[str]:
    lines = []
    if now.state == "running" and now.driver is not None:
        lines.append(f"  driver: {_shown(now.driver.host)}, pid {now.driver.pid}, since {_shown(now.driver.since)}")
    if now.state == "running" and now.actors:
        counts = Counter(actor.state for actor in now.actors)
        lines.append("  actors: " + ", ".join(f"{counts[state]} {state}" for state in sorted(counts)))
        for actor in now.actors:
            if actor.state == "ready":
                gpus = f", GPU {','.join(map(_shown, actor.gpu_ids))}" if actor.gpu_ids else ""
                lines.append(f"    {_shown(actor.node)}, pid {actor.pid}{gpus}: {actor.in_flight} shards in flight")
    if now.failures:
        kinds = sorted(now.failures_by_kind.items(), key=lambda item: -item[1])
        lines.append("  failures: " + ", ".join(f"{count} of kind {_shown(kind)}" for kind, count in kinds))
    lines += [f"    {count} x {_shown(reason)}" for reason, count in now.failures_by_reason.items()]
    ago = "" if silent_for_s is None else f", {age(silent_for_s)} ago"
    if sign == "gone":
        lines.append(
            f"its driver's process has ended (last sign of life{ago or ' not known'}): run the same command again"
        )
    elif sign == "none":
        since = "" if silent_for_s is None else f" for {age(silent_for_s)}"
        lines.append(f"no sign of life{since}: probably dead; run the same command again")
    elif now.updated_at:
        word = "ended" if sign is None else "last sign of life"
        lines.append(f"{word} {_shown(now.updated_at)}{ago}")
    return lines + ([_shown(now.message, 2000)] if now.message else [])


def age(seconds: float) -> str:
    """Return a time as a person would say it: 45 s, 5 min, 3 h, 2 days."""
    for unit, length_s, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{int(seconds // length_s)} {unit}"
    return f"{int(seconds // 86_400)} days"


def _shown(text: str, most: int = 300) -> str:
    """Return a text that a terminal may be given: a file may hold its control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])
