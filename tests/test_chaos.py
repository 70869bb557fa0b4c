"""A short part of the chaos bench (tests/chaos), and what the bench itself must find: runs that lost, doubled or changed something, and stray processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from label_factories import ROOT, shard_files, wait_until
from pool_factories import Place, begin, in_process, merged, sent_to_workers, shards
from rlabel.run.merge import ABSTAINED
from tests.chaos import report
from tests.chaos.bench import judge
from tests.chaos.line import Line, line_of

pytestmark = pytest.mark.timeout(400)
NUM_SHARDS = 12
# Labels a run in this process, slowly; as a driver does without Ray, but without a model.
DRIVER = """
import sys
from pathlib import Path
from pool_factories import in_process
in_process(Path(sys.argv[1]), {image: "sleeps 0.02" for image in range(1, 100)}, num_shards=12)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "in-process"
    in_process(folder, num_shards=NUM_SHARDS)
    return folder / "run"


def start(folder: Path) -> subprocess.Popen[bytes]:
    path = f"{ROOT}:{ROOT / 'tests'}"
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], env={**os.environ, "PYTHONPATH": path})


def finish(folder: Path) -> None:
    """Go on with a run in this process, and merge it."""
    place = Place(None, folder, NUM_SHARDS)
    from pool_factories import Worker
    from rlabel.run.local import label_in_process
    from rlabel.run.progress import RunProgress

    label_in_process(place.run, shards(NUM_SHARDS), lambda: Worker(place.run, str(folder)), RunProgress(place.run, 1e9))
    merged(place.run)


def test_driver_killed_at_a_seeded_point_loses_nothing_and_redoes_what_was_in_flight(undisturbed, tmp_path):
    dice = random.Random(0)
    folder = tmp_path / "place"
    process = start(folder)
    wait_until(lambda: len(shard_files(folder / "run")) >= dice.randrange(2, 6))
    time.sleep(dice.uniform(0, 0.05))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(shard_files(folder / "run")) < NUM_SHARDS
    finish(folder)
    assert judge(folder / "run", undisturbed).is_same
    assert len(list((folder / "calls").iterdir())) - NUM_SHARDS <= 2


def test_zombie_that_commits_and_merges_after_another_has_finished_changes_nothing(undisturbed, tmp_path):
    folder = tmp_path / "place"
    zombie = start(folder)
    try:
        wait_until(lambda: len(shard_files(folder / "run")) >= 3)
        zombie.send_signal(signal.SIGSTOP)
        finish(folder)
        before = shard_files(folder / "run")
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(timeout=100) == 0
    finally:
        zombie.kill()
        zombie.wait()
    assert shard_files(folder / "run") == before and judge(folder / "run", undisturbed).is_same


def test_completion_out_of_order_gives_the_same_bytes(undisturbed, local_ray, tmp_path):
    sent_to_workers(local_ray)
    place = Place(local_ray, tmp_path, NUM_SHARDS)
    order: list[int] = []
    # Shards 0 and 3 take longer than all that another actor does meanwhile.
    place.label(
        {1: "waits for 2", 3: "waits for 2", 7: "sleeps 0.3"}, num_actors=2,
        on_tick=lambda: order.extend(sorted(place.run.committed() - set(order))),
    )  # fmt: skip
    merged(place.run)
    assert order != sorted(order) and judge(place.folder / "run", undisturbed).is_same


def test_bench_finds_what_a_run_lost_doubled_or_changed(undisturbed, tmp_path):
    run = begin(tmp_path / "run", NUM_SHARDS)
    finish(tmp_path)
    assert judge(tmp_path / "run", undisturbed).is_same
    lines = (tmp_path / "run" / ABSTAINED).read_bytes().splitlines(keepends=True)
    run.store.put(ABSTAINED, b"".join([*lines[1:], lines[1], lines[1]]))
    found = judge(tmp_path / "run", undisturbed)
    assert (found.lost, found.duplicated, found.differing) == (1, 2, (ABSTAINED,))
    assert not found.is_same and found.note == f"differ: {ABSTAINED}"


def test_page_holds_the_newest_line_of_each_test_and_names_what_was_not_run(tmp_path):
    path = tmp_path / "results.jsonl"
    line = {
        "test": "a | b",
        "faults": 3,
        "lost": 0,
        "duplicated": 0,
        "redone": None,
        "seconds": 2.0,
        "ok": True,
        "notes": "x|y\nz",
    }
    report.keep("one", "", [{**line, "ok": False}], path)
    report.keep("two", " --points 3", [{**line, "test": "c"}], path)
    report.keep("one", "", [line], path)
    text = report.page(report.read(path), ["two", "one", "three"])
    _, _, *rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert (
        len(rows) == 2
        and rows[1].startswith("| a / b |")
        and rows[0].startswith("| c | 3 | 0 | 0 | - | 2 | yes | x/y z | 20")
    )
    assert "**NO**" not in text and "`python -m tests.chaos two --points 3`" in text and "Not run: three." in text
    assert line_of(json.dumps(line)) == Line(**line) and line_of("(raylet) a word") is None and line_of("[1]") is None


def test_case_that_fails_or_hangs_is_a_line_that_is_not_ok_and_leaves_no_process(tmp_path):
    # An orphan in a session of its own, as Ray's processes are; then a failure, or no end.
    case = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '1000'], start_new_session=True); "
        "open(sys.argv[1], 'a').write(f'{p.pid}\\\\n'); print('no line'); time.sleep(float(sys.argv[2])); sys.exit(3)"
    )
    code = f"""
import sys
from tests.chaos.__main__ import adopt_orphans, run_case
adopt_orphans()
for seconds, limit_s in ((0, 60), (1000, 1)):
    for line in run_case("case", [sys.executable, "-c", "{case}", sys.argv[1], str(seconds)], limit_s):
        print(line.ok, line.notes)
"""
    pids = tmp_path / "pids"
    done = subprocess.run(
        [sys.executable, "-c", code, str(pids)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.splitlines() == ["False ended with 3 after 0 lines", "False no end within 1 s"], done.stderr
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split())
