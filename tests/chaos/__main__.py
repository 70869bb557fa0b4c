"""`python -m tests.chaos [CASE ...]`: run cases, each in a process of its own, print a JSON line a test; exit 1 when one is not as it should be."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path

import psutil

from tests.chaos import report
from tests.chaos.line import ROOT, Line, Options, line_of

# Module and limit in seconds of each case, in the order of the page. A loaded machine needs many times what an idle one does.
CASES = {
    "driver_kill": ("drivers", 3600),
    "driver_kill_ray": ("drivers", 3600),
    "two_drivers": ("drivers", 900),
    "changed_settings": ("drivers", 900),
    "flipped_bit": ("drivers", 900),
    "actor_kill": ("actors", 1200),
    "killer_image": ("actors", 900),
    "any_order": ("actors", 900),
    "raylet_spare": ("actors", 900),
    "raylet_alone": ("actors", 900),
    "entry_points": ("jobs", 900),
    "ray_job": ("jobs", 900),
    "storage": ("others", 1800),
    "storage_ray": ("storage_ray", 900),
    "fuzz": ("others", 3600),
    "odd": ("others", 900),
    "training": ("others", 1800),
    "million": ("million", 3600),
}
SMALL = {"points": 3, "regions": 20_000, "files": 200, "fuzz_s": 5}
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PAGE = ROOT / "RELIABILITY.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names; all of them if left out")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--small", action="store_true", help=f"each of them small: {SMALL}")
    parser.add_argument("--report", action="store_true", help="keep the lines, and write RELIABILITY.md anew")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="in this process, and no report: what each case's own process is called with",
    )
    for field in fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=None)
    given = parser.parse_args()
    unknown = set(given.cases) - CASES.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    if given.list:
        print("\n".join(CASES))
        return 0
    sizes = {
        name: value for name in (field.name for field in fields(Options)) if (value := getattr(given, name)) is not None
    }
    sizes = {**(SMALL if given.small else {}), **sizes}
    if given.alone:
        return _alone(given.cases, Options(**sizes))
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in sorted(sizes.items()))
    adopt_orphans()
    is_well = True
    for case in given.cases or CASES:
        lines = []
        command = [sys.executable, "-m", "tests.chaos", "--alone", case, *flags.split()]
        for line in run_case(case, command, CASES[case][1]):
            lines.append(line)
            print(json.dumps(asdict(line), ensure_ascii=False), flush=True)
        is_well &= all(line.ok for line in lines)
        if given.report and lines:
            report.keep(case, flags, [asdict(line) for line in lines])
            PAGE.write_text(report.page(report.read(), CASES), encoding="utf-8")
    return 0 if is_well else 1


def _alone(cases: list[str], options: Options) -> int:
    """Run cases in this process, their lines on stdout and all else on stderr."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        for name in cases:
            run: Callable[[Path, Options], Iterator[Line]] = importlib.import_module(
                f"tests.chaos.{CASES[name][0]}"
            ).CASES[name]
            with tempfile.TemporaryDirectory(prefix="rlabel-chaos-", ignore_cleanup_errors=True) as folder:
                for line in run(Path(folder), options):
                    print(json.dumps(asdict(line), ensure_ascii=False), file=stdout, flush=True)
    return 0


def run_case(case: str, command: list[str], limit_s: float) -> Iterator[Line]:
    """Give the lines that a case's own process prints; one more where that fails or takes too long. All that it started is ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    num_lines = 0
    try:
        for text in _lines_until(process, began + limit_s):
            if (line := line_of(text)) is not None:
                num_lines += 1
                yield line
        late = time.monotonic() - began >= limit_s
        code = None if late else process.wait()
    finally:
        _end_descendants()
    if late or code:
        notes = f"no end within {limit_s:g} s" if late else f"ended with {code} after {num_lines} lines"
        yield Line(test=case, faults=0, seconds=round(time.monotonic() - began, 1), ok=False, notes=notes)


def _lines_until(process: subprocess.Popen[str], end: float) -> Iterator[str]:
    """Give the lines that a process prints until it ends or the time is over."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if selector.select(timeout=min(left, 1.0)):
                text = process.stdout.readline()
                if not text:
                    return
                yield text
            elif process.poll() is not None:
                return  # ended, though something that it started still holds its stdout


def adopt_orphans() -> None:
    """Become the parent of processes whose parents die, so that none of them can be lost; and end them when this one is told to end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))


def _end_descendants() -> None:
    """End all that this process or its children started and that still runs: first politely, which Ray's processes need to clean up."""
    for ending in (psutil.Process.terminate, psutil.Process.kill):
        found = psutil.Process().children(recursive=True)
        for one in found:
            try:
                ending(one)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
