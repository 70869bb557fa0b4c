"""The actor pool on a real local Ray, with workers that die, hang, raise and forget: every region has its outcome, the bytes stay the same.

The workers are plain classes without a model (pool_factories.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pool_factories import (
    BAD_IMAGE,
    BAD_REGIONS,
    NUM_REGIONS,
    NUM_SHARDS,
    InWork,
    Place,
    Worker,
    all_regions,
    begin,
    failures,
    in_process,
    merged,
    sent_to_workers,
    shards,
)
from rlabel.cluster.pool import choose_actors
from rlabel.cluster.session import _begin
from rlabel.errors import RunError
from rlabel.records import Shard, ShardResult
from rlabel.run.local import label_in_process
from rlabel.run.progress import RunProgress
from rlabel.storage import StoreDown

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)


class Overlapping(Worker):
    """Works on two shards at once: where shards 2 and 3 are in work for the first time, 2 stays so for as long as 3."""

    shards_at_once = 2

    def label_only(self, shard: Shard) -> ShardResult:
        if shard.index not in (2, 3) or len(shard.images) == 1 or not self._first(f"arrived {shard.index}"):
            return super().label_only(shard)
        # Marks of this process, which stay: neither can miss the other.
        here = self.folder / f"in {os.getpid()}"
        here.mkdir(exist_ok=True)
        (here / str(shard.index)).touch()
        self._wait_until(lambda: (here / str(5 - shard.index)).exists())
        if (here / str(5 - shard.index)).exists():
            self._mark("met", str(shard.index))
        if shard.index == 2:
            self._wait_until((here / "3 is done").exists)
            return super().label_only(shard)
        try:
            return super().label_only(shard)
        finally:
            (here / "3 is done").touch()


class Profiled(Worker):
    def profile(self) -> str:
        return "mine"


class SeesItsGpu(Worker):
    """Waits until both actors are there, and says which GPU it was given."""

    def label_only(self, shard: Shard) -> ShardResult:
        self._meet("waits for 2")
        self._mark("gpus", f"{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}")
        return super().label_only(shard)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[bytes, ...]:
    found = in_process(tmp_path_factory.mktemp("undisturbed") / "in-process")
    assert found[0].count(b"a thing") > 10 and found[1] and not found[2]
    return found


@pytest.fixture
def place(local_ray, tmp_path) -> Place:
    sent_to_workers(local_ray, sys.modules[__name__])
    return Place(local_ray, tmp_path)


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
    # Not which process died, nor where: the same corpus gives the same words.
    assert {failure.reason for failure in found} == {f"{BAD_IMAGE}.jpg: not labeled in 2 attempts: the worker died."}
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
    assert len(list((place.folder / "met").iterdir())) == 2, "no two shards were in work at once"


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


def test_a_store_that_is_down_stops_the_run_and_is_no_failure_of_a_picture(place, undisturbed):
    with pytest.raises(StoreDown, match="Run the same command again"):
        place.label({BAD_IMAGE: "store down"})
    assert failures(place.run) == []
    place.label({})
    assert merged(place.run) == undisturbed


def test_a_worker_that_hangs_is_ended_after_the_deadline(monkeypatch, place):
    real, hours, hanging = time.monotonic, [], place.folder / "hangs"

    def look() -> None:
        """Let an hour go by where the actor's process is one that hangs."""
        (actor,) = place.pool.status()
        hours.extend(1 for _ in hanging.glob(f"{actor.pid}.*"))

    monkeypatch.setattr("rlabel.cluster.pool.time.monotonic", lambda: real() + 3600 * len(hours))
    place.label({BAD_IMAGE: "hangs"}, on_tick=look, max_attempts=1, shard_timeout_s=1800.0, wait_for_actors_s=1e9)
    assert len(list(hanging.iterdir())) == 2, "as a shard, and its image alone"
    assert len(all_regions(place.run)) == NUM_REGIONS
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS
    assert found[0].reason == f"{BAD_IMAGE}.jpg: not labeled in 1 attempts: no answer within 1800 s."


def test_finished_shards_are_not_done_again(place, undisturbed):
    first = Worker(place.run, str(place.folder))
    for index in (4, 0, 3):
        first.label_and_commit(shards()[index])
    place.label()
    assert merged(place.run) == undisturbed
    assert place.calls() == {f"{index}-2": 1 for index in range(NUM_SHARDS)}
    place.label()
    assert place.num_actors_made() == 2, "a finished run needs no actor"


def test_one_process_neither_loads_the_model_nor_begins_a_shard_where_it_is_finished(tmp_path, undisturbed):
    run = begin(tmp_path / "run")
    for index in (4, 0, 3):
        Worker(run, str(tmp_path)).label_and_commit(shards()[index])
    before = Counter(path.name.partition(".")[0] for path in (tmp_path / "calls").iterdir())
    progress, begun = RunProgress(run, 1e9), []

    class Recording(Worker):
        def begin(self, shard: Shard) -> InWork:
            begun.append(shard.index)
            return super().begin(shard)

    label_in_process(run, shards(), lambda: Recording(run, str(tmp_path)), progress)
    assert begun == [1, 2, 5] and before == {"4-2": 1, "0-2": 1, "3-2": 1}
    label_in_process(run, shards(), lambda: pytest.fail("the model was loaded"), progress)
    assert merged(run) == undisturbed


def test_a_constructor_that_raises_ends_the_run_at_once_with_its_cause(place):
    with pytest.raises(RunError, match="a labeling actor cannot start: ValueError: no such weights"):
        place.label(at_start="raises", num_actors=1)
    assert place.num_actors_made() == 1


def test_a_constructor_that_is_killed_is_tried_again(place, undisturbed):
    place.label(at_start="dies once")
    assert merged(place.run) == undisturbed and place.num_actors_made() == 2


def test_resources_that_no_node_has_end_the_run_and_are_named(place):
    with pytest.raises(
        RunError, match=r"no actor with 64 CPU and 0 GPU could start within 0\.5 s\. The cluster has 4 CPU, 2 GPU"
    ):
        place.label(cpus_per_actor=64, wait_for_actors_s=0.5)


def test_the_wait_for_actors_begins_anew_when_the_last_one_dies(monkeypatch, place, undisturbed):
    real, late, looks = time.monotonic, place.folder / "late", []

    def look() -> None:
        looks.extend([1] * late.exists())
        if len(looks) == 2:  # at the second one the pool has seen the clock of later for certain
            (place.folder / "noticed").touch()

    # Many hours go by while the actor works; it dies a moment later, which the pool does not take for a cluster without room.
    monkeypatch.setattr("rlabel.cluster.pool.time.monotonic", lambda: real() + (50_000 if late.exists() else 0))
    place.label({1: "dies late"}, on_tick=look, shard_timeout_s=1e9, wait_for_actors_s=60.0)
    assert len(looks) >= 2 and place.num_actors_made() == 2
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


def test_a_private_ray_that_starts_too_slowly_is_tried_again(capsys):
    class SlowRay:
        def __init__(self, slow_starts: int, words: str) -> None:
            self.slow_starts, self.words, self.starts = slow_starts, words, 0

        def init(self, **options: object) -> None:
            self.starts += 1
            if self.starts <= self.slow_starts:
                raise Exception(self.words)

        def shutdown(self) -> None:
            pass

    slow = SlowRay(2, "The current node timed out during startup.")
    _begin(slow, {}, attempts=3)
    assert slow.starts == 3 and capsys.readouterr().err.count("once more") == 2
    for ray, attempts, starts in ((SlowRay(9, slow.words), 3, 3), (SlowRay(9, "no such port"), 3, 1)):
        with pytest.raises(Exception, match=ray.words):
            _begin(ray, {}, attempts)
        assert ray.starts == starts
