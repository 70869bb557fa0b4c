"""How far a command is: a live bar on a terminal, a line now and then elsewhere. Bars flood the logs of jobs; lines do not move on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlabel.run.progress import RunProgress, clock
from rlabel.run.status import RunStatus

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_S = 10.0
_BAR_EVERY_S = 1.0


@contextmanager
def shown_live(progress: RunProgress) -> Iterator[None]:
    """Show a run's progress as a bar where stderr is a terminal; elsewhere its heartbeat lines stay as they are.

    What others print to stderr meanwhile appears above the bar.
    """
    bar = _bar_or_none()
    if bar is None:
        yield
        return
    told, every_s = progress.tell, progress.heartbeat_s
    status = progress.count()
    task = bar.add_task("label", total=status.regions_total, completed=status.regions_done, words=_words(status))

    def tell(status: RunStatus, note: str) -> None:
        bar.update(task, completed=status.regions_done, words=_words(status) + note)

    # A run's own folder on this machine can be counted each second; a bucket is asked no more often than without a bar.
    is_near = progress.run.store.local_path("") is not None
    progress.tell, progress.heartbeat_s = tell, min(every_s, _BAR_EVERY_S) if is_near else every_s
    try:
        with bar:
            yield
            tell(progress.count(), "")
    finally:
        progress.tell, progress.heartbeat_s = told, every_s


@contextmanager
def counted_live(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is to be called with (done, of how many). unit: what is counted, as in "regions drawn"."""
    started_s = told_s = time.monotonic()
    bar = _bar_or_none()
    if bar is None:

        def line(num_done: int, num_all: int) -> None:
            nonlocal told_s
            now_s = time.monotonic()
            if now_s - told_s >= _LINE_EVERY_S:
                told_s = now_s
                rate = num_done / (now_s - started_s)
                print(f"rlabel: {num_done}/{num_all} {unit}, {rate:.0f} a second", file=sys.stderr, flush=True)

        yield line
        return
    task = bar.add_task(unit, total=None, words="")

    def move(num_done: int, num_all: int) -> None:
        rate = num_done / max(time.monotonic() - started_s, 1e-9)
        to_go = clock((num_all - num_done) / max(rate, 1e-9))
        bar.update(
            task, completed=num_done, total=num_all, words=f"{num_done}/{num_all} {unit}, {rate:.0f}/s, {to_go} to go"
        )

    with bar:
        yield move


def _words(status: RunStatus) -> str:
    """Return what stands behind the bar: the numbers of a heartbeat line."""
    rate = "" if not status.regions_per_s else f", {status.regions_per_s:.1f}/s"
    to_go = "" if status.seconds_to_go is None else f", {clock(status.seconds_to_go)} to go"
    counts = f", {status.abstentions} abstained, {status.failures} failed"
    return f"{status.regions_done}/{status.regions_total} {status.unit}{rate}{to_go}{counts}"


def _bar_or_none() -> Progress | None:
    """Return a bar on stderr, None where that is no terminal or one that cannot move its cursor."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    columns = (
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[words]}", markup=False),
    )
    return Progress(*columns, console=console, redirect_stdout=False, refresh_per_second=4)
