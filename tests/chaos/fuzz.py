"""Fuzzed corpus files and pictures, each read in a child process with bounded memory and time; then a fuzzer guided by coverage.

    python -m tests.chaos.fuzz --files 10000 --seconds 300      what the bench runs
    python -m tests.chaos.fuzz --only coco --first 4711 --files 1    one input again

An input is well when it ends as outcomes, one a region, or as one of rlabel's own errors: within 5 s, within the memory, with no file opened
outside the image folder. Prints a JSON line a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.fuzz_guided import GUIDED, guided, guided_child
from tests.chaos.fuzz_inputs import NAMES, corpus_file, picture

ROOT = Path(__file__).parents[2]
LIMIT_S = 5.0
MEMORY = 2 << 30
# Of starting Python and its libraries on a busy machine; no input is at work then.
_START_S = 120.0
_MOST_BAD = 20  # then something is wrong with all of them


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="corpus files, and as many pictures")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the guided fuzzer; 0: leave it out")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", choices=("coco", "images", *GUIDED))
    parser.add_argument("--child", choices=("coco", "images", *GUIDED), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child in GUIDED:
        return guided_child(given.child, given.seconds, given.folder, MEMORY, LIMIT_S)
    if given.child:
        return child(given.child, given.first, given.files, given.folder)
    lines: list[dict[str, Any]] = []
    for kind in ("coco", "images"):
        if given.only in (None, kind):
            lines.append(_told(fuzzed(kind, given.first, given.files)))
    if given.seconds > 0:
        for kind in GUIDED:
            if given.only in (None, kind):
                lines.append(_told(_guided(kind, given.seconds / (len(GUIDED) if given.only is None else 1))))
    return 0 if all(line["ok"] for line in lines) else 1


def _told(line: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(line), flush=True)
    return line


def _line(
    test: str, faults: int, began: float, lost: int, duplicated: int, bad: list[str], notes: str
) -> dict[str, Any]:
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return {
        "test": test, "faults": faults, "lost": lost, "duplicated": duplicated, "redone": 0, "seconds": round(time.monotonic() - began, 1),
        "ok": not (bad or lost or duplicated), "notes": shown or notes,
    }  # fmt: skip


def _guided(kind: str, seconds: float) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlabel-fuzz-") as folder:
        process = _child(
            ("--child", kind, "--seconds", str(seconds), "--folder", folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        num_inputs, bad, notes = guided(process, seconds + _START_S, Path(folder))
    return _line(
        f"fuzz_{kind.replace('-', '_')}", num_inputs, began, 0, 0, bad, f"{notes}; memory cap {MEMORY >> 20} MiB"
    )


def fuzzed(kind: str, first: int, num_files: int) -> dict[str, Any]:
    """Return the line of so many inputs. A child that dies or hangs costs its input, which is named by its number."""
    began = time.monotonic()
    bad: list[str] = []
    sums = {"lost": 0, "duplicated": 0, "outcomes": 0, "refused": 0, "died": 0}
    longest_s, at, end = 0.0, first, first + num_files
    with tempfile.TemporaryDirectory(prefix="rlabel-fuzz-") as folder:
        while at < end and len(bad) < _MOST_BAD:
            arguments = ("--child", kind, "--first", str(at), "--files", str(end - at), "--folder", folder)
            process = _child(arguments, stdout=subprocess.PIPE)
            for words, waited_s in _answers(process):
                if words is None:
                    cause = f"no answer in {LIMIT_S:g} s" if process.returncode == -9 else f"exit {process.returncode}"
                    bad.append(f"input {at}: the process ended, {cause}")
                    at += 1
                    break
                found = json.loads(words)
                if "bad" in found:
                    bad.append(f"input {at}: {found['bad']}")
                for name in sums:
                    sums[name] += found.get(name, 0)
                longest_s = max(longest_s, waited_s)
                at += 1
                if at == end:
                    break
            process.kill()
            process.wait()
    notes = f"inputs {first} to {end - 1}; longest {longest_s:.2f} s; memory cap {MEMORY >> 20} MiB; {sums['outcomes']} outcomes, {sums['refused']} refused"
    if kind == "images":
        notes += f", {sums['died']} decoder processes lost"
    return _line(f"fuzz_{kind}", num_files, began, sums["lost"], sums["duplicated"], bad, notes)


def _child(arguments: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.fuzz", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        **options,
    )


def _answers(process: subprocess.Popen[bytes]) -> Iterator[tuple[bytes | None, float]]:
    """Yield each line of a child, and how long it took; None where it ended or had to be ended."""
    assert process.stdout is not None
    limit_s, waiting, since = _START_S, b"", time.monotonic()
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, since + limit_s - time.monotonic()))
        more = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not more:
            if not ready:
                process.kill()
            process.wait()
            yield None, time.monotonic() - since
            return
        waiting += more
        *whole, waiting = waiting.split(b"\n")
        for words in whole:
            if words != b"ready":
                yield words, time.monotonic() - since
            limit_s, since = LIMIT_S, time.monotonic()


def child(kind: str, first: int, num_files: int, folder: Path) -> int:
    """Read the inputs one by one and print what became of each."""
    read = _corpus_reader(folder) if kind == "coco" else _picture_reader(folder)
    _bound(MEMORY)
    print("ready", flush=True)
    for seed in range(first, first + num_files):
        try:
            found = read(seed)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = next((frame for frame in reversed(frames) if "rlabel" in frame.filename), frames[-1])
            found = {
                "bad": f"{type(error).__name__}: {str(error)[:120]} ({Path(place.filename).name}, line {place.lineno})"
            }
        print(json.dumps(found), flush=True)
    return 0


def _bound(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _corpus_reader(folder: Path) -> Callable[[int], dict[str, Any]]:
    """Return what reads corpus file number n as a run does: the file, then the picture and the mask of every region."""
    from PIL import Image

    from rlabel.corpus.coco import read_corpus
    from rlabel.corpus.inputs import prepare_image, stray_failure
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.sharding import plan_contents, plan_shards
    from rlabel.corpus.validate import validate_corpus
    from rlabel.errors import RlabelError
    from rlabel.storage import Store

    root = folder / "images"
    if not root.exists():
        (root / "sub").mkdir(parents=True)
        for name in NAMES:
            Image.new("RGB", (9, 8), "red").save(root / name)
        Image.new("RGB", (9, 8), "blue").save(folder / "outside.png")
        (root / "out.png").symlink_to(folder / "outside.png")
        os.mkfifo(root / "pipe.png")
        (root / "folder.png").mkdir()
    store, limits, file = Store.open(root), Limits(), folder / "corpus.json"
    outside = _watch_opens(root, folder)

    def read(seed: int) -> dict[str, Any]:
        file.write_bytes(corpus_file(seed, NAMES))
        try:
            with read_corpus(file) as corpus:
                planned = [shard.content_sha256 for shard in plan_contents(corpus, 16, 512)]
                regions, keys = 0, []
                for index, shard in enumerate(plan_shards(corpus, 16, 512)):
                    assert shard.content_sha256 == planned[index], "another plan"
                    regions += shard.num_regions
                    keys += [stray_failure(region).region.key for region in shard.stray_regions]
                    for record in shard.images:
                        image = prepare_image(store, record, limits)
                        keys += [region.region.key for region in image.regions]
                        keys += [failure.region.key for failure in image.failures]
                        json.dumps([failure.reason for failure in image.failures]).encode()
                total = corpus.num_regions
            for problem in validate_corpus(root, file, False):
                json.dumps([problem.where, problem.what])
        except RlabelError as error:
            json.dumps(str(error))
            return {"refused": 1} | _opened(outside)
        lost, duplicated = total - len(set(keys)), len(keys) - len(set(keys))
        return {"outcomes": len(keys), "lost": lost, "duplicated": duplicated} | _opened(outside)

    return read


def _watch_opens(root: Path, folder: Path) -> list[str]:
    """Return a list of the files that are opened from now on and have no business to be: Python tells of each."""
    own = (
        str(root),
        str(folder / "corpus.json"),
        sys.prefix,
        sys.base_prefix,
        str(ROOT / "rlabel"),
        str(ROOT / "schemas"),
        str(ROOT / "tests"),
    )
    opened: list[str] = []
    tempfile.gettempdir()  # tries folders by opening files in them, once

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            real = os.path.realpath(os.fsdecode(arguments[0]))
            if not real.startswith(own) and "rlabel-corpus-" not in real:
                opened.append(real)

    sys.addaudithook(watch)
    return opened


def _opened(outside: list[str]) -> dict[str, str]:
    found = {"bad": f"it opened {outside[0]}"} if outside else {}
    outside.clear()
    return found


def _picture_reader(folder: Path) -> Callable[[int], dict[str, Any]]:
    """Return what decodes picture number n as a run does, in a decoder process."""
    from rlabel.corpus import isolation
    from rlabel.corpus.images import BadImage, open_picture
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.picture import LargePicture, Sight
    from rlabel.storage import Store

    (folder / "one").mkdir(exist_ok=True)
    store, decoder = Store.open(folder / "one"), isolation.IsolatedDecoders()
    decoder.check()
    limits, sight = Limits(max_pixels=20_000_000), Sight(whole_px=224, details=True)

    def read(seed: int) -> dict[str, Any]:
        (folder / "one" / "a").write_bytes(picture(seed))
        try:
            found = open_picture(store, "a", limits, sight, decoder)
        except BadImage as error:
            died = "did not survive" in str(error)
            return {"refused": 1, "died": int(died)} | ({"bad": str(error)} if "CPU" in str(error) else {})
        assert isinstance(found, LargePicture) or (found.ndim == 3 and found.shape[2] == 3), "no RGB picture"
        return {"outcomes": 1}

    return read


if __name__ == "__main__":
    sys.exit(main())
