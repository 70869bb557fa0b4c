"""The actor pool on a real local Ray, with workers that die, hang, raise and forget: every region has its outcome, the bytes stay the same.

The workers here are plain classes without a model: they label by the region's key, and get into trouble at chosen images.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlabel.cluster.pool import PoolOptions, ShardPool, choose_actors
from rlabel.errors import RunError, StorageError
from rlabel.records import Failure, ImageRecord, Outcome, Region, Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.local import label_in_process
from rlabel.run.manifest import PlanSummary
from rlabel.run.merge import ABSTAINED, FAILURES, LABELS
from rlabel.run.progress import RunProgress
from rlabel.storage import Store
from run_factories import abstention, image_row, label, manifest, region

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
NUM_SHARDS, IMAGES_PER_SHARD = 6, 2
BAD_IMAGE = 7  # the first of shard 3


class Worker:
    """Labels by the region's key. `trouble` says what happens at an image, `folder` is where it and its calls leave their marks."""

    def __init__(
        self, run: RunDirectory, folder: str, trouble: dict[int, str] | None = None, at_start: str = ""
    ) -> None:
        self.run, self.folder, self.trouble = run, Path(folder), trouble or {}
        self.broken = False
        self._mark("made", str(os.getpid()))
        if at_start == "raises":
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
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "raises":
            raise ValueError("cannot\nbe drawn")
        if trouble == "breaks once" and self._first("broken"):
            self.broken = True
            raise RuntimeError("the GPU is gone")
        if trouble == "no storage once" and self._first("storage"):
            raise StorageError("s3: no connection")
        if trouble == "hangs":
            time.sleep(600)
        if trouble.startswith("waits for "):
            end = time.monotonic() + 60
            while len(list((self.folder / "made").iterdir())) < int(trouble.split()[-1]) and time.monotonic() < end:
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


class Overlapping(Worker):
    """Works on two shards at once: each waits a while until it has company."""

    shards_at_once = 2

    def label_only(self, shard: Shard) -> ShardResult:
        (self.folder / "in work").mkdir(exist_ok=True)
        mark = self.folder / "in work" / f"{os.getpid()}-{shard.index}"
        mark.touch()
        try:
            if len(shard.images) > 1 and shard.index not in (4, 5):  # the last ones may have no company
                self._meet_another()
            return super().label_only(shard)
        finally:
            mark.unlink()

    def _meet_another(self) -> None:
        end = time.monotonic() + 5
        while len(list((self.folder / "in work").glob(f"{os.getpid()}-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        (self.folder / "met").mkdir(exist_ok=True)
        if time.monotonic() < end:
            self._mark("met", "met")


class Profiled(Worker):
    def profile(self) -> str:
        return "mine"


class SeesItsGpu(Worker):
    """Waits until both actors are there, and says which GPU it was given."""

    def label_only(self, shard: Shard) -> ShardResult:
        self._meet("waits for 2")
        self._mark("gpus", f"{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}")
        return super().label_only(shard)


def shards() -> list[Shard]:
    """Six shards of two images with 0 to 4 regions each."""
    made = []
    for index in range(NUM_SHARDS):
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
BAD_REGIONS = {
    region.key
    for shard in shards()
    for image in shard.images
    if image.row["id"] == BAD_IMAGE
    for region in image.regions
}


def begin(folder: Path) -> RunDirectory:
    plan = PlanSummary(
        num_shards=NUM_SHARDS, num_images=NUM_SHARDS * IMAGES_PER_SHARD, num_regions=NUM_REGIONS, sha256="b" * 64
    )
    return RunDirectory.create_or_resume(Store.open(folder), manifest(plan=plan))


def merged(run: RunDirectory) -> tuple[bytes, ...]:
    run.merge()
    return tuple(run.store.read(name) for name in (LABELS, ABSTAINED, FAILURES))


def in_process(folder: Path, trouble: dict[int, str] | None = None, max_attempts: int = 3) -> tuple[bytes, ...]:
    folder.mkdir()
    run = begin(folder / "run")
    label_in_process(run, shards(), lambda: Worker(run, str(folder), trouble), RunProgress(run, 1e9), max_attempts)
    return merged(run)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[bytes, ...]:
    found = in_process(tmp_path_factory.mktemp("undisturbed") / "in-process")
    assert found[0].count(b"a thing") > 10 and found[1] and not found[2]
    return found


class Place:
    """A run and the pool's surroundings in one test."""

    def __init__(self, ray, folder: Path) -> None:
        self.ray, self.folder = ray, folder
        self.run = begin(folder / "run")

    def label(
        self,
        trouble: dict[int, str] | None = None,
        worker: type = Worker,
        at_start: str = "",
        on_tick: Callable[[], None] = lambda: None,
        **more,
    ) -> None:
        options = PoolOptions(
            **{"num_actors": 1, "gpus_per_actor": 0.0, "cpus_per_actor": 1, "wait_for_actors_s": 60.0, **more}
        )
        self.pool = ShardPool(self.ray, worker, (self.run, str(self.folder), trouble, at_start), self.run, options)
        self.pool.label(shards(), on_tick)

    def calls(self) -> Counter[str]:
        return Counter(path.name.partition(".")[0] for path in (self.folder / "calls").iterdir())

    def num_actors_made(self) -> int:
        return len(list((self.folder / "made").iterdir()))


@pytest.fixture
def place(local_ray, tmp_path) -> Place:
    # Workers cannot import this file: it is sent to them.
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    import run_factories

    local_ray.cloudpickle.register_pickle_by_value(run_factories)
    return Place(local_ray, tmp_path)


def failures(run: RunDirectory) -> list[Failure]:
    return [outcome for result in run.results() for outcome in result.outcomes if isinstance(outcome, Failure)]


def all_regions(run: RunDirectory) -> Sequence[Region]:
    return [outcome.region for result in run.results() for outcome in result.outcomes]


@pytest.mark.parametrize("num_actors", [1, 2, 3])
def test_any_number_of_actors_gives_the_bytes_of_one_process(place, undisturbed, num_actors):
    place.label({1: f"waits for {num_actors}", 3: f"waits for {num_actors}"}, num_actors=num_actors)
    assert merged(place.run) == undisturbed
    assert set(place.calls().values()) == {1} and place.num_actors_made() == num_actors
    assert place.pool.worker_notes == ("layer",)


def test_a_worker_killed_once_costs_nothing_but_its_shard(place, undisturbed):
    place.label({BAD_IMAGE: "dies once"})
    assert merged(place.run) == undisturbed
    assert place.num_actors_made() == 2
    assert place.calls() == {f"{index}-2": 2 if index == 3 else 1 for index in range(NUM_SHARDS)}


def test_a_worker_killed_between_commit_and_reply_has_done_its_shard(place, undisturbed):
    place.label({BAD_IMAGE: "dies after the commit"})
    assert merged(place.run) == undisturbed
    assert set(place.calls().values()) == {1}


def test_an_image_that_always_kills_is_found_and_all_others_are_labeled(place, capsys):
    place.label({BAD_IMAGE: "dies"}, max_attempts=2)
    assert len(all_regions(place.run)) == NUM_REGIONS
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS and {failure.kind for failure in found} == {
        "attempts"
    }
    assert found[0].reason.startswith(f"{BAD_IMAGE}.jpg: not labeled in 2 attempts: the worker died")
    # As a shard; then its images alone: the good one once, the bad one twice; nothing else more than once.
    calls = place.calls()
    assert calls.pop("3-2") in (2, 3), "once more where the reply of the shard before it died with the worker"
    assert calls == {**{f"{index}-2": 1 for index in range(NUM_SHARDS) if index != 3}, "3-1": 3}
    assert "shard 3: attempt 2 of 2 failed" in capsys.readouterr().err


def test_an_image_that_always_raises_gives_the_same_bytes_as_in_one_process(place, tmp_path):
    place.label({BAD_IMAGE: "raises"}, max_attempts=2)
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS
    assert {failure.reason for failure in found} == {
        f"{BAD_IMAGE}.jpg: not labeled in 2 attempts: ValueError: cannot be drawn."
    }
    assert merged(place.run) == in_process(tmp_path / "in-process", {BAD_IMAGE: "raises"}, max_attempts=2)


def test_a_worker_that_can_do_nothing_more_is_replaced(place, undisturbed):
    place.label({BAD_IMAGE: "breaks once"})
    assert merged(place.run) == undisturbed and place.num_actors_made() == 2


def test_two_shards_at_once_in_an_actor_give_the_bytes_of_one_process(place, undisturbed):
    place.label(worker=Overlapping)
    assert merged(place.run) == undisturbed
    assert set(place.calls().values()) == {1} and place.num_actors_made() == 1
    assert list((place.folder / "met").iterdir()), "no two shards were in work at once"


def test_of_two_shards_at_a_worker_that_dies_the_innocent_one_is_not_blamed(place, capsys):
    # One attempt a shard: whoever is blamed wrongly would be split, and fail where it dies.
    place.label({BAD_IMAGE: "dies"}, worker=Overlapping, max_attempts=1)
    assert {failure.region.key for failure in failures(place.run)} == BAD_REGIONS
    calls = place.calls()
    assert calls["3-1"] == 2, "alone as a shard, then its two images"
    assert not {f"{index}-1" for index in range(NUM_SHARDS) if index != 3} & set(calls), "another shard was split"
    said = capsys.readouterr().err
    assert "each is tried again, alone" in said and "shard 3: attempt 1 of 1 failed" in said


def test_an_error_in_one_of_two_shards_at_once_is_blamed_on_its_own_shard(place, undisturbed, capsys):
    place.label({BAD_IMAGE: "raises"}, worker=Overlapping, max_attempts=1)
    assert {failure.region.key for failure in failures(place.run)} == BAD_REGIONS
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "attempt" in line and "shard 3" not in line] == []


def test_workers_are_asked_for_their_profiles_and_one_that_cannot_tell_costs_nothing(place, undisturbed, capsys):
    place.label(worker=Profiled, profile=True, num_actors=2)
    assert set(place.pool.profiles) == {"mine"}
    assert merged(place.run) == undisturbed
    for path in (place.folder / "run" / "shards").iterdir():
        path.unlink()
    place.label(profile=True)  # Worker has no profile()
    assert place.pool.profiles == [] and "no profile" in capsys.readouterr().err
    assert merged(place.run) == undisturbed


def test_a_store_that_was_away_for_a_moment_costs_no_worker(place, undisturbed):
    place.label({BAD_IMAGE: "no storage once"})
    assert merged(place.run) == undisturbed and place.num_actors_made() == 1


def test_a_worker_that_hangs_is_ended_after_the_deadline(place):
    started = time.monotonic()
    place.label({BAD_IMAGE: "hangs"}, max_attempts=1, shard_timeout_s=4.0)
    assert time.monotonic() - started < 60
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS
    assert found[0].reason == f"{BAD_IMAGE}.jpg: not labeled in 1 attempts: no answer within 4 s."


def test_finished_shards_are_not_done_again(place, undisturbed):
    first = Worker(place.run, str(place.folder))
    for index in (4, 0, 3):
        first.label_and_commit(shards()[index])
    place.label()
    assert merged(place.run) == undisturbed
    assert place.calls() == {f"{index}-2": 1 for index in range(NUM_SHARDS)}
    place.label()
    assert place.num_actors_made() == 2, "a finished run needs no actor"


def test_a_constructor_that_raises_ends_the_run_at_once_with_its_cause(place):
    with pytest.raises(RunError, match="a labeling actor cannot start: ValueError: no such weights"):
        place.label(at_start="raises", num_actors=1)
    assert place.num_actors_made() == 1


def test_a_constructor_that_is_killed_is_tried_again(place, undisturbed):
    place.label(at_start="dies once")
    assert merged(place.run) == undisturbed and place.num_actors_made() == 2


def test_resources_that_no_node_has_end_the_run_and_are_named(place):
    with pytest.raises(
        RunError, match=r"no actor with 64 CPU and 0 GPU could start within 2 s\. The cluster has 4 CPU, 2 GPU"
    ):
        place.label(cpus_per_actor=64, wait_for_actors_s=2.0)


def test_the_wait_for_actors_begins_anew_when_the_last_one_dies(monkeypatch, place, undisturbed):
    real = time.monotonic
    # Many hours go by while the actor works; it dies three seconds later, which the pool does not take for a cluster without room.
    monkeypatch.setattr(
        "rlabel.cluster.pool.time.monotonic", lambda: real() + (50_000 if (place.folder / "late").exists() else 0)
    )
    place.label({1: "dies late"}, shard_timeout_s=1e9, wait_for_actors_s=60.0)
    assert merged(place.run) == undisturbed


def test_each_actor_sees_the_gpu_it_was_given(place, undisturbed):
    place.label(worker=SeesItsGpu, num_actors=2, gpus_per_actor=1.0)
    assert merged(place.run) == undisturbed
    seen = {path.name.partition(".")[0] for path in (place.folder / "gpus").iterdir()}
    gpus = [name.rpartition("-")[2] for name in seen]
    # The second actor may be ready only after the first has done all the work.
    assert gpus, "somebody labeled"
    assert set(gpus) <= {"0", "1"}, "one GPU a process"
    assert len(gpus) == len(set(gpus)), "another for each"


def test_actors_are_chosen_by_the_cluster_where_the_settings_leave_it_open(local_ray):
    assert choose_actors(local_ray, 0, -1.0, 1) == (2, 1.0), "one a GPU"
    assert choose_actors(local_ray, 0, 0.5, 1) == (4, 0.5)
    assert choose_actors(local_ray, 0, 0.0, 2) == (2, 0.0), "on CPUs, as many as there is room for"
    assert choose_actors(local_ray, 7, -1.0, 1) == (7, 1.0)


@pytest.fixture
def ctrl_c_raises():
    """A shell that starts tests in the background leaves them with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_ends_the_actors_and_keeps_what_is_done(place, undisturbed, ctrl_c_raises):
    def stop() -> None:
        if place.run.committed():
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        place.label({11: "hangs"}, on_tick=stop)
    assert place.run.committed() and not place.run.is_committed(5)
    place.label()
    assert merged(place.run) == undisturbed


def test_sigterm_is_heard_after_ray_has_ended() -> None:
    code = """
import os, signal, time
from rlabel.cli.options import Stopped, stop_on_sigterm
from rlabel.cluster.session import ray_session
stop_on_sigterm()
with ray_session(None, 1):
    pass
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
except Stopped:
    print("heard")
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines()[-1:] == ["heard"], (done.returncode, done.stderr)
