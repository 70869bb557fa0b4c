"""Verifies a run's shards by their hashes and takes damaged ones out, so that the label command makes these, and no others, anew.

    RUN/damaged/NNNNNN-1.jsonl   a damaged shard that was moved aside; the next one of that index is NNNNNN-2.jsonl

Only reads unless it is told to take shards out. Knows nothing of what made them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import BinaryIO

from rlabel.run.directory import RunDirectory
from rlabel.run.lease import DEFAULT_EXPIRY_S, held
from rlabel.run.records_io import DamagedShard
from rlabel.run.status import compute_status, write_status
from rlabel.storage import MissingFile

DAMAGED = "damaged"
_READERS = 4
_CHUNK_BYTES = 1 << 20
_NUMBERED = re.compile(r"([0-9]{6,})-([0-9]{1,9})\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadShard:
    """A damaged shard. file: its full path or URL. moved_to: where it lies now; None if it was deleted or left."""

    shard: int
    file: str
    reason: str
    moved_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a look at every shard has found. num_checked + num_missing == num_shards."""

    num_shards: int
    num_checked: int
    num_missing: int
    damaged: tuple[BadShard, ...]


def verify_run(run: RunDirectory, beat: Callable[[int], None] = lambda done: None) -> Repair:
    """Return which committed shards are not what was committed. Every byte is read, in flat memory. beat: called with the number of shards done.

    Raises StorageError when a shard cannot be read now: that is no damage.
    """
    committed = sorted(run.committed())
    damaged: list[BadShard] = []
    num_gone = 0

    def look(index: int) -> DamagedShard | MissingFile | None:
        try:
            return run.damage_of(index)
        except MissingFile as error:  # somebody deleted it meanwhile
            return error

    with ThreadPoolExecutor(_READERS, thread_name_prefix="verify") as pool:
        for done, (index, found) in enumerate(zip(committed, pool.map(look, committed), strict=True), 1):
            if isinstance(found, MissingFile):
                num_gone += 1
            elif found is not None:
                damaged.append(BadShard(shard=index, file=run.store.join(run.shard_path(index)), reason=str(found)))
            beat(done)
    num_checked = len(committed) - num_gone
    return Repair(
        num_shards=run.num_shards,
        num_checked=num_checked,
        num_missing=run.num_shards - num_checked,
        damaged=tuple(damaged),
    )


def take_out(run: RunDirectory, found: Repair, *, delete: bool = False, expiry_s: float = DEFAULT_EXPIRY_S) -> Repair:
    """Move damaged shards aside, or delete them, and return where they are; RUN/status.json says what is to be done.

    A shard that was made anew since it was looked at stays.
    Raises RunInUse while a driver is at the run, StorageError.
    """
    if not found.damaged:
        return found
    with held(run.store, expiry_s):
        damaged = [_taken_out(run, bad, delete) for bad in found.damaged]
        how = "deleted" if delete else f"moved to {run.store.join(DAMAGED)}"
        message = f"{len(damaged)} damaged shards were {how}; the same label command makes them anew"
        write_status(run.store, compute_status(run, "stopped", now=datetime.now(UTC), message=message))
    return replace(found, damaged=tuple(damaged))


def _taken_out(run: RunDirectory, bad: BadShard, delete: bool) -> BadShard:
    path = run.shard_path(bad.shard)
    moved_to = None
    try:
        if run.damage_of(bad.shard) is None:
            return bad
        if not delete:
            aside = _place_aside(run, bad.shard)
            with run.store.open_read(path) as stream:
                run.store.put_stream(aside, _chunks(stream))
            moved_to = run.store.join(aside)
    except MissingFile:
        return bad
    run.store.delete(path)
    return replace(bad, moved_to=moved_to)


def _place_aside(run: RunDirectory, index: int) -> str:
    taken = [
        int(match[2])
        for name in run.store.list(DAMAGED)
        if (match := _NUMBERED.fullmatch(name)) and int(match[1]) == index
    ]
    return f"{DAMAGED}/{index:06d}-{max(taken, default=0) + 1}.jsonl"


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
