"""Labels a run in this process, one shard after the other. The same bytes as the Ray driver, without Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Protocol

from rlabel.records import Shard, ShardResult
from rlabel.run.attempts import failed_shard, image_shard, in_words, joined
from rlabel.run.directory import RunDirectory
from rlabel.run.progress import RunProgress


class ShardLabeler(Protocol):
    """What a driver needs of a worker in its own process."""

    def label_only(self, shard: Shard) -> ShardResult:
        """Return a shard's result without committing it."""


def label_in_process(
    run: RunDirectory,
    shards: Iterable[Shard],
    make_worker: Callable[[], ShardLabeler],
    progress: RunProgress,
    max_attempts: int = 3,
) -> None:
    """Label and commit every shard that is not committed. The model is loaded only when there is one.

    Raises StorageError when a shard cannot be committed; what is committed stays.
    """
    committed = run.committed()
    worker: ShardLabeler | None = None
    for shard in shards:
        if shard.index in committed:
            continue
        worker = worker or make_worker()
        run.commit(_label(worker, shard, max_attempts))
        progress.beat()


def _label(worker: ShardLabeler, shard: Shard, max_attempts: int) -> ShardResult:
    result = _tried(worker, shard, max_attempts, f"shard {shard.index}")
    if isinstance(result, ShardResult):
        return result
    if len(shard.images) < 2:
        return failed_shard(shard, result, max_attempts)
    parts: dict[int, ShardResult] = {}
    for part in range(len(shard.images)):
        alone = image_shard(shard, part)
        answer = _tried(worker, alone, max_attempts, f"shard {shard.index}, image {part}")
        parts[part] = answer if isinstance(answer, ShardResult) else failed_shard(alone, answer, max_attempts)
    return joined(shard, parts)


def _tried(worker: ShardLabeler, shard: Shard, max_attempts: int, name: str) -> ShardResult | str:
    """Return the result of the first attempt that works, or what was wrong with the last one."""
    cause = ""
    for attempt in range(1, max_attempts + 1):
        try:
            return worker.label_only(shard)
        except Exception as error:  # whatever a picture can make a library raise
            cause = in_words(error)
            print(f"rlabel: {name}: attempt {attempt} of {max_attempts} failed: {cause}", file=sys.stderr, flush=True)
    return cause
