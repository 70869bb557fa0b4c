"""Workers without a model for tests of the pool: they label by the region's key, and get into trouble at chosen images.

Ray's workers cannot import the files of tests: `sent_to_workers` makes Ray send these.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import run_factories
from rlabel.cluster.pool import PoolOptions, ShardPool
from rlabel.errors import StorageError
from rlabel.records import Failure, ImageRecord, Outcome, Region, Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.local import label_in_process
from rlabel.run.manifest import PlanSummary
from rlabel.run.merge import ABSTAINED, FAILURES, LABELS
from rlabel.run.progress import RunProgress
from rlabel.storage import Store, StoreDown
from run_factories import abstention, image_row, label, manifest, region

NUM_SHARDS, IMAGES_PER_SHARD = 6, 2
BAD_IMAGE = 7  # the first of shard 3


def sent_to_workers(ray: Any, *modules: ModuleType) -> None:
    """Let Ray send these helpers, and further modules of tests, to its workers by value."""
    for module in (sys.modules[__name__], run_factories, *modules):
        ray.cloudpickle.register_pickle_by_value(module)


class Worker:
    """Labels by the region's key. `trouble` says what happens at an image, `folder` is where it and its calls leave their marks."""

    def __init__(
        self, run: RunDirectory, folder: str, trouble: dict[int, str] | None = None, at_start: str = ""
    ) -> None:
        self.run, self.folder, self.trouble = run, Path(folder), trouble or {}
        self.broken = False
        self._mark("made", str(os.getpid()))
        if at_start == "raises" or (at_start == "raises once" and self._first("raised")):
            raise ValueError("no such weights")
        if at_start == "dies once" and self._first("start"):
            os.kill(os.getpid(), signal.SIGKILL)

    def describe(self) -> tuple[str, ...]:
        return ("layer",)

    def begin(self, shard: Shard) -> InWork:
        return InWork(self, shard)

    def label_only(self, shard: Shard) -> ShardResult:
        self._mark("calls", f"{shard.index}-{len(shard.images)}")
        if self.broken:
            raise RuntimeError("the GPU is gone")
        outcomes: list[Outcome] = []
        for image in shard.images:
            self._meet(self.trouble.get(image.row["id"], ""))  # type: ignore[arg-type]
            for number, item in enumerate(image.regions):
                if number % 3 == 2:
                    outcomes.append(abstention(item, image.row["id"]))
                else:
                    outcomes.append(label(item, image.row["id"], text=f"a thing {item.key}"))
        return ShardResult(
            index=shard.index, images=tuple(image.row for image in shard.images), outcomes=tuple(outcomes)
        )

    def label_and_commit(self, shard: Shard) -> int:
        self.run.commit(self.label_only(shard))
        if any(self.trouble.get(image.row["id"]) == "dies after the commit" for image in shard.images):  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)
        return shard.num_regions

    def _meet(self, trouble: str) -> None:
        if trouble == "dies" or (trouble == "dies once" and self._first("death")):
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "dies late" and self._first("late"):
            self._wait_until(lambda: (self.folder / "noticed").exists())
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "raises":
            raise ValueError("cannot\nbe drawn")
        if trouble == "breaks once" and self._first("broken"):
            self.broken = True
            raise RuntimeError("the GPU is gone")
        if trouble == "no storage once" and self._first("storage"):
            raise StorageError("s3: no connection")
        if trouble == "store down":
            raise StoreDown("s3: out of reach for two minutes. Run the same command again.")
        if trouble == "hangs":
            self._mark("hangs", str(os.getpid()))
            time.sleep(600)
        if trouble.startswith("sleeps "):
            time.sleep(float(trouble.split()[-1]))
        if trouble == "eats memory":
            # A cap of this process, as a container's would be: without it the test would take the machine's memory.
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + 256 * 2**20, resource.RLIM_INFINITY))
            bytearray(2**30)
        if trouble.startswith("waits for "):
            self._wait_until(lambda: len(list((self.folder / "made").iterdir())) >= int(trouble.split()[-1]))

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Return when something is so; after a minute in any case, and the test says what is missing."""
        end = time.monotonic() + 60
        while not reached() and time.monotonic() < end:
            time.sleep(0.02)

    def _first(self, name: str) -> bool:
        path = self.folder / name
        if path.exists():
            return False
        path.touch()
        return True

    def _mark(self, folder: str, name: str) -> None:
        (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / folder / f"{name}.{uuid.uuid4().hex}").touch()


class InWork:
    """A shard at a worker that does all of it at once."""

    def __init__(self, worker: Worker, shard: Shard) -> None:
        self.worker, self.shard = worker, shard

    def answer(self) -> None:
        self.made = self.worker.label_only(self.shard)

    def result(self) -> ShardResult:
        return self.made

    def close(self) -> None:
        pass


def shards(num_shards: int = NUM_SHARDS) -> list[Shard]:
    """Shards of two images with 0 to 4 regions each."""
    made = []
    for index in range(num_shards):
        images = []
        for place in range(IMAGES_PER_SHARD):
            image_id = index * IMAGES_PER_SHARD + place + 1
            regions = tuple(
                region(f"{image_id}/{n}", image_id * 10 + n + 1)
                for n in range((image_id * 2) % 5 + (image_id == BAD_IMAGE))
            )
            images.append(
                ImageRecord(
                    row=image_row(image_id), file_name=f"{image_id}.jpg", width_px=64, height_px=48, regions=regions
                )
            )
        made.append(Shard(index=index, content_sha256="0" * 64, images=tuple(images)))
    return made


NUM_REGIONS = sum(shard.num_regions for shard in shards())


def regions_of_image(image_id: int) -> set[str]:
    """Return the keys of one image's regions."""
    (image,) = [image for shard in shards(image_id) for image in shard.images if image.row["id"] == image_id]
    return {region.key for region in image.regions}


BAD_REGIONS = regions_of_image(BAD_IMAGE)


def begin(folder: Path, num_shards: int = NUM_SHARDS) -> RunDirectory:
    num_regions = sum(shard.num_regions for shard in shards(num_shards))
    plan = PlanSummary(
        num_shards=num_shards, num_images=num_shards * IMAGES_PER_SHARD, num_regions=num_regions, sha256="b" * 64
    )
    return RunDirectory.create_or_resume(Store.open(folder), manifest(plan=plan))


def merged(run: RunDirectory) -> tuple[bytes, ...]:
    run.merge()
    return tuple(run.store.read(name) for name in (LABELS, ABSTAINED, FAILURES))


def in_process(
    folder: Path, trouble: dict[int, str] | None = None, max_attempts: int = 3, num_shards: int = NUM_SHARDS
) -> tuple[bytes, ...]:
    folder.mkdir()
    run = begin(folder / "run", num_shards)
    label_in_process(
        run, shards(num_shards), lambda: Worker(run, str(folder), trouble), RunProgress(run, 1e9), max_attempts
    )
    return merged(run)


class Place:
    """A run and the pool's surroundings in one test."""

    def __init__(self, ray: Any, folder: Path, num_shards: int = NUM_SHARDS) -> None:
        self.ray, self.folder, self.num_shards = ray, folder, num_shards
        self.run = begin(folder / "run", num_shards)

    def label(
        self,
        trouble: dict[int, str] | None = None,
        worker: type = Worker,
        at_start: str = "",
        on_tick: Callable[[], None] = lambda: None,
        **more: Any,
    ) -> None:
        options = PoolOptions(
            **{"num_actors": 1, "gpus_per_actor": 0.0, "cpus_per_actor": 1, "wait_for_actors_s": 60.0, **more}
        )
        self.pool = ShardPool(self.ray, worker, (self.run, str(self.folder), trouble, at_start), self.run, options)
        self.pool.label(shards(self.num_shards), on_tick)

    def calls(self) -> Counter[str]:
        return Counter(path.name.partition(".")[0] for path in (self.folder / "calls").iterdir())

    def num_actors_made(self) -> int:
        return len(list((self.folder / "made").iterdir()))


def failures(run: RunDirectory) -> list[Failure]:
    return [outcome for result in run.results() for outcome in result.outcomes if isinstance(outcome, Failure)]


def all_regions(run: RunDirectory) -> Sequence[Region]:
    return [outcome.region for result in run.results() for outcome in result.outcomes]
