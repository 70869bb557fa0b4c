"""Cases that live elsewhere and are run from here: storage, hostile files, training, and the collection of odd inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.line import ROOT, Clock, Line, Options, line_of

_TRAINING = (
    ("training: worker kill -9", "tests/test_train_ray.py::test_one_worker_that_is_killed_once_ends_with_the_weights_of_the_plain_loop",
     "goes on from the last checkpoint to the weights of the plain loop, bit for bit"),
    ("training: driver kill -9",
     "tests/test_train_ray.py::test_killed_driver_goes_on_with_the_same_command_to_the_weights_of_an_undisturbed_run",
     "the same command goes on to the weights of an undisturbed run, bit for bit"),
    ("training: other settings under the old name",
     "tests/test_train_cli.py::test_trained_folder_is_a_model_and_the_same_command_again_says_that_it_is_done",
     "refused, the field named"),
)  # fmt: skip
_ODD = ("tests/test_things_odd.py", "tests/test_things_odd_label.py")


def storage(folder: Path, options: Options) -> Iterator[Line]:
    """Full disks, and an object store that fails."""
    yield from _relayed("tests.chaos.storage", "--json")


def fuzz(folder: Path, options: Options) -> Iterator[Line]:
    """Fuzzed COCO files and images."""
    yield from _relayed("tests.chaos.fuzz", "--files", str(options.files), "--seconds", str(options.fuzz_s))


def training(folder: Path, options: Options) -> Iterator[Line]:
    """Training whose worker or driver is killed, or which meets the folder of another."""
    for name, test, note in _TRAINING:
        yield _by_pytest(name, [test], note)


def odd(folder: Path, options: Options) -> Iterator[Line]:
    """The collection of odd inputs, where RLABEL_CORPUS names the folder that holds it."""
    if not (Path(os.environ.get("RLABEL_CORPUS", "not set")) / "things-odd").is_dir():
        print("chaos: odd: not run: RLABEL_CORPUS does not name a folder with things-odd", file=sys.stderr)
        return
    yield _by_pytest("things-odd, as its README.json expects", list(_ODD), "every region ends as expected")


def _by_pytest(name: str, tests: list[str], note: str) -> Line:
    clock = Clock()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests], cwd=ROOT, capture_output=True, text=True
    )
    summary = (done.stdout.strip().splitlines() or ["nothing said"])[-1]
    ok = done.returncode == 0 and "skipped" not in summary
    return Line(test=name, faults=1, seconds=clock.seconds, ok=ok, notes=note if ok else done.stdout[-400:])


def _relayed(module: str, *arguments: str) -> Iterator[Line]:
    """Give the lines that another bench prints."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if (line := line_of(text)) is not None:
                yield line
    if process.returncode != 0:
        yield Line(test=module, faults=0, seconds=0, ok=False, notes=f"ended with {process.returncode}")


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {
    "storage": storage,
    "fuzz": fuzz,
    "training": training,
    "odd": odd,
}
