"""One driver at a time: who is refused, who takes over, who notices, and that nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlabel.errors import StorageError
from rlabel.run.lease import (
    Claim,
    Lease,
    LeaseLost,
    RunInUse,
    driving,
    is_beating,
    is_gone,
    newest_claim,
    read_beat,
    take,
    this_driver,
)
from rlabel.run.progress import RunProgress
from rlabel.run.status import read_status
from rlabel.storage import Store
from run_factories import begin_run, committed_run, shard_result

ROOT = Path(__file__).resolve().parents[1]
CLAIM, BEAT = "driver-000001.json", "driver-000001.beat"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of a server of S3 on loopback."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from s3_factories import BUCKET, reachable, s3_server

    with s3_server() as (host, port), reachable(f"http://{host}:{port}"):
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["a disk", "memory", "S3"])
def store(request, tmp_path) -> Store:
    if request.param == "a disk":
        return Store.open(tmp_path)
    return Store.open(
        f"memory://{uuid.uuid4().hex}"
        if request.param == "memory"
        else f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    )


@pytest.fixture
def leases() -> Iterator[list[Lease]]:
    """Ends the threads of the leases that a test puts in."""
    held: list[Lease] = []
    yield held
    for lease in held:
        lease.release()


def silent(store: Store, number: int = 1, **more: object) -> None:
    """Leave what a driver of another machine left that beats no more."""
    driver = dataclasses.replace(this_driver(1.0), host="elsewhere", boot_id="another", pid=77, **more)  # type: ignore[arg-type]
    store.put(f"driver-{number:06d}.json", json.dumps(dataclasses.asdict(driver)).encode())
    store.put(f"driver-{number:06d}.beat", b"as ever")


def beats(store: Store, claim: Claim) -> bool:
    """Return whether a driver beats: one look is two beats long, which a machine with much to do may be late by."""
    return any(is_beating(store, claim) for _ in range(100))


def test_a_driver_leaves_nothing_behind_and_the_next_one_starts_at_once(store) -> None:
    for _ in range(2):
        started = time.monotonic()
        lease = take(store, 60.0)
        assert store.list() == [BEAT, CLAIM] and time.monotonic() - started < 30
        lease.check()
        lease.release()
        assert store.list() == []


def test_a_second_driver_is_refused_as_soon_as_the_first_gives_a_sign_of_life(store, leases, capsys) -> None:
    leases.append(take(store, 6.0))  # beats each half second
    started = time.monotonic()
    with pytest.raises(RunInUse) as refused:
        take(store, 6.0)
    assert time.monotonic() - started < 6 and refused.value.exit_code == 2
    assert f"pid {os.getpid()}, since " in str(refused.value) and "give another --out" in str(refused.value)
    assert "looking for a sign of life, 6 s at most" in capsys.readouterr().err
    leases[0].check()


def test_a_driver_that_is_silent_for_its_expiry_is_replaced_and_its_files_go(store, leases, capsys) -> None:
    silent(store, 4)
    started = time.monotonic()
    leases.append(take(store, 60.0))
    assert 1.0 <= time.monotonic() - started < 40, "it said of itself that it counts as dead after 1 s"
    assert store.list() == ["driver-000005.beat", "driver-000005.json"]
    assert "no sign of life from elsewhere, pid 77" in capsys.readouterr().err


def test_a_driver_of_another_machine_is_watched_though_its_pid_is_nobody_here() -> None:
    mine = this_driver(60.0)
    if mine.boot_id is None:
        pytest.skip("processes cannot be looked at here")
    gone = dataclasses.replace(mine, pid=2**22 + 1, process_started=1)
    assert is_gone(gone) and not is_gone(mine)
    assert is_gone(dataclasses.replace(mine, process_started=1)), "another process has its pid now"
    for other in ({"boot_id": "x"}, {"pid_namespace": "pid:[1]"}, {"host": "x"}, {"process_started": None}):
        assert not is_gone(dataclasses.replace(gone, **other))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_driver_killed_on_this_machine_is_replaced_at_once(tmp_path, leases, capsys) -> None:
    code = "import sys, time; from rlabel.run.lease import take; from rlabel.storage import Store\n"
    code += "take(Store.open(sys.argv[1]), 600.0); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked how
        started = time.monotonic()
        leases.append(take(Store.open(tmp_path), 600.0))
    assert time.monotonic() - started < 30
    assert f"pid {process.pid}, since" in (said := capsys.readouterr().err) and "is gone; this one goes on" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver-000002.beat", "driver-000002.json"]


def test_of_many_drivers_at_once_one_gets_the_run(store, leases) -> None:
    together = threading.Barrier(6)

    def attempt() -> Lease | None:
        together.wait()
        try:
            return take(store, 2.0)
        except RunInUse:
            return None

    with ThreadPoolExecutor(6) as pool:
        leases += [lease for lease in pool.map(lambda _: attempt(), range(6)) if lease is not None]
    assert len(leases) == 1
    leases[0].check()


def test_a_late_driver_notices_stops_and_takes_nothing_of_the_new_one_away(tmp_path, leases) -> None:
    run = begin_run(tmp_path, 2)
    late = take(run.store, 60.0)
    progress = RunProgress(run, 0.0, late)
    progress.write("running")
    run.store.put(
        "driver-000002.json", json.dumps(dataclasses.asdict(this_driver(60.0))).encode()
    )  # as one that took over
    before = run.store.read("status.json")
    with pytest.raises(
        LeaseLost, match=r"gave no sign of life for 60 s or longer.* now .*, pid \d+, since .* drives it"
    ):
        progress.check()
    with pytest.raises(LeaseLost):
        progress.beat()
    progress.write("failed", 1, "of the late one")
    assert run.store.read("status.json") == before, "the status is the new driver's"
    late.release()
    assert run.store.exists("driver-000002.json") and run.commit(shard_result(0)), "late commits do no harm"


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_late_driver_takes_back_what_it_told_and_beat_after_the_end(tmp_path, is_finished) -> None:
    run = committed_run(tmp_path, [shard_result(0)])
    late = take(run.store, 60.0)
    progress = RunProgress(run, 1e9, late)
    progress.write("running")
    run.store.delete(CLAIM)  # another one has been here and has ended; this one's status and beat came after that
    if is_finished:
        run.merge()
    assert run.store.exists(BEAT) and late.is_lost()
    progress.give_up()
    late.release()
    status = read_status(run.store)
    assert status is not None and status.driver is None
    assert status.state == ("done" if is_finished else "stopped")
    assert not run.store.exists(BEAT)
    run.store.put("status.json", b"of nobody")  # damaged: nothing that ends with a traceback
    progress.give_up()


def test_a_late_driver_of_a_run_that_another_one_has_finished_since_is_told_so(store) -> None:
    late = take(store, 60.0)
    store.delete(CLAIM)
    with pytest.raises(LeaseLost, match="finished or ended by another driver"):
        late.check()
    late.release()


def test_a_number_used_again_is_told_from_ones_own(store, leases) -> None:
    first = take(store, 60.0)
    store.delete(CLAIM)  # as when another one took over and has ended since
    leases.append(take(store, 60.0))
    assert leases[0].number == first.number == 1
    assert first.is_lost() and not leases[0].is_lost()
    first.release()
    leases[0].check()


def test_every_beat_is_as_long_as_the_one_before(store, leases) -> None:
    """Who knew the length of the last one, as an object store's listing tells it, reads the whole new one."""
    lease = take(store, 60.0)
    leases.append(lease)
    beats = []
    for _ in range(12):
        lease._put_beat()
        beats.append(read_beat(store, 1))
    assert len(set(beats)) == 12 and len(set(map(len, beats))) == 1


def test_the_thread_beats_tells_and_finds_out(store, leases) -> None:
    lease = take(store, 1.2)  # a beat each tenth of a second
    leases.append(lease)
    told = threading.Event()

    def tell() -> None:
        told.set()
        raise OSError("no terminal")  # which must not end the beat

    lease.on_beat = tell
    claim = newest_claim(store)
    assert claim is not None and beats(store, claim) and told.wait(60) and beats(store, claim)
    silent(store, 9)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            lease.raise_if_known_lost()
        except LeaseLost:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the thread did not find out")
    claim = newest_claim(store)
    assert claim is not None and claim.number == 9 and not is_beating(store, claim)


def test_a_store_that_fails_for_a_moment_costs_no_lease(tmp_path, leases, monkeypatch, capsys) -> None:
    lease = take(Store.open(tmp_path), 1.2)
    leases.append(lease)
    failed = threading.Event()

    def fails(_: Store, path: str, data: bytes) -> None:
        failed.set()
        raise StorageError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", fails)
        assert failed.wait(60)
    claim = newest_claim(lease.store)
    assert claim is not None and beats(lease.store, claim)
    assert capsys.readouterr().err.count("no sign of life could be written: no connection") == 1


def claim_with(**changes: object) -> bytes:
    return json.dumps({**dataclasses.asdict(this_driver(1.0)), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"null", id="null"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(claim_with(pid=-1), id="a group of processes"),
        pytest.param(claim_with(pid="1"), id="text for a number"),
        pytest.param(claim_with(expiry_s=1e300), id="for ever"),
        pytest.param(claim_with(expiry_s=float("nan")), id="not a number"),
        pytest.param(claim_with(host="a\x1b[2Jb"), id="a terminal's"),
        pytest.param(claim_with(more=1), id="of another version"),
    ],
)
def test_a_file_that_names_no_driver_is_watched_for_the_usual_time_only(tmp_path, data) -> None:
    store = Store.open(tmp_path)
    store.put(CLAIM, data)
    claim = newest_claim(store)
    assert claim is not None and claim.driver is None and claim.expiry_s == 60.0 and claim.in_words == CLAIM


def test_a_finished_run_needs_no_lease_unless_somebody_is_at_it(tmp_path, leases) -> None:
    run = committed_run(tmp_path, [shard_result(0), shard_result(1)])
    with driving(run) as lease:
        assert lease is None and not [name for name in run.store.list() if name.startswith("driver")]
    leases.append(take(run.store, 2.0))
    with pytest.raises(RunInUse), driving(run):
        pass
    run.store.delete(run.shard_path(1))
    leases.pop().release()
    with driving(run) as lease:
        assert lease is not None
    assert not [name for name in run.store.list() if name.startswith("driver")]


def test_snapping_holds_its_own_run_and_is_refused_while_another_one_does(tmp_path, leases, monkeypatch) -> None:
    from rlabel.cli import snap
    from rlabel.run.resnap import SnapJob, open_snapped
    from rlabel.vocabulary.vocabulary import Category, make_vocabulary

    source = committed_run(tmp_path / "run", [shard_result(0)])
    vocabulary = make_vocabulary("few", [Category(category_id=1, name="cat")])
    job = SnapJob(vocabulary=vocabulary, where=str(tmp_path / "new"), threshold=0.5, margin=0.0, embedder="none")
    new = open_snapped(source, job)
    seen = []
    monkeypatch.setattr(snap, "_snap_one", lambda *arguments: seen.append((new.store.list(), arguments[-1])))
    snap.snap_jobs(source, [job], None)
    ((names, lease),) = seen
    assert names == [BEAT, CLAIM, "manifest.json"] and lease is not None and not source.store.exists(CLAIM)
    leases.append(take(new.store, 2.0))
    with pytest.raises(RunInUse):
        snap.snap_jobs(source, [job], None)
    assert len(seen) == 1
