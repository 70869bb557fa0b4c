"""Run directories in which strangers, other tools and slow filesystems have been: no hang, no memory, no shard lost."""

from __future__ import annotations

import os
import shutil
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from rlabel.cluster import job
from rlabel.errors import RunError, StorageError, UsageError
from rlabel.run import lease as lease_module
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import RunInUse, newest_claim, take
from rlabel.run.progress import RunProgress
from rlabel.run.status import read_status
from rlabel.storage import Store
from run_factories import begin_run, committed_run, shard_result

HUGE = 200 << 30  # of nothing: a sparse file takes no room


def huge(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE)


class LateListings(Store):
    """A folder whose listings are those of some looks before, as a client of NFS may give them; names are looked up fresh."""

    late = 3

    @classmethod
    def of(cls, folder: Path) -> LateListings:
        plain = Store.open(folder)
        late = cls(plain.url, plain._backend, False)
        late._seen: list[list[str]] = [[] for _ in range(cls.late)]  # type: ignore[misc]
        return late

    def list(self, folder: str = "") -> list[str]:
        self._seen.append(super().list(folder))
        return self._seen.pop(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "DEFAULT_EXPIRY_S", 0.4)
    monkeypatch.setattr(lease_module, "_LISTED_S", 0.2)


def test_a_claim_that_is_a_link_to_nothing_holds_a_run_up_for_a_while_and_goes(tmp_path: Path, impatient: None) -> None:
    (tmp_path / "driver-000009.json").symlink_to("nowhere")
    lease = take(Store.open(tmp_path))
    assert lease.number == 10 and not lease.is_lost()
    lease.release()
    assert os.listdir(tmp_path) == []


def test_a_claim_after_which_no_number_is_left_is_told_of(tmp_path: Path, impatient: None) -> None:
    (tmp_path / "driver-999999999999.json").write_text("{}")
    with pytest.raises(RunError, match="driver-999999999999.json: expected .* Delete the file"):
        take(Store.open(tmp_path))


def test_names_that_no_driver_has_are_nobodys_claim(tmp_path: Path) -> None:
    for name in ("driver-0000001.json", "driver-1.json", "driver-000001.json.bak", "driver-١٢٣٤٥٦.json"):
        (tmp_path / name).write_text("{}")
    assert newest_claim(Store.open(tmp_path)) is None


def test_a_huge_claim_is_not_read_to_its_end(tmp_path: Path) -> None:
    huge(tmp_path / "driver-000001.json")
    claim = newest_claim(Store.open(tmp_path))
    assert claim is not None and claim.driver is None and len(claim.data) <= 1 << 20


def test_one_driver_gets_a_run_whose_listings_come_late(tmp_path: Path) -> None:
    first = take(LateListings.of(tmp_path), 60.0)
    try:
        assert first.number == 1 and not first.is_lost()
        began = time.monotonic()
        with pytest.raises(
            RunInUse
        ):  # it sees the claim late, and then a beat: no second number, no wait for an expiry
            take(_beaten(LateListings.of(tmp_path), first), 60.0)
        assert time.monotonic() - began < 30 and not first.is_lost()
        assert sorted(os.listdir(tmp_path)) == ["driver-000001.beat", "driver-000001.json"]
    finally:
        first.release()
    assert os.listdir(tmp_path) == []


def _beaten(store: LateListings, other: lease_module.Lease) -> LateListings:
    """Let the other driver beat at each look at a beat: nobody waits for its thread."""
    read = store.read_start

    def beaten(path: str, num_bytes: int) -> bytes:
        if path.endswith(".beat"):
            other._put_beat()
        return read(path, num_bytes)

    store.read_start = beaten  # type: ignore[method-assign]
    return store


def test_a_driver_that_another_replaced_is_lost_however_late_listings_come(tmp_path: Path) -> None:
    late = take(LateListings.of(tmp_path), 60.0)
    Store.open(tmp_path).delete("driver-000001.json")  # another one took over and ended
    assert late.is_lost()
    late.release()


def test_shards_that_another_machine_committed_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "_LOOK_AGAIN_S", 0.01)
    committed_run(tmp_path, [shard_result(0), shard_result(1)])
    run = RunDirectory.open(LateListings.of(tmp_path))
    job.wait_until_visible(run)
    assert len(run.committed()) == 2 and "waiting to see the last 2 shards" in capsys.readouterr().err
    (tmp_path / "shards" / "000001.jsonl").unlink()
    monkeypatch.setattr(job, "_VISIBLE_S", 0.1)
    with pytest.raises(RunError, match="1 shards are missing at the end"):
        job.wait_until_visible(RunDirectory.open(Store.open(tmp_path)))


def test_heartbeats_go_on_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SetBack(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) - timedelta(days=1)

    progress = RunProgress(begin_run(tmp_path, 1), 0.01)
    told: list[str] = []
    progress.tell = lambda status, note: told.append(status.state)
    monkeypatch.setattr("rlabel.run.progress.datetime", SetBack)
    time.sleep(0.02)
    progress.beat()
    assert told == ["running"]


def test_a_run_copied_while_a_driver_is_at_it_goes_on_in_both_places(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", 3)
    lease = take(run.store, 1.0)
    try:
        run.commit(shard_result(0))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "copy" / "shards" / ".rlabel-tmp-half").write_bytes(b"half a sh")
        copy = RunDirectory.open(Store.open(tmp_path / "copy"))
        there = take(copy.store, 1.0)
        assert there.number == 2 and not lease.is_lost()
        for one in (copy, run):
            assert [one.commit(shard_result(index)) for index in (0, 1, 2)] == [False, True, True]
            one.merge()
            one.tidy()
        there.release()
    finally:
        lease.release()
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("run", "copy")
    ]
    assert files[0] == files[1] and ".rlabel-tmp-half" not in files[1]


def test_huge_files_of_strangers_are_refused_and_not_read(tmp_path: Path) -> None:
    run = committed_run(tmp_path / "run", [shard_result(0), shard_result(1)])
    shard = tmp_path / "run" / "shards" / "000001.jsonl"
    huge(shard)
    for read in (run.read, run.read_body):
        with pytest.raises(RunError, match="000001.jsonl: damaged"):
            read(1)
    with pytest.raises(RunError, match="000001.jsonl: damaged"):
        run.merge()
    huge(tmp_path / "run" / "status.json")
    with pytest.raises(RunError, match="expected a run's status"):
        read_status(run.store)
    huge(tmp_path / "run" / "manifest.json")
    with pytest.raises(RunError, match=r"manifest.json: expected a manifest of at most \d+ bytes"):
        RunDirectory.open(run.store)


def test_a_shard_longer_than_is_read_at_once_is_read_when_it_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed_run(tmp_path, [shard_result(0)])
    expected = run.read(0)
    monkeypatch.setattr("rlabel.run.directory._READ_AT_ONCE_BYTES", 10)
    assert run.read(0) == expected
    path = tmp_path / "shards" / "000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(RunError, match="damaged"):
        run.read(0)


def test_only_the_own_name_of_a_shard_is_that_shard(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 2)
    (tmp_path / "shards").mkdir()
    for name in ("0000001.jsonl", "000001.jsonl~", "1.jsonl", "٠٠٠٠٠١.jsonl", "000007.jsonl", "9" * 200 + ".jsonl"):
        (tmp_path / "shards" / name).write_bytes(b"{}")
    assert run.committed() == set()
    assert run.commit(shard_result(0)) and run.commit(shard_result(1))
    counts = run.merge()
    assert counts == committed_run(tmp_path / "plain", [shard_result(0), shard_result(1)]).merge()


def test_a_pipe_or_folder_in_a_shards_place_is_named_and_holds_nothing_up(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 2)
    run.commit(shard_result(0))
    os.mkfifo(tmp_path / "shards" / "000001.jsonl")
    with pytest.raises(StorageError, match="000001.jsonl: not a regular file"):
        run.merge()


def test_deleting_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "outside").write_text("kept")
    (folder / "inside").write_text("kept")
    store = Store.open(folder)
    for name, target in (("one", "inside"), ("two", "../outside"), ("three", "nowhere")):
        (folder / name).symlink_to(target)
        store.delete(name)
    assert os.listdir(folder) == ["inside"] and (tmp_path / "outside").read_text() == "kept"
    (folder / "out").symlink_to("..")
    with pytest.raises(StorageError):
        store.delete("out/outside")
    assert (tmp_path / "outside").exists()


@pytest.mark.parametrize("what", ["a file", "below a file", "a pipe", "a link to nothing"])
def test_an_out_that_can_be_no_folder_is_refused_by_name(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "a pipe":
        os.mkfifo(out)
    elif what == "a link to nothing":
        out.symlink_to(tmp_path / "file" / "under")
    if what != "a pipe":
        (tmp_path / "file").write_text("kept")
    if what == "a file":
        out = tmp_path / "file"
    elif what == "below a file":
        out = tmp_path / "file" / "run"
    store = Store.open(out)
    with pytest.raises((StorageError, UsageError), match=f"{out.name}.*(Check|Choose|Give)"):
        store.check_can_commit()
        RunDirectory.create_or_resume(store, begin_run(tmp_path / "other", 1).manifest)
    if what != "a pipe":
        assert (tmp_path / "file").read_text() == "kept"
