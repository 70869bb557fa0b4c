"""What a driver tells of a run while it goes on: status.json, and a heartbeat line now and then. Shared by the local and the Ray driver."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rlabel.errors import RunError, StorageError
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import Lease, newest_claim
from rlabel.run.merge import answers_file
from rlabel.run.status import (
    ActorStatus,
    Counted,
    DriverStatus,
    RunState,
    RunStatus,
    compute_status,
    read_status,
    write_status,
)


class RunProgress:
    """Counts committed shards, writes status.json and prints heartbeat lines to stderr, at most one each `heartbeat_s`.

    lease: of the run, where it has one; its thread tells too, while a shard takes long or a model is loaded.
    actors: set by whoever has some; asked for each status. tell: shows a person a status and a note; a line, unless one is set.
    """

    def __init__(self, run: RunDirectory, heartbeat_s: float, lease: Lease | None = None) -> None:
        self.run = run
        self.heartbeat_s = heartbeat_s
        self.lease = lease
        self.actors: Callable[[], tuple[ActorStatus, ...]] = tuple
        self.tell: Callable[[RunStatus, str], None] = _print_line
        self.counted = Counted()
        self.started_at = datetime.now(UTC)
        self._last_s = time.monotonic()  # the machine's clock may be set back by hours
        self.regions_at_start = compute_status(run, "running", counted=self.counted).regions_done
        self._turn = threading.RLock()
        self._has_ended = False
        if lease is not None:
            lease.on_beat = self._tell_if_due

    def beat(self, note: str = "") -> None:
        """Write the status and a line if one is due. Raises LeaseLost where another driver has taken the run over."""
        if self.lease is not None:
            self.lease.raise_if_known_lost()
        self._tell_if_due(note)

    def check(self) -> None:
        """Raise LeaseLost if another driver has taken the run over, by a fresh look: before what is done only once, a merge."""
        if self.lease is not None:
            self.lease.check()

    def write(self, state: RunState, exit_code: int | None = None, message: str = "") -> RunStatus:
        """Write status.json and return what is in it. A store that fails now does not stop the run: the shards are what counts.

        Nothing is written where the run is another driver's by now.
        """
        with self._turn:
            self._has_ended = state != "running"
            status = compute_status(
                self.run,
                state,
                counted=self.counted,
                started_at=self.started_at,
                now=datetime.now(UTC),
                regions_done_at_start=self.regions_at_start,
                exit_code=exit_code,
                message=message,
                actors=() if self._has_ended else self.actors(),
                driver=self._driver(),
            )
            try:
                if self.lease is None or not self.lease.is_lost():
                    write_status(self.run.store, status)
            except StorageError as error:
                print(f"rlabel: status.json could not be written: {error}", file=sys.stderr, flush=True)
            return status

    def count(self) -> RunStatus:
        """Return how far the run is now; nothing is written."""
        with self._turn:
            return compute_status(
                self.run,
                "running",
                counted=self.counted,
                started_at=self.started_at,
                now=datetime.now(UTC),
                regions_done_at_start=self.regions_at_start,
            )

    def give_up(self) -> None:
        """Take back what this driver told after it had lost the run: stopped in the middle of writing its status, it ends that when it goes on.

        A driver that is at the run will soon tell anew; where there is none any more, the status says here how the run stands.
        """
        with self._turn:
            self._has_ended = True
            try:
                written = read_status(self.run.store)
                if written is None or written.driver != self._driver() or newest_claim(self.run.store) is not None:
                    return
                is_done = len(self.run.committed()) == self.run.num_shards and self.run.store.exists(
                    answers_file(self.run.manifest)
                )
                message = "" if is_done else "the same command goes on"
                status = compute_status(
                    self.run,
                    "done" if is_done else "stopped",
                    counted=self.counted,
                    now=datetime.now(UTC),
                    message=message,
                )
                write_status(self.run.store, status)
            except (StorageError, RunError) as error:
                print(f"rlabel: status.json could not be written: {error}", file=sys.stderr, flush=True)

    def _driver(self) -> DriverStatus | None:
        if self.lease is None:
            return None
        driver = self.lease.driver
        return DriverStatus(host=driver.host, pid=driver.pid, since=driver.since)

    def _tell_if_due(self, note: str = "") -> None:
        if not self._turn.acquire(blocking=False):  # the other thread is at it
            return
        try:
            if self._has_ended or time.monotonic() - self._last_s < self.heartbeat_s:
                return
            self._last_s = time.monotonic()
            status = self.write("running")
            self.tell(status, note)
        finally:
            self._turn.release()


def _print_line(status: RunStatus, note: str) -> None:
    print(f"rlabel: {heartbeat(status)}{note}", file=sys.stderr, flush=True)


def heartbeat(status: RunStatus) -> str:
    """Return one line: done of total, rate, time to go, failures and abstentions."""
    share = 100 * status.regions_done / max(status.regions_total, 1)
    rate = "" if not status.regions_per_s else f", {status.regions_per_s:.1f} {status.unit}/s"
    to_go = "" if status.seconds_to_go is None else f", {clock(status.seconds_to_go)} to go"
    return (
        f"{status.regions_done}/{status.regions_total} {status.unit} ({share:.1f} %), {status.shards_done}/{status.shards_total} shards{rate}{to_go}, "
        f"{status.abstentions} abstained, {status.failures} failed"
    )


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
