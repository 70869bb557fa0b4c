"""How far a run is: counted from what is committed, written to RUN/status.json for people and scripts.

The only place of a run's results where clock values may stand. Counting reads the shards' footers, and whole only those that hold failures,
each once.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from rlabel.errors import RunError
from rlabel.records import JsonObject
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import is_beating, is_gone, newest_claim
from rlabel.run.records_io import Footer
from rlabel.schema_files import validate
from rlabel.storage import MissingFile, Store

STATUS = "status.json"
RunState: TypeAlias = Literal["running", "stopped", "done", "failed"]
SignOfLife: TypeAlias = Literal["fresh", "none", "gone"]
# A driver writes its status each --heartbeat-s; whoever was silent for longer is looked at more closely.
SILENT_S = 60.0
# Reading a footer waits for a disk or a network.
_READERS = 16
_REASONS_SHOWN = 10
_REASONS_KEPT = 1000
_MOST_BYTES = 16 << 20
_OTHER_REASONS = "other reasons"
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_QUOTED = re.compile(r"'[^']*'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One actor of a pool. node: host and Ray's node id, "" while it starts. gpu_ids: as CUDA_VISIBLE_DEVICES names them. in_flight: shards it has."""

    node: str
    pid: int | None
    gpu_ids: tuple[str, ...]
    state: Literal["ready", "starting"]
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """The process that drives a run. since: UTC, ISO 8601."""

    host: str
    pid: int
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The content of status.json.

    started_at, updated_at: UTC, ISO 8601, of the newest start of the run and of this record; None where not known.
    unit: what is counted under `regions`: regions, or pairs or expressions. labels: kept answers of whatever task.
    regions_per_s: those finished since that start, divided by the seconds since it; None before the first.
    seconds_to_go: at that rate; None where there is none.
    failures_by_reason: the most frequent ones, without names of files, N for each number.
    actors: under Ray, while the run goes on. driver: the process that wrote this.
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
    failures_by_reason: dict[str, int] = field(default_factory=dict)
    started_at: str | None = None
    updated_at: str | None = None
    regions_per_s: float | None = None
    seconds_to_go: float | None = None
    exit_code: int | None = None
    message: str = ""
    unit: str = "regions"
    actors: tuple[ActorStatus, ...] = ()
    driver: DriverStatus | None = None


class Counted:
    """What was read of a run's shards already, so that the next count reads only those that are new. May be shared by threads that take turns."""

    def __init__(self) -> None:
        self.footers: dict[int, Footer] = {}
        self.reasons: Counter[str] = Counter()
        self._with_reasons: set[int] = set()

    def update(self, run: RunDirectory, indexes: Iterable[int]) -> None:
        """Read the footers of shards that are new, and the failures of those that have any. Raises RunError when a footer is damaged."""
        new = sorted(set(indexes) - self.footers.keys())
        if new:
            with ThreadPoolExecutor(min(_READERS, len(new)), thread_name_prefix="footers") as pool:
                self.footers.update(zip(new, pool.map(run.read_footer, new), strict=True))
        for index in sorted(set(indexes) - self._with_reasons):
            self._with_reasons.add(index)
            if self.footers[index].failures:
                self._count_reasons(run, index)

    def _count_reasons(self, run: RunDirectory, index: int) -> None:
        try:
            body, _ = run.read_body(index)
            for line in body.split(b"\n"):
                if b'"failure_kind":' not in line:
                    continue
                record = json.loads(line)
                if (
                    isinstance(record, dict)
                    and isinstance(reason := record.get("reason"), str)
                    and "failure_kind" in record
                ):
                    self._add(reason_in_general(reason))
        except (RunError, ValueError, RecursionError):
            self._add(f"(not known: shard {index} is damaged; rlabel repair tells more)", self.footers[index].failures)

    def _add(self, reason: str, count: int = 1) -> None:
        is_kept = reason in self.reasons or len(self.reasons) < _REASONS_KEPT
        self.reasons[reason if is_kept else _OTHER_REASONS] += count


def reason_in_general(reason: str) -> str:
    """Return a failure's reason without what differs from region to region: its file, numbers and quoted names."""
    cause = reason.partition(": ")[2] or reason
    cause = _NUMBER.sub("N", _QUOTED.sub("'...'", cause[:2000]))
    return textwrap.shorten(cause.removesuffix("."), 160, placeholder=" ...")


def compute_status(
    run: RunDirectory,
    state: RunState,
    *,
    counted: Counted | None = None,
    started_at: datetime | None = None,
    now: datetime | None = None,
    regions_done_at_start: int = 0,
    exit_code: int | None = None,
    message: str = "",
    actors: tuple[ActorStatus, ...] = (),
    driver: DriverStatus | None = None,
) -> RunStatus:
    """Return the status of a run, counted from its committed shards.

    counted: a cache of the caller's, filled here, so that the next call reads only what is new.
    started_at, now: aware datetimes; without `started_at` there is no rate.
    Raises RunError when a shard is damaged.
    """
    known = Counted() if counted is None else counted
    done = run.committed()
    known.update(run, done)
    footers = [known.footers[index] for index in sorted(done)]
    failures: Counter[str] = Counter()
    for footer in footers:
        failures.update(footer.failures_by_kind)
    regions_done, regions_total = sum(footer.regions for footer in footers), run.manifest.plan.num_regions
    rate = None
    if started_at is not None and now is not None and now > started_at and regions_done > regions_done_at_start:
        rate = round((regions_done - regions_done_at_start) / (now - started_at).total_seconds(), 3)
    frequent = sorted(known.reasons.items(), key=lambda item: (-item[1], item[0]))[:_REASONS_SHOWN]
    return RunStatus(
        state=state,
        shards_done=len(footers),
        shards_total=run.num_shards,
        images_done=sum(footer.images for footer in footers),
        images_total=run.manifest.plan.num_images,
        regions_done=regions_done,
        regions_total=regions_total,
        labels=sum(footer.labels for footer in footers),
        abstentions=sum(footer.abstentions for footer in footers),
        failures=failures.total(),
        failures_by_kind=dict(sorted(failures.items())),
        failures_by_reason=dict(frequent),
        started_at=_iso(started_at),
        updated_at=_iso(now),
        regions_per_s=rate,
        seconds_to_go=seconds_to_go(regions_total - regions_done, rate),
        exit_code=exit_code,
        message=message,
        unit=run.manifest.unit,
        actors=actors,
        driver=driver,
    )


def current_status(run: RunDirectory, counted: Counted | None = None) -> RunStatus:
    """Return how far a run is by what is committed now, with what its driver last wrote of itself, its rate and its actors.

    counted: as of `compute_status`. Raises RunError when a shard's footer, or status.json, is damaged.
    """
    written = read_status(run.store)
    status = compute_status(run, "running" if written is None else written.state, counted=counted)
    if written is None:
        return status
    left, is_running = status.regions_total - status.regions_done, status.state == "running"
    return replace(
        status,
        started_at=written.started_at,
        updated_at=written.updated_at,
        regions_per_s=written.regions_per_s,
        seconds_to_go=seconds_to_go(left, written.regions_per_s) if is_running else None,
        exit_code=written.exit_code,
        message=written.message,
        actors=written.actors,
        driver=written.driver,
    )


def sign_of_life(store: Store, status: RunStatus, now: datetime) -> tuple[SignOfLife | None, float | None]:
    """Return whether a running run's driver lives, and the seconds since it last wrote its status; (None, None) of a run that is not running.

    "fresh": it wrote not long ago, or it beats (a few seconds are spent on looking, whatever the two clocks say); "gone": its process has ended on
    this machine; "none": nothing of the two, so it is probably dead. Raises StorageError.
    """
    if status.state != "running":
        return None, None
    silent_for_s = None
    if status.updated_at is not None:
        silent_for_s = round(max(0.0, (now - _moment(status.updated_at)).total_seconds()), 1)
    claim = newest_claim(store)
    if claim is not None and claim.driver is not None and is_gone(claim.driver):
        return "gone", silent_for_s
    if silent_for_s is not None and silent_for_s <= SILENT_S:
        return "fresh", silent_for_s
    return ("fresh" if claim is not None and is_beating(store, claim) else "none"), silent_for_s


def seconds_to_go(regions: int, rate: float | None) -> float | None:
    """Return how long so many regions take at a rate a second; None where there is no rate."""
    return round(max(regions, 0) / rate, 1) if rate else None


def write_status(store: Store, status: RunStatus) -> None:
    """Replace RUN/status.json at once. Raises StorageError."""
    store.put(STATUS, (json.dumps(asdict(status), indent=1, sort_keys=True) + "\n").encode("ascii"))


def read_status(store: Store) -> RunStatus | None:
    """Return the status last written, or None if there is none. Raises RunError when the file is no status."""
    try:
        data = store.read_start(STATUS, _MOST_BYTES + 1)
    except MissingFile:
        return None
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        document = json.loads(data)
        validate(document, "status", store.join(STATUS))
        return _from_json(document)
    except Exception as error:
        raise RunError(
            f"{store.join(STATUS)}: expected a run's status, got something else ({error}). "
            "Delete the file; the next run writes it anew."
        ) from error


def status_to_json(status: RunStatus) -> JsonObject:
    """Return a status as the JSON object that status.json holds."""
    document: JsonObject = json.loads(json.dumps(asdict(status)))
    return document


def _from_json(document: dict[str, Any]) -> RunStatus:
    actors = tuple(ActorStatus(**{**row, "gpu_ids": tuple(row["gpu_ids"])}) for row in document.pop("actors", ()))
    driver = document.pop("driver", None)
    return RunStatus(**document, actors=actors, driver=None if driver is None else DriverStatus(**driver))


def _moment(text: str) -> datetime:
    """Return the time of an ISO 8601 text; one that is none counts as long ago."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
