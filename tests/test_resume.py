"""Runs that are killed, stopped, doubled and continued, as real processes: the same bytes as an undisturbed run, nothing done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from label_factories import ROOT, Setup, outputs, rlabel_here, save_model, shard_files, start, wait_until

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
NUM_SHARDS = 24
# All that is in the folder of a finished run: nothing of its drivers, nothing half-written.
FINISHED = ["abstained.jsonl", "failures.jsonl", "labels.json", "manifest.json", "shards", "status.json"]


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    folder = tmp_path_factory.mktemp("resume")
    return Setup(folder, save_model(folder / "model"), NUM_SHARDS)


@pytest.fixture(scope="module")
def undisturbed(setup) -> Path:
    """The finished run that all others are compared with, made in one process without Ray."""
    out = setup.folder / "undisturbed"
    result = rlabel_here("label", setup.arguments(out, no_ray=True))
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["labels"] > 20 and counts["regions"] == 2 * NUM_SHARDS
    return out


def finish(setup: Setup, out: Path) -> dict[str, tuple[int, int]]:
    """Run the same command in this process to the end; return the shards that were there before."""
    before = shard_files(out)
    result = rlabel_here("label", setup.arguments(out, no_ray=True))
    assert result.returncode == 0, result.stderr
    after = shard_files(out)
    assert {name: after[name] for name in before} == before, "a committed shard was written again"
    return before


def soon_s() -> float:
    """Return what counts as soon: on a machine with more to do than it has cores, everything takes longer."""
    return 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def stop(process: subprocess.Popen[str], number: int) -> tuple[int, float, str]:
    """Send a signal; return the exit code, the seconds until the end, and what was said on stderr."""
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    return process.returncode, time.monotonic() - started, errors


def session_lock(driver: subprocess.Popen[str]) -> Path:
    """Return the lock in the folder of a driver's own Ray session: a file that it holds open."""
    links = (os.readlink(link) for link in Path(f"/proc/{driver.pid}/fd").iterdir())
    (lock,) = {Path(link) for link in links if re.fullmatch(r".*/rl-[^/]+/in-use", link)}
    return lock


def ray_processes(folder: Path) -> list[int]:
    """Return the processes that name a Ray session folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_driver_killed_in_the_middle_goes_on_to_the_bytes_of_an_undisturbed_run(setup, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start("jobs.label", setup.arguments(out, no_ray=True), cwd=ROOT)
    wait_until(lambda: len(shard_files(out)) >= 3, process)
    process.kill()
    process.communicate()
    assert json.loads((out / "status.json").read_text())["state"] == "running"
    assert 3 <= len(finish(setup, out)) < NUM_SHARDS
    assert outputs(out) == outputs(undisturbed)


def test_sigterm_ends_the_process_soon_and_says_how_to_go_on(setup, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start("rlabel.cli.main", ["label", *setup.arguments(out, no_ray=True)])
    wait_until(lambda: len(shard_files(out)) >= 2, process)
    code, seconds, errors = stop(process, signal.SIGTERM)
    assert code == 130 and seconds < soon_s(), errors
    assert "Run the same command again to go on" in errors and "Traceback" not in errors
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 130) and 2 <= status["shards_done"] < NUM_SHARDS
    assert not (out / "labels.json").exists()
    finish(setup, out)
    assert outputs(out) == outputs(undisturbed)


def test_of_two_drivers_at_once_the_second_is_refused_and_the_first_named(setup, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = start("rlabel.cli.main", ["label", *setup.arguments(out, no_ray=True, driver_expiry_s=10)])
    wait_until(lambda: len(shard_files(out)) >= 1, first)
    os.kill(first.pid, signal.SIGSTOP)  # or it may be done before the second one looks
    waits = time.sleep

    def goes_on(seconds: float) -> None:
        os.kill(first.pid, signal.SIGCONT)
        waits(seconds)

    monkeypatch.setattr("rlabel.run.lease.time.sleep", goes_on)
    second = rlabel_here("label", setup.arguments(out, no_ray=True))
    assert second.returncode == 2 and second.stdout == "", second.stderr
    assert f"another driver is at this run: {socket.gethostname()}, pid {first.pid}, since " in second.stderr
    output, errors = first.communicate(timeout=200)
    assert first.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["state"] == "done"
    assert outputs(out) == outputs(undisturbed)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


def test_a_driver_stopped_so_long_that_another_one_took_over_notices_and_does_no_harm(setup, undisturbed, tmp_path):
    out = tmp_path / "run"
    arguments = setup.arguments(out, no_ray=True, driver_expiry_s=1)
    zombie = start("rlabel.cli.main", ["label", *arguments])
    wait_until(lambda: len(shard_files(out)) >= 2, zombie)
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        before = shard_files(out)
        assert 2 <= len(before) < NUM_SHARDS
        result = rlabel_here("label", arguments)
        assert result.returncode == 0, result.stderr
        assert f"no sign of life from {socket.gethostname()}, pid {zombie.pid}" in result.stderr
        finished, status = outputs(out), (out / "status.json").read_bytes()
        assert finished == outputs(undisturbed) and before.items() <= shard_files(out).items()
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    output, errors = zombie.communicate(timeout=200)
    assert zombie.returncode == 1 and output == "" and "Traceback" not in errors
    assert "it was taken for dead" in errors and "nothing is to be done" in errors
    assert outputs(out) == finished and (out / "status.json").read_bytes() == status
    assert sorted(path.name for path in out.iterdir()) == FINISHED


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_ray_stopped_and_then_killed_leaves_no_process_and_goes_on_to_the_same_bytes(setup, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start("jobs.label", setup.arguments(out, num_actors=1), cwd=ROOT)
    wait_until(lambda: len(shard_files(out)) >= 2, process)
    lock = session_lock(process)
    assert ray_processes(lock.parent)
    code, seconds, errors = stop(process, signal.SIGTERM)
    assert code == 130 and seconds < soon_s(), f"{seconds} s: {errors}"
    assert "Traceback" not in errors
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert not lock.parent.exists() and not ray_processes(lock.parent)
    stopped_at = shard_files(out)

    process = start("jobs.label", setup.arguments(out, num_actors=2), cwd=ROOT)
    wait_until(lambda: len(shard_files(out)) >= len(stopped_at) + 3, process)
    lock = session_lock(process)
    process.kill()
    process.communicate()
    killed_at = finish(setup, out)
    assert stopped_at.items() <= killed_at.items() and len(killed_at) < NUM_SHARDS
    # Its actors may still write for some seconds: what they leave half-written is no shard, and goes when the run is merged again.
    assert outputs(out) == outputs(undisturbed)

    # Ray's processes notice that their driver is gone; the folder stays until the next start of any driver.
    wait_until(lambda: not ray_processes(lock.parent), timeout_s=180)
    finish(setup, out)
    assert sorted(path.name for path in out.iterdir()) == FINISHED
    assert len(list((out / "shards").iterdir())) == NUM_SHARDS
    if lock.exists():  # a driver of another test may have been the one that removes it
        os.utime(lock, (0, 0))
    from rlabel.cluster.session import _private_folder

    folder, held = _private_folder()
    assert not lock.parent.exists() and folder.exists()
    os.utime(folder / "in-use", (0, 0))
    second, second_held = _private_folder()
    assert folder.exists(), "a folder in use is nobody else's to remove"
    for made, file in ((folder, held), (second, second_held)):
        file.close()
        shutil.rmtree(made)


def test_two_ray_actors_in_another_folder_with_relative_paths_give_the_same_bytes(
    setup, undisturbed, local_ray, monkeypatch
):
    monkeypatch.chdir(setup.folder)
    arguments = setup.arguments(
        "on-ray",
        num_actors=2,
        images="corpus/images",
        regions="corpus/regions.json",
        vocabulary="names.json",
        model="model",
    )
    result = rlabel_here("label", arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["file"] == str(setup.folder / "on-ray" / "labels.json")
    assert outputs(setup.folder / "on-ray") == outputs(undisturbed)


def test_a_finished_run_says_so_and_gives_the_same_files(setup, undisturbed):
    (undisturbed / "labels.json").rename(undisturbed / "before.json")
    shards = shard_files(undisturbed)
    result = rlabel_here("label", setup.arguments(undisturbed))
    assert result.returncode == 0 and f"all {NUM_SHARDS} shards are there already" in result.stderr
    assert (undisturbed / "labels.json").read_bytes() == (undisturbed / "before.json").read_bytes()
    (undisturbed / "before.json").unlink()
    assert shard_files(undisturbed) == shards
    counts = json.loads(result.stdout)
    assert counts["state"] == "done" and counts["regions"] == 2 * NUM_SHARDS


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("threshold", 0.5, "settings.threshold: -1.0 -> 0.5"),
        ("images_per_shard", 3, "settings.images_per_shard: 1 -> 3"),
        ("limit", 2, "settings.limit"),
    ],
)
def test_a_run_is_not_continued_with_other_settings_and_the_field_is_named(setup, undisturbed, name, value, shown):
    before = outputs(undisturbed)
    result = rlabel_here("label", setup.arguments(undisturbed, no_ray=True, **{name: value}))
    assert result.returncode == 2 and shown in result.stderr
    assert outputs(undisturbed) == before


def test_settings_of_where_work_runs_do_not_refuse_a_resume(setup, undisturbed):
    more = {
        "max_attempts": 5,
        "shard_timeout_s": 7,
        "num_actors": 3,
        "heartbeat_s": 1,
        "max_failure_rate": 0.25,
        "double_quantization": True,
    }
    assert rlabel_here("label", setup.arguments(undisturbed, **more)).returncode == 0


def test_a_damaged_shard_is_named_and_made_anew_once_it_is_deleted(setup, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    shard = out / "shards" / "000007.jsonl"
    shard.write_bytes(shard.read_bytes()[:-30])
    result = rlabel_here("label", setup.arguments(out, no_ray=True))
    assert result.returncode == 1 and str(shard) in result.stderr and "rlabel repair" in result.stderr
    shard.unlink()
    finish(setup, out)
    assert outputs(out) == outputs(undisturbed)
