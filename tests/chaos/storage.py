"""`python -m tests.chaos.storage [--json] [--images N]`: whole runs on a disk that is full for a while, and on an object store that fails.

One line a test; with --json as the bench wants them. The store is an S3 server on loopback behind a bad network (`s3_factories`), asked with the
settings that a user has.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from unittest import mock

from label_factories import Setup, rlabel_here, shard_files
from rlabel.storage import Store
from s3_factories import BUCKET, Faults, FaultyProxy, reachable, s3_server
from tests.chaos.bench import finished, judge, num_redone, prepared, start_driver
from tests.chaos.line import Clock, Line

_S3_CASES = {
    "S3: no faults": Faults(),
    "S3: 10 % of requests answered 503": Faults(refused=0.1, seed=1),
    "S3: 30 % of requests answered 503": Faults(refused=0.3, seed=2),
    "S3: 10 % of replies lost": Faults(lost=0.1, seed=3),
    "S3: 5 % of requests stalled for 5 s": Faults(stalled=0.05, stall_s=5.0, seed=4),
    "S3: 10 % 503, 10 % lost, 2 % stalled for 5 s": Faults(refused=0.1, lost=0.1, stalled=0.02, seed=5),
}
# What a run may take beyond three times that without faults: a wait a fault, and what has to be asked again; and the stalls themselves.
_MAX_S_A_FAULT = 2.0
_FREE_AT_FIRST = 24 * 1024


def s3_runs(setup: Setup, undisturbed: Path, folder: Path) -> Iterator[Line]:
    """Label from a store into it, through each kind of trouble."""
    without_faults_s = 0.0
    with s3_server() as address:
        for number, (name, faults) in enumerate(_S3_CASES.items()):
            proxy, place = FaultyProxy(*address, faults), f"s3://{BUCKET}/{number}"
            try:
                with reachable(f"http://{address[0]}:{address[1]}"):
                    corpus = uploaded(setup, f"{place}/corpus")
                with reachable(proxy.url):
                    clock = Clock()
                    done = rlabel_here("label", setup.arguments(f"{place}/run", no_ray=True, **corpus))
                    seconds = clock.seconds
            finally:
                proxy.close()
            with reachable(f"http://{address[0]}:{address[1]}"):
                verdict = (
                    judge(downloaded(f"{place}/run", folder / f"s3-{number}"), undisturbed)
                    if not done.returncode
                    else None
                )
            without_faults_s = without_faults_s or seconds
            bound_s = (
                without_faults_s * 3 + _MAX_S_A_FAULT * proxy.num_faults + faults.stall_s * proxy.counts["stalled"]
            )
            note = f"exit code {done.returncode}: {done.stderr[-200:]}" if verdict is None else verdict.note
            yield Line(
                test=name,
                faults=proxy.num_faults,
                lost=-1 if verdict is None else verdict.lost,
                duplicated=-1 if verdict is None else verdict.duplicated,
                redone=0,
                seconds=seconds,
                ok=verdict is not None and verdict.is_same and seconds <= bound_s,
                notes=f"{note}; {proxy.counts.total()} requests, {without_faults_s} s without faults, bound {bound_s:.0f} s",
            )


def uploaded(setup: Setup, place: str) -> dict[str, str]:
    """Copy the corpus to a place that is reachable now; return the options that name it."""
    store = Store.open(place)
    store.put("regions.json", (setup.corpus / "regions.json").read_bytes())
    for path in (setup.corpus / "images").iterdir():
        store.put(f"images/{path.name}", path.read_bytes())
    return {"images": f"{place}/images", "regions": f"{place}/regions.json"}


def downloaded(place: str, folder: Path) -> Path:
    """Copy a run's files from a place that is reachable now."""
    store, out = Store.open(place), folder
    (out / "shards").mkdir(parents=True)
    for name in [*store.list(), *(f"shards/{name}" for name in store.list("shards"))]:
        if name != "shards":
            (out / name).write_bytes(store.read(name))
    return out


def full_tmpfs(setup: Setup, undisturbed: Path, folder: Path) -> Iterator[Line]:
    """A real filesystem that is too small, then is made larger. Says so and gives nothing where mounting is not allowed."""
    disk, clock = folder / "disk", Clock()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        print("chaos: full tmpfs: not run: mounting is not allowed here", file=sys.stderr)
        return
    try:
        ballast, out = disk / "ballast", disk / "run"
        ballast.write_bytes(bytes(2**20 - _FREE_AT_FIRST))
        arguments = setup.arguments(out, no_ray=True)
        code, said = finished(start_driver(arguments))
        kept = shard_files(out)
        is_whole = all(path.read_bytes().rstrip().endswith(b"}") for path in (out / "shards").glob("*.jsonl"))
        ballast.unlink()
        again, said_again = finished(start_driver(arguments))
        verdict = judge(out, undisturbed) if not again else None
        stays = kept.items() <= shard_files(out).items()
        ok = (
            (code, again, is_whole, stays) == (1, 0, True, True)
            and "disk full" in said
            and verdict is not None
            and verdict.is_same
        )
        redone = num_redone(out, len(shard_files(out)))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    note = (
        f"{said[-300:]} {said_again[-300:]}"
        if not ok or verdict is None
        else f"{verdict.note}; stopped after {len(kept)} shards, exit code 1"
    )
    yield Line(
        test="disk full (tmpfs), then space",
        faults=1,
        lost=-1 if verdict is None else verdict.lost,
        duplicated=-1 if verdict is None else verdict.duplicated,
        redone=redone,
        seconds=clock.seconds,
        ok=ok,
        notes=note,
    )


@contextmanager
def no_space_after(num_writes: int) -> Iterator[None]:
    """Let this process's synced writes fail as on a full disk, after the first ones."""
    sync, left = os.fsync, [num_writes]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with mock.patch("os.fsync", full):
        yield


def full_now_and_then(setup: Setup, undisturbed: Path, folder: Path) -> Iterator[Line]:
    """A disk that is full again after every few writes: the same command as often as it takes."""
    out, clock, num_stops, is_told = folder / "full", Clock(), 0, True
    while True:
        with no_space_after(9):
            done = rlabel_here("label", setup.arguments(out, no_ray=True))
        if done.returncode == 0 or num_stops > 100:
            break
        num_stops += 1
        is_told = (
            is_told
            and done.returncode == 1
            and "disk full" in done.stderr
            and "run the same command again" in done.stderr
        )
        is_told = is_told and not [path for path in out.rglob("*") if path.name.startswith(".rlabel-tmp-")]
    verdict = judge(out, undisturbed)
    yield Line(
        test="disk full again and again (made up)",
        faults=num_stops,
        lost=verdict.lost,
        duplicated=verdict.duplicated,
        seconds=clock.seconds,
        ok=verdict.is_same and is_told and num_stops > 0,
        notes=verdict.note,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storage", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--images", type=int, default=12, help="size of the corpus; a shard each")
    given = parser.parse_args()
    is_ok = True
    with tempfile.TemporaryDirectory(prefix="rlabel-chaos-") as name:
        folder = Path(name)
        setup, undisturbed = prepared(folder, given.images)
        for case in (full_tmpfs, full_now_and_then, s3_runs):
            for line in case(setup, undisturbed, folder):
                is_ok = is_ok and line.ok
                print(json.dumps(asdict(line)) if given.json else f"{'ok ' if line.ok else 'NOT'} {line}", flush=True)
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
