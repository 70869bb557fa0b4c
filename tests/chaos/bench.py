"""What the cases share: the line each test ends with, marks of work that was begun, and the comparison with an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_factories import ROOT, Setup, outputs, rlabel_here, save_model, start
from rlabel.cluster.session import _remove as remove_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A finished run beside the undisturbed one. differing: names of files that are not the same byte for byte."""

    lost: int
    duplicated: int
    differing: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        return not (self.lost or self.duplicated or self.differing)

    @property
    def note(self) -> str:
        return "identical bytes" if self.is_same else f"differ: {', '.join(self.differing[:4])}"


def told(out: Path) -> Counter[Any]:
    """Return how often each region id stands in what a run ends with."""
    seen: Counter[Any] = Counter(
        row["attributes"]["region_id"] for row in json.loads((out / "labels.json").read_bytes())["annotations"]
    )
    for name in ("abstained.jsonl", "failures.jsonl"):
        seen.update(json.loads(line)["region_id"] for line in (out / name).read_bytes().splitlines())
    return seen


def judge(out: Path, undisturbed: Path) -> Verdict:
    """Return what a finished run lost or doubled, and how its files differ from the undisturbed run's."""
    here, there = told(out), told(undisturbed)
    mine, its = outputs(out), outputs(undisturbed)
    differing = tuple(sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)))
    return Verdict(lost=(there - here).total(), duplicated=(here - there).total(), differing=differing)


def mark(out: str | Path, index: int) -> None:
    """Note that a shard of a run has begun to be labeled; in a folder beside the run, by whatever process."""
    folder = Path(f"{out}.marks")
    folder.mkdir(exist_ok=True)
    (folder / f"{index}.{uuid.uuid4().hex}").touch()


def num_redone(out: Path, num_shards: int) -> int:
    """Return how many shards were begun beyond once each."""
    return len(list(Path(f"{out}.marks").iterdir())) - num_shards


def prepared(folder: Path, num_images: int) -> tuple[Setup, Path]:
    """Return a small corpus with a tiny model, one image a shard, and the finished run that all others are compared with."""
    setup = Setup(folder, save_model(folder / "model"), num_images)
    out = folder / "undisturbed"
    result = rlabel_here("label", setup.arguments(out, no_ray=True))
    assert result.returncode == 0, result.stderr
    assert told(out).total() == 2 * num_images
    return setup, out


def start_driver(arguments: list[str], worker: str = "counting") -> subprocess.Popen[str]:
    """Start `rlabel label` with a worker of this bench."""
    return start("tests.chaos.driver", [worker, *arguments], cwd=ROOT)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Give a process and kill its group at the end, whatever happens; Ray's own processes end by themselves when their driver is gone."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(process: subprocess.Popen[str], timeout_s: float = 300) -> tuple[int, str]:
    """Return a process's exit code and what it said on stderr."""
    with ended(process):
        _, errors = process.communicate(timeout=timeout_s)
    return process.returncode, errors


@contextmanager
def loopback_ray(num_cpus: int = 4, num_gpus: int = 0, dashboard: bool = False) -> Iterator[tuple[Any, str]]:
    """Give `ray` connected to a head of its own, and the address by which other drivers reach it."""
    import ray

    folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp" if os.path.isdir("/tmp") else None)
    try:
        ray.init(
            address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=dashboard, dashboard_host="127.0.0.1",
            object_store_memory=256 * 2**20, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip
        yield ray, ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        remove_session(Path(folder))
