"""Labels a run in this process, one shard after the other at the model. The same bytes as the Ray driver, without Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from rlabel.records import Shard, ShardResult
from rlabel.run.attempts import failed_shard, image_shard, in_words, joined
from rlabel.run.directory import RunDirectory
from rlabel.run.progress import RunProgress
from rlabel.run.records_io import check_complete
from rlabel.spans import span
from rlabel.storage import StoreDown


class ShardInWork(Protocol):
    """A shard whose preparation has begun: `answer` puts it through the model, `result` waits for the rest, `close` gives it up."""

    def answer(self) -> None: ...

    def result(self) -> ShardResult: ...

    def close(self) -> None: ...


class ShardLabeler(Protocol):
    """What a driver needs of a worker in its own process."""

    def begin(self, shard: Shard) -> ShardInWork:
        """Return a shard in work; the next one may be begun before this one is done."""

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

    While the model answers a shard, in this thread, the next one is prepared and the one before snapped and committed.

    Raises StorageError when a shard cannot be committed, or the store of the pictures is down; what is committed stays.
    """
    committed = run.committed()
    todo = (shard for shard in shards if shard.index not in committed)
    shard = next(todo, None)
    if shard is None:
        return
    worker = make_worker()

    def finish(shard: Shard, work: ShardInWork) -> None:
        try:
            result = work.result()
            check_complete(shard, result)
        except StoreDown:
            raise
        except Exception as error:
            result = _label_again(worker, shard, max_attempts, error)
        with span("commit"):
            run.commit(result)

    work: ShardInWork | None = worker.begin(shard)
    upcoming_work: ShardInWork | None = None
    finishing: Future[Any] | None = None
    # At an interrupt: what is at its end is still committed.
    with ThreadPoolExecutor(1, thread_name_prefix="commit") as pool:
        try:
            while shard is not None and work is not None:
                upcoming = next(todo, None)
                upcoming_work = None if upcoming is None else worker.begin(upcoming)
                failed: ShardResult | None = None
                try:
                    work.answer()
                except StoreDown:
                    raise
                except Exception as error:
                    failed = _label_again(worker, shard, max_attempts, error)
                if finishing is not None:
                    finishing.result()
                    progress.beat()
                finishing = pool.submit(finish, shard, work) if failed is None else pool.submit(run.commit, failed)
                shard, work = upcoming, upcoming_work
            if finishing is not None:
                finishing.result()
                progress.beat()
        finally:
            for begun in (work, upcoming_work):
                if begun is not None:
                    begun.close()


def _label_again(worker: ShardLabeler, shard: Shard, max_attempts: int, error: Exception) -> ShardResult:
    """Return the result of a shard whose first attempt failed: tried again, then image by image."""
    result = _tried(worker, shard, max_attempts, f"shard {shard.index}", error)
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


def _tried(
    worker: ShardLabeler, shard: Shard, max_attempts: int, name: str, first: Exception | None = None
) -> ShardResult | str:
    """Return the result of the first attempt that works, or what was wrong with the last one. first: what the first attempt raised, made already."""
    cause = ""
    for attempt in range(1, max_attempts + 1):
        try:
            if attempt == 1 and first is not None:
                raise first
            return worker.label_only(shard)
        except StoreDown:  # the pictures are not to blame
            raise
        except Exception as error:  # whatever a picture can make a library raise
            cause = in_words(error)
            print(f"rlabel: {name}: attempt {attempt} of {max_attempts} failed: {cause}", file=sys.stderr, flush=True)
    return cause
