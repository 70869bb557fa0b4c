"""What a driver tells of a run while it goes on: status.json, and a heartbeat line now and then. Shared by the local and the Ray driver."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from rlabel.errors import StorageError
from rlabel.run.directory import RunDirectory
from rlabel.run.records_io import Footer
from rlabel.run.status import RunState, RunStatus, compute_status, write_status


class RunProgress:
    """Counts committed shards, writes status.json and prints heartbeat lines to stderr, at most one each `heartbeat_s`."""

    def __init__(self, run: RunDirectory, heartbeat_s: float) -> None:
        self.run = run
        self.heartbeat_s = heartbeat_s
        self.footers: dict[int, Footer] = {}
        self.started_at = datetime.now(UTC)
        self.last_at = self.started_at
        self.regions_at_start = compute_status(run, "running", footers=self.footers).regions_done

    def beat(self, note: str = "") -> None:
        """Write the status and a line if one is due."""
        now = datetime.now(UTC)
        if (now - self.last_at).total_seconds() < self.heartbeat_s:
            return
        self.last_at = now
        status = self.write("running")
        print(f"rlabel: {heartbeat(status)}{note}", file=sys.stderr, flush=True)

    def write(self, state: RunState, exit_code: int | None = None, message: str = "") -> RunStatus:
        """Write status.json and return what is in it. A store that fails now does not stop the run: the shards are what counts."""
        status = compute_status(
            self.run,
            state,
            footers=self.footers,
            started_at=self.started_at,
            now=datetime.now(UTC),
            regions_done_at_start=self.regions_at_start,
            exit_code=exit_code,
            message=message,
        )
        try:
            write_status(self.run.store, status)
        except StorageError as error:
            print(f"rlabel: status.json could not be written: {error}", file=sys.stderr, flush=True)
        return status


def heartbeat(status: RunStatus) -> str:
    """Return one line: done of total, rate, time to go, failures and abstentions."""
    share = 100 * status.regions_done / max(status.regions_total, 1)
    rate = "" if not status.regions_per_s else f", {status.regions_per_s:.1f} {status.unit}/s"
    to_go = ""
    if status.regions_per_s:
        seconds = int((status.regions_total - status.regions_done) / status.regions_per_s)
        to_go = f", {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d} to go"
    return (
        f"{status.regions_done}/{status.regions_total} {status.unit} ({share:.1f} %), {status.shards_done}/{status.shards_total} shards{rate}{to_go}, "
        f"{status.abstentions} abstained, {status.failures} failed"
    )
