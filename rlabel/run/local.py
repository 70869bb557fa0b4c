"""Labels a run in this process, one shard after the other. The same bytes as the Ray driver, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlabel.records import Shard
from rlabel.run.directory import RunDirectory
from rlabel.run.progress import RunProgress
from rlabel.run.worker import LabelWorker


def label_in_process(run: RunDirectory, shards: Iterable[Shard], make_worker: Callable[[], LabelWorker], progress: RunProgress) -> None:
    """Label and commit every shard that is not committed. The model is loaded only when there is one."""
    committed = run.committed()
    worker: LabelWorker | None = None
    for shard in shards:
        if shard.index in committed:
            continue
        worker = worker or make_worker()
        worker.label_and_commit(shard)
        progress.beat()
