"""How far a run is: counted from what is committed, written to RUN/status.json for people and scripts.

The only place of a run where clock values may stand. Counting reads the shards' footers only, and each only once.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from rlabel.errors import RunError
from rlabel.records import JsonObject
from rlabel.run.directory import RunDirectory
from rlabel.run.records_io import Footer
from rlabel.schema_files import validate
from rlabel.storage import MissingFile, Store

STATUS = "status.json"
RunState: TypeAlias = Literal["running", "stopped", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The content of status.json.

    started_at, updated_at: UTC, ISO 8601, of the newest start of the run and of this record; None where not known.
    unit: what is counted under `regions`: regions, or pairs or expressions. labels: kept answers of whatever task.
    regions_per_s: those finished since that start, divided by the seconds since it; None before the first.
    exit_code: of the command that wrote this; None while it is running.
    message: one sentence for a person: what was written where, or why the run ended.
    """

    state: RunState
    shards_done: int
    shards_total: int
    images_done: int
    images_total: int
    regions_done: int
    regions_total: int
    labels: int
    abstentions: int
    failures: int
    failures_by_kind: dict[str, int] = field(default_factory=dict)
    started_at: str | None = None
    updated_at: str | None = None
    regions_per_s: float | None = None
    exit_code: int | None = None
    message: str = ""
    unit: str = "regions"


def compute_status(
    run: RunDirectory,
    state: RunState,
    *,
    footers: dict[int, Footer] | None = None,
    started_at: datetime | None = None,
    now: datetime | None = None,
    regions_done_at_start: int = 0,
    exit_code: int | None = None,
    message: str = "",
) -> RunStatus:
    """Return the status of a run, counted from its committed shards.

    footers: a cache of the caller's, filled here, so that the next call reads only the footers that are new.
    started_at, now: aware datetimes; without `started_at` there is no rate.
    Raises RunError when a shard is damaged.
    """
    known = {} if footers is None else footers
    done = run.committed()
    for index in sorted(done - known.keys()):
        known[index] = run.read_footer(index)
    counted = [known[index] for index in sorted(done)]
    failures: Counter[str] = Counter()
    for footer in counted:
        failures.update(footer.failures_by_kind)
    regions_done = sum(footer.regions for footer in counted)
    rate = None
    if started_at is not None and now is not None and now > started_at and regions_done > regions_done_at_start:
        rate = round((regions_done - regions_done_at_start) / (now - started_at).total_seconds(), 3)
    return RunStatus(
        state=state,
        shards_done=len(counted),
        shards_total=run.num_shards,
        images_done=sum(footer.images for footer in counted),
        images_total=run.manifest.plan.num_images,
        regions_done=regions_done,
        regions_total=run.manifest.plan.num_regions,
        labels=sum(footer.labels for footer in counted),
        abstentions=sum(footer.abstentions for footer in counted),
        failures=failures.total(),
        failures_by_kind=dict(sorted(failures.items())),
        started_at=_iso(started_at),
        updated_at=_iso(now),
        regions_per_s=rate,
        exit_code=exit_code,
        message=message,
        unit=run.manifest.unit,
    )


def write_status(store: Store, status: RunStatus) -> None:
    """Replace RUN/status.json at once. Raises StorageError."""
    store.put(STATUS, (json.dumps(asdict(status), indent=1, sort_keys=True) + "\n").encode("ascii"))


def read_status(store: Store) -> RunStatus | None:
    """Return the status last written, or None if there is none. Raises RunError when the file is no status."""
    try:
        data = store.read(STATUS)
    except MissingFile:
        return None
    try:
        document = json.loads(data)
        validate(document, "status", store.join(STATUS))
        return RunStatus(**document)
    except Exception as error:
        raise RunError(
            f"{store.join(STATUS)}: expected a run's status, got something else ({error}). "
            "Delete the file; the next run writes it anew."
        ) from error


def status_to_json(status: RunStatus) -> JsonObject:
    """Return a status as the JSON object that status.json holds."""
    return asdict(status)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
