"""The whole way, from JPEG files to committed shards, in this process or on Ray; measured once the model is loaded and has labeled a shard to warm up."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from rlabel.bench.corpus import DrawnCorpus
from rlabel.cluster.pool import PoolOptions, ShardPool
from rlabel.cluster.session import ray_session
from rlabel.config import LabelSettings
from rlabel.memory import reuse_freed_memory_environment
from rlabel.records import Abstention, Label, Shard
from rlabel.run.directory import RunDirectory
from rlabel.run.job import LabelJob, open_run, plan_job
from rlabel.run.local import label_in_process
from rlabel.run.progress import RunProgress
from rlabel.run.worker import LabelWorker, WorkerSpec, worker_spec

_QUIET_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long something took, and the texts it gave by region key. cpu_s: of all threads of the processes that did it; None where that is not known."""

    seconds: float
    texts: dict[str, str]
    cpu_s: float | None = None


class WarmWorker(LabelWorker):
    """Says that it is ready when it has labeled a shard, and its fellows have too; leaves the time of that in a folder."""

    def __init__(self, spec: WorkerSpec, first: Shard, folder: str, num_workers: int) -> None:
        super().__init__(spec)
        self.first, self.folder, self.num_workers = first, Path(folder), num_workers

    def describe(self) -> tuple[str, ...]:
        self.label_only(self.first)
        (self.folder / f"warm-{uuid.uuid4().hex}").touch()
        while len(list(self.folder.glob("warm-*"))) < self.num_workers:
            time.sleep(0.01)
        (self.folder / f"ready-{uuid.uuid4().hex}").write_text(repr(time.time()))
        self.cpu_at_start_s = time.process_time()
        return super().describe()

    def label_and_commit(self, shard: Shard) -> int:
        num_regions = super().label_and_commit(shard)
        used_s = time.process_time() - self.cpu_at_start_s
        (self.folder / f"cpu-{os.getpid()}-{shard.index}").write_text(repr(used_s))
        return num_regions


def plan(corpus: DrawnCorpus, folder: Path, **settings: object) -> LabelJob:
    """Return a job over the corpus. settings: of LabelSettings."""
    return plan_job(
        LabelSettings.model_validate(
            {
                "images": str(corpus.images),
                "regions": str(corpus.regions),
                "vocabulary": str(corpus.vocabulary),
                "out": str(folder / "unused"),
                "heartbeat_s": _QUIET_S,
                **settings,
            }
        )
    )


def in_process(job: LabelJob, worker: LabelWorker, folder: Path) -> Timed:
    """Label a corpus as --no-ray does, by a worker that is there already."""
    job, run = _begin(job, folder)
    progress = RunProgress(run, _QUIET_S)
    started, cpu_started = time.perf_counter(), time.process_time()
    label_in_process(run, job.shards(), lambda: worker, progress)
    ended, cpu_ended = time.perf_counter(), time.process_time()
    return Timed(seconds=ended - started, texts=_texts(run), cpu_s=cpu_ended - cpu_started)


def on_ray(job: LabelJob, num_actors: int, gpus_per_actor: float, folder: Path) -> Timed:
    """Label a corpus by actors of a private local Ray, which stay only for this."""
    job, run = _begin(job, folder)
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    meeting.mkdir()
    options = PoolOptions(
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=job.settings.cpus_per_actor,
        wait_for_actors_s=3600.0,
        environment=reuse_freed_memory_environment() if gpus_per_actor == 0 else {},
    )
    with ray_session(None, num_actors * job.settings.cpus_per_actor) as ray:
        first = next(job.shards())
        pool = ShardPool(ray, WarmWorker, (worker_spec(job, run), first, str(meeting), num_actors), run, options)
        pool.label(job.shards())
        ended = time.time()
    # One machine, one clock.
    ready = max(float(path.read_text()) for path in meeting.glob("ready-*"))
    used: dict[str, float] = {}  # by process; the last of its shards says most
    for path in meeting.glob("cpu-*"):
        process = path.name.split("-")[1]
        used[process] = max(used.get(process, 0.0), float(path.read_text()))
    return Timed(seconds=ended - ready, texts=_texts(run), cpu_s=sum(used.values()))


def _begin(job: LabelJob, folder: Path) -> tuple[LabelJob, RunDirectory]:
    settings = job.settings.model_copy(update={"out": str(folder / f"run-{uuid.uuid4().hex}")})
    job = replace(job, settings=settings)
    return job, open_run(job, under_ray=False)


def _texts(run: RunDirectory) -> dict[str, str]:
    return {
        outcome.region.key: outcome.text
        for result in run.results()
        for outcome in result.outcomes
        if isinstance(outcome, Label | Abstention)
    }
