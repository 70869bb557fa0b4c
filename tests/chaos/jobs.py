"""The ways in: `rlabel label`, `python -m jobs.label`, and a Ray job on a loopback head that is stopped in the middle and submitted again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from label_factories import ROOT, shard_files, start, wait_until
from tests.chaos.bench import ended, finished, judge, loopback_ray, prepared, remove_session
from tests.chaos.line import Clock, Line, Options

_STOP_LIMIT_S = 10
_NUM_IMAGES = 60


def entry_points(folder: Path, options: Options) -> Iterator[Line]:
    """Run both commands, without Ray and on a cluster, and stop each by SIGTERM in the middle."""
    setup, undisturbed = prepared(folder, _NUM_IMAGES)
    with loopback_ray() as (_, address):
        on_cluster = {"address": address, "num_actors": 2}
        ways: tuple[tuple[str, str, list[str], dict[str, Any]], ...] = (
            ("rlabel label", "rlabel.cli.main", ["label"], {"no_ray": True}),
            ("python -m jobs.label", "jobs.label", [], {"no_ray": True}),
            ("rlabel label, 2 actors on a cluster", "rlabel.cli.main", ["label"], on_cluster),
        )
        for number, (name, module, words, more) in enumerate(ways):
            out = folder / f"run{number}"
            yield _stopped_and_again(name, module, [*words, *setup.arguments(out, **more)], out, undisturbed)


def _stopped_and_again(name: str, module: str, arguments: list[str], out: Path, undisturbed: Path) -> Line:
    clock = Clock()
    with ended(start(module, arguments, cwd=ROOT)) as process:
        wait_until(lambda: len(shard_files(out)) >= 3, process)
        stopping = Clock()
        process.send_signal(signal.SIGTERM)
        code, errors = finished(process)
    stopped_s, stopped_at = stopping.seconds, len(shard_files(out))
    again, more = finished(start(module, arguments, cwd=ROOT))
    if again != 0:
        return Line(test=name, faults=1, seconds=clock.seconds, ok=False, notes=f"{errors[-200:]} then {more[-300:]}")
    verdict = judge(out, undisturbed)
    return Line(
        test=f"{name}, SIGTERM in the middle, again", faults=1, lost=verdict.lost, duplicated=verdict.duplicated, seconds=clock.seconds,
        ok=verdict.is_same and code == 130 and stopped_s < _STOP_LIMIT_S and stopped_at < _NUM_IMAGES,
        notes=f"{verdict.note}; exit {code} after {stopped_s:g} s",
    )  # fmt: skip


def ray_job(folder: Path, options: Options) -> Iterator[Line]:
    """Submit the job to a head, stop it in the middle, and submit it again."""
    setup, undisturbed = prepared(folder, _NUM_IMAGES)
    clock, out = Clock(), folder / "run"
    working_dir = _checkout(folder / "checkout")
    arguments = setup.arguments(out, num_actors=2)
    with _head(folder) as (address, environment):

        def submit(name: str) -> None:
            _ray_job(
                environment, "submit", "--address", address, "--working-dir", str(working_dir), "--submission-id", name, "--no-wait", "--",
                "python", "-m", "jobs.label", *arguments,
            )  # fmt: skip

        submit("first")
        wait_until(
            lambda: len(shard_files(out)) >= 3 or _state(environment, address, "first") in ("FAILED", "SUCCEEDED")
        )
        stopping = Clock()
        _ray_job(environment, "stop", "--address", address, "--no-wait", "first")
        wait_until(lambda: _state(environment, address, "first") not in ("PENDING", "RUNNING"))
        stopped_s, stopped = stopping.seconds, _state(environment, address, "first")
        said = json.loads((out / "status.json").read_text())["state"]
        at_stop = shard_files(out)
        submit("second")
        wait_until(lambda: _state(environment, address, "second") not in ("PENDING", "RUNNING"))
        again = _state(environment, address, "second")
        log = _ray_job(environment, "logs", "--address", address, "second")
    if again != "SUCCEEDED":
        yield Line(test="ray job submit", faults=1, seconds=clock.seconds, ok=False, notes=f"{again}: {log[-400:]}")
        return
    verdict, after = judge(out, undisturbed), shard_files(out)
    kept = all(after[name] == mark for name, mark in at_stop.items())
    yield Line(
        test="ray job submit, ray job stop in the middle, again", faults=1, lost=verdict.lost, duplicated=verdict.duplicated, seconds=clock.seconds,
        ok=verdict.is_same and stopped == "STOPPED" and stopped_s < _STOP_LIMIT_S and kept and 3 <= len(at_stop) < _NUM_IMAGES,
        notes=f"{verdict.note}; {stopped} after {stopped_s:g} s with {len(at_stop)} of {_NUM_IMAGES} shards, status.json says {said}",
    )  # fmt: skip


def _checkout(folder: Path) -> Path:
    """Return a copy of what a job needs of the checkout; the embedded labeler, which these jobs do not use, is left out."""
    left_out = shutil.ignore_patterns("__pycache__", "embedded")
    for name in ("rlabel", "jobs", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    return folder


@contextmanager
def _head(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a head with a dashboard, on loopback addresses and free ports; give the address of its jobs and the environment to reach it."""
    ray = str(Path(sys.executable).with_name("ray"))
    (folder / "home").mkdir()
    # The jobs are found in their own working folder, not in this checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HOME": str(folder / "home"), "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    temporary = tempfile.mkdtemp(prefix="rl-", dir="/tmp" if os.path.isdir("/tmp") else None)
    ports = _free_ports(5)
    flags = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
    command = [
        ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
        "--num-cpus=4", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={temporary}", "--disable-usage-stats",
        *(f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{ports[1]}"
    with (folder / "head.txt").open("w") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, text=True, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while subprocess.run(
                [ray, "job", "list", "--address", address], env=environment, capture_output=True
            ).returncode:
                assert process.poll() is None and time.monotonic() < end, (folder / "head.txt").read_text()[-1000:]
                time.sleep(0.5)
            yield address, environment
        finally:
            process.terminate()  # `ray start --block` ends its processes
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            remove_session(Path(temporary))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _ray_job(environment: dict[str, str], *words: str) -> str:
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run([ray, "job", *words], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return done.stdout


def _state(environment: dict[str, str], address: str, name: str) -> str:
    """Return a job's state as Ray names it."""
    from urllib.request import urlopen

    with urlopen(f"{address}/api/jobs/{name}", timeout=30) as reply:
        return str(json.load(reply)["status"])


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {"entry_points": entry_points, "ray_job": ray_job}
