"""A second process beside the one that asks: the same results, in order, with it, without it and where it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlabel.errors import InputError, RunError
from rlabel.run import beside as module
from rlabel.run.beside import Beside, apart
from rlabel.run.directory import RunDirectory
from rlabel.run.job import embedder_name
from rlabel.run.merge import _lots
from rlabel.run.merge_shard import SeenShard, ShardToRows
from rlabel.run.resnap import _TextsOf
from rlabel.run.snap_lines import distinct_texts_of
from rlabel.storage import Store
from rlabel.vocabulary.snapping import Snapper
from run_factories import committed_run, everything, shard_result
from snap_factories import BEASTS, AxisEmbedder, results_of, snap_all

BODIES = [b'{"kind":"caption","text":"a dog %d"}\n' % (number % 7) for number in range(40)]
ITEMS = [(number, body * (1 + number % 3)) for number, body in enumerate(BODIES)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_REGIONS", 0)
    monkeypatch.setattr(module, "_num_cores", lambda: 2)


def alone() -> list[tuple[int, list[str]]]:
    return [(key, distinct_texts_of(body)) for key, body in ITEMS]


def test_results_come_in_order_with_and_without_a_process(always: None) -> None:
    with Beside(1) as two:
        assert two._child is not None
        assert list(two.map(distinct_texts_of, ITEMS)) == alone()
    assert two._child.returncode is not None
    with Beside(-1) as one:
        assert one._child is None
        assert list(one.map(distinct_texts_of, ITEMS)) == alone()


def test_a_chain_yields_the_same_with_and_without_a_process(always: None, tmp_path: Path) -> None:
    run = committed_run(tmp_path, [shard_result(index) for index in range(10)])
    expected = [(index, distinct_texts_of(run.read_body(index)[0])) for index in range(10)]
    got = []
    for least in (1, -1):
        with Beside(least) as beside:
            assert beside.is_there == (least == 1)
            got.append(list(beside.chain(_TextsOf(run), range(10), 3)))
    assert got == [expected, expected]


def test_a_store_that_lives_in_this_process_keeps_the_work_in_it(always: None, tmp_path: Path) -> None:
    with Beside(1, Store.open(tmp_path), Store.open("memory://beside-test")) as beside:
        assert not beside.is_there


def test_answers_larger_than_a_pipe_come_while_more_is_asked(always: None) -> None:
    bodies = [(number, b'{"kind":"caption","text":"%s"}\n' % (b"long " * 600_000)) for number in range(6)]
    with Beside(1) as beside:
        assert beside.is_there
        for (key, texts), (number, body) in zip(beside.map(distinct_texts_of, bodies), bodies, strict=True):
            assert key == number and texts == distinct_texts_of(body)


def test_a_process_that_is_killed_changes_nothing(always: None) -> None:
    def items(pid: int) -> Iterator[tuple[int, bytes]]:
        for number, item in enumerate(ITEMS):
            if number == 5:
                os.kill(pid, signal.SIGKILL)
            yield item

    with Beside(1) as beside:
        assert beside._child is not None
        assert list(beside.map(distinct_texts_of, items(beside._child.pid))) == alone()


def test_an_error_is_raised_at_its_place_and_the_process_goes_on(always: None) -> None:
    bad = [*ITEMS[:3], (3, b"no record\n"), *ITEMS[4:]]
    with Beside(1) as beside:
        got = []
        with pytest.raises(ValueError):
            for item in beside.map(distinct_texts_of, bad):
                got.append(item)
        assert got == alone()[:3]
        assert list(beside.map(distinct_texts_of, ITEMS)) == alone()


def test_two_kinds_of_work_in_turn(always: None) -> None:
    to_rows = ShardToRows(run_id="r")
    rows = [(key, (b"", key)) for key, _ in ITEMS]
    with Beside(1) as beside:
        both = zip(beside.map(distinct_texts_of, ITEMS), beside.map(to_rows, rows), strict=True)
        for (key, texts), (other, made) in both:
            assert (key, texts) == alone()[key] and (other, made.first_new_id) == (key, key)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.0, 0.0), (0.7, 0.7), (0.0, 1.0)])
def test_a_merge_makes_the_same_bytes_with_it(
    shares: tuple[float, float], tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [shard_result(index, share_with_ids=shares[index % 2]) for index in range(12)]
    files = []
    for least in (0, 1_000_000):
        monkeypatch.setattr(module, "LEAST_REGIONS", least)
        folder = tmp_path / str(least)
        committed_run(folder, results).merge(results_files=True)
        files.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert files[0] == files[1] and len(files[0]) >= 6


def test_answers_are_snapped_to_the_same_bytes_with_it(
    tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = committed_run(tmp_path / "old", [everything(index) for index in range(20)])
    made = []
    for least in (0, 1_000_000):
        monkeypatch.setattr(module, "LEAST_REGIONS", least)
        folder = tmp_path / str(least)
        snap_all(source, folder, Snapper(BEASTS, AxisEmbedder("feline", "cat", "thing"))).merge()
        made.append(results_of(folder))
    assert made[0] == made[1] and len(made[0]) >= 24


def test_a_damaged_shard_is_named_when_a_process_reads_it(tmp_path: Path, always: None) -> None:
    source = committed_run(tmp_path / "old", [everything(index) for index in range(12)])
    (tmp_path / "old/shards/000009.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match="000009.jsonl: damaged"):
        snap_all(source, tmp_path / "new")


def test_a_damaged_shard_is_named_with_it(tmp_path: Path, always: None) -> None:
    run = committed_run(tmp_path, [shard_result(index) for index in range(6)])
    path = tmp_path / run.shard_path(4)
    path.write_bytes(path.read_bytes().replace(b"area", b"aera", 1))
    with pytest.raises(RunError, match="000004.jsonl: damaged"):
        RunDirectory.open(Store.open(tmp_path)).merge()


@pytest.mark.parametrize("answers", [[0] * 20, [1] * 7, [5000, 3, 5000], [700] * 10, []])
def test_lots_are_all_shards_in_order_and_none_is_larger_than_it_must_be(answers: list[int]) -> None:
    shards = [SeenShard(index=at, head_sha256=b"", num_answers=number) for at, number in enumerate(answers)]
    lots = list(_lots(shards))
    assert [one for lot in lots for one in lot] == shards
    for lot in lots:
        assert 1 <= len(lot) <= 8 and sum(one.num_answers for one in lot[:-1]) < 2048


def test_work_apart_gives_its_result_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = module._started
    monkeypatch.setattr(module, "_started", lambda: started.append(start()) or started[0])
    with apart(distinct_texts_of, BODIES[0]) as result:
        assert result() == distinct_texts_of(BODIES[0])
    assert [one.returncode is not None for one in started] == [True]  # it was waited for


def test_work_apart_raises_its_error_where_it_is_waited_for(tmp_path: Path) -> None:
    reached = False
    with pytest.raises(InputError, match="--embedder .*gone: expected a folder"), apart(embedder_name, str(tmp_path / "gone")) as result:  # fmt: skip
        reached = True
        result()
    assert reached


def test_work_apart_is_done_here_where_its_process_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = module._started
    monkeypatch.setattr(module, "_started", lambda: started.append(start()) or started[0])
    with apart(distinct_texts_of, BODIES[0]) as result:
        started[0].kill()
        assert result() == distinct_texts_of(BODIES[0])


def test_work_apart_ends_when_it_is_no_longer_wanted() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), apart(time.sleep, 60.0):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
