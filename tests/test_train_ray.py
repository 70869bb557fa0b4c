"""Training on Ray Train: the plain loop's weights on one worker, equal ranks on two, and an undisturbed end after kill -9 of a worker or the driver."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

import rlabel.cluster.train as cluster
from rlabel.cluster.train import TrainPlacement, train_on_ray
from rlabel.errors import RunError
from rlabel.storage import Store
from rlabel.training.recipe import Recipe
from train_factories import Files, Place, labeled_corpus, largest_difference, recipe, stage, tiny_folder, weights

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parent.parent

Loop = Callable[[dict[str, Any]], None]


def course(accumulate: int = 1) -> Recipe:
    parts = dict.fromkeys(("vision_tower", "connector", "zoom_connector"), 1e-3)
    return recipe(
        stage(
            "align",
            epochs=2,
            learning_rates=parts,
            images_per_batch=1,
            accumulate=accumulate,
            checkpoint_every=3,
            augment={"mirror": 0.5},
        ),
        stage("instruct", epochs=1, images_per_batch=1, accumulate=accumulate, checkpoint_every=3),
    )


@pytest.fixture(autouse=True)
def _quick_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train looks at its workers every 2 s, and a report with a checkpoint waits for that. Nor is there a node here that is taken away."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Four pictures, of which one is broken."""
    made = labeled_corpus(tmp_path_factory.mktemp("corpus"), num_images=4)
    (made.images / "2.png").write_bytes(b"no picture")
    return made


def placement(folder: Path, **more: Any) -> TrainPlacement:
    fields = {
        "name": "test", "storage": str(folder / "storage"), "num_workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1,
        "max_failures": 0, "save_dtype": "float32", "log_path": folder / "progress.jsonl",
        "out": Store.open(folder), "attempt": "this one",
    }  # fmt: skip
    return TrainPlacement(**{**fields, **more})


def take_to(folder: Path) -> Callable[[Path], None]:
    def take(made: Path) -> None:
        folder.mkdir()
        for path in made.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    return take


def plain(files: Files, model: Path, of: Recipe, folder: Path) -> dict[str, Any]:
    """Return the weights of the loop without Ray."""
    from rlabel.training.loop import train

    folder.mkdir()
    return weights(train(files.job(model, of), Place(folder))[0])


def dying_once(inner: Loop, marker: Path, snapshot: Path) -> Loop:
    """Return a worker's function whose first process is killed when it comes to its third checkpoint. snapshot: Ray's list of those it has taken."""

    def loop(config: dict[str, Any]) -> None:
        import rlabel.training.loop as module

        module._HEARTBEAT_S = math.inf  # a slow machine says more
        surroundings = cluster.RaySurroundings
        report, checkpoints = surroundings.report, []

        def taken() -> int:
            return len(json.loads(snapshot.read_text())["checkpoint_results"]) if snapshot.exists() else 0

        # Nothing of this module is used below: workers cannot import it.

        def reporting(self: Any, progress: Any, write: Any) -> None:
            if len(checkpoints) == 2 and not marker.exists():
                end = time.monotonic() + 120
                while (
                    taken() < 2 and time.monotonic() < end
                ):  # the controller takes a checkpoint a moment after it was reported
                    time.sleep(0.1)
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            checkpoints.append(write)
            report(self, progress, write)

        surroundings.report = reporting  # type: ignore[method-assign]
        inner(config)

    return loop


def keeping_every_rank(inner: Loop, folder: Path) -> Loop:
    """Return a worker's function that also writes each rank's weights."""

    def loop(config: dict[str, Any]) -> None:
        import rlabel.training.loop as module
        from rlabel.training.checkpoint import save_weights

        train = module.train

        def training(job: Any, surroundings: Any) -> Any:
            made, processor = train(job, surroundings)
            save_weights(made.state_dict(), folder / f"rank{surroundings.rank}.safetensors")
            return made, processor

        module.train = training
        inner(config)

    return loop


def telling_its_process(inner: Loop, path: Path) -> Loop:
    """Return a worker's function that also writes the id of its process."""

    def loop(config: dict[str, Any]) -> None:
        path.write_text(str(os.getpid()))
        inner(config)

    return loop


def test_one_worker_that_is_killed_once_ends_with_the_weights_of_the_plain_loop(
    local_ray: ModuleType, tmp_path: Path, files: Files, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "killed"
    snapshot = tmp_path / "storage" / "test" / "checkpoint_manager_snapshot.json"
    monkeypatch.setattr(cluster, "_loop", dying_once(cluster._loop, marker, snapshot))
    train_on_ray(
        files.job(model, course(), num_loader_workers=1), placement(tmp_path, max_failures=1), take_to(tmp_path / "out")
    )
    assert marker.exists()
    steps = [
        (line["stage"], line["step"])
        for line in map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    ]
    # Killed when it came to report step 8: the two steps behind the last checkpoint are done again, no others.
    assert steps == [("align", 3), ("align", 6), ("align", 8), ("instruct", 3), ("instruct", 4)]
    assert largest_difference(weights(tmp_path / "out"), plain(files, model, course(), tmp_path / "plain")) == 0


def test_two_workers_hold_equal_weights_those_of_one_process_that_accumulates(
    local_ray: ModuleType, tmp_path: Path, files: Files, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture is broken, so that now and then one of the two has an empty batch: neither may wait for the other for ever."""
    monkeypatch.setattr(cluster, "_loop", keeping_every_rank(cluster._loop, tmp_path))
    train_on_ray(files.job(model, course()), placement(tmp_path, num_workers=2), take_to(tmp_path / "out"))
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    assert largest_difference(*ranks) == 0
    saved = weights(tmp_path / "out")
    assert largest_difference(saved, weights(model)) > 1e-3
    assert largest_difference(saved, plain(files, model, course(accumulate=2), tmp_path / "plain")) < 1e-6


def test_worker_of_a_killed_driver_stops_when_another_has_taken_over(tmp_path: Path) -> None:
    """Ray's processes outlive a killed driver by half a minute, and would write into the checkpoints of the one that goes on."""
    out = Store.open(tmp_path)
    surroundings = object.__new__(cluster.RaySurroundings)
    surroundings.out, surroundings.attempt = out, "old"
    out.put(cluster.ATTEMPT, b"old")
    surroundings._refuse_if_superseded()
    out.put(cluster.ATTEMPT, b"new")
    with pytest.raises(RunError, match="another `rlabel train` has taken this folder over"):
        surroundings._refuse_if_superseded()


def test_error_in_a_worker_is_one_sentence_with_its_cause(
    local_ray: ModuleType, tmp_path: Path, files: Files, model: Path
) -> None:
    wrong = recipe(stage(learning_rates={"conector": 1e-3}))
    with pytest.raises(RunError) as caught:
        train_on_ray(files.job(model, wrong), placement(tmp_path), lambda folder: None)
    text = str(caught.value)
    assert "expected names of this model's weights, got 'conector'" in text
    assert "Traceback" not in text
    assert "\n" not in text
    assert len(text) < 600


def test_sigterm_interrupts_ray_s_waiting_as_ctrl_c_does() -> None:
    class Endless:
        controller = None

        def fit(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        cluster._fit(Endless())
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_ends_training_here_and_in_the_workers(
    local_ray: ModuleType,
    tmp_path: Path,
    files: Files,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    ctrl_c_raises: None,
) -> None:
    """Ray Train takes SIGINT for itself and lets the process end with exit code 0, as if it had finished."""
    endless = recipe(stage(epochs=10_000, images_per_batch=1))
    monkeypatch.setattr(cluster, "_loop", telling_its_process(cluster._loop, tmp_path / "pid"))

    def send() -> None:
        while not _lines(tmp_path):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train_on_ray(files.job(model, endless), placement(tmp_path), lambda folder: None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    worker = int((tmp_path / "pid").read_text())
    _wait_until(lambda: not _lives(worker))


# ---- the command, as a process of its own


def write_recipe(path: Path, of: Recipe) -> Path:
    path.write_text(json.dumps(of.model_dump(mode="json")))  # JSON is YAML
    return path


def test_killed_driver_goes_on_with_the_same_command_to_the_weights_of_an_undisturbed_run(
    tmp_path: Path, files: Files, model: Path
) -> None:
    out, storage = tmp_path / "out", tmp_path / "elsewhere"
    slow = course()
    slow = slow.model_copy(
        update={"stages": [one.model_copy(update={"epochs": 10.0, "checkpoint_every": 10}) for one in slow.stages]}
    )
    command = [
        sys.executable, "-m", "rlabel.cli.main", "train", "--images", str(files.images), "--annotations", str(files.annotations),
        "--model", str(model), "--recipe", str(write_recipe(tmp_path / "r.yaml", slow)), "--out", str(out), "--storage", str(storage),
    ]  # fmt: skip
    with (tmp_path / "first.txt").open("w") as said:
        first = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        try:
            _wait_until(lambda: any(storage.glob("rlabel-*/*snapshot.json")) or first.poll() is not None)
        finally:
            first.kill()
            first.wait()
    assert not (out / "config.json").exists(), (tmp_path / "first.txt").read_text()
    assert not (out / "checkpoints").exists()
    assert list(storage.glob("rlabel-*/checkpoint*"))

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert second.returncode == 0, second.stderr
    assert f"wrote {out}" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr
    assert all(line.startswith("rlabel: ") for line in second.stderr.splitlines()), second.stderr
    # Old lines are not told again, and the work up to the last checkpoint is not done again.
    told = [line.split()[1:3] for line in second.stderr.splitlines() if "regions/s" in line]
    kept = [[line["stage"], f"{line['step']}/{line['num_steps']}"] for line in map(json.loads, _lines(out))]
    # Workers may outlive a killed driver and finish its stages: then the second start has little or nothing left to tell.
    assert told == kept[len(kept) - len(told) :]
    assert ["align", "10/40"] in kept
    assert ["align", "10/40"] not in told
    assert largest_difference(weights(out), plain(files, model, slow, tmp_path / "plain")) == 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _lines(out: Path) -> list[str]:
    path = out / "progress.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _wait_until(condition: Callable[[], bool], timeout_s: float = 180) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.05)


def test_placement_says_where_and_never_what() -> None:
    """The settings that decide the weights are in the job alone."""
    assert {field.name for field in dataclasses.fields(TrainPlacement)} == {
        "name", "storage", "num_workers", "gpus_per_worker", "cpus_per_worker", "max_failures", "save_dtype", "log_path", "out", "attempt",
        "parallel", "tensorboard",
    }  # fmt: skip
