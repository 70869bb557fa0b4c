"""`rlabel repair`: every damaged shard is named and taken out, no whole one is touched, and the run goes on to the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from label_factories import rlabel_here
from rlabel.errors import RunError
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import RunInUse, held
from rlabel.run.records_io import DamagedShard, checked_body, footer_from_tail
from rlabel.run.repair import take_out, verify_run
from rlabel.run.status import read_status
from rlabel.storage import Store
from run_factories import committed_run, shard_result


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A finished run of six shards, the second cut off, the fifth with a flipped bit."""
    made = committed_run(tmp_path / "run", map(shard_result, range(6)))
    made.merge()
    shards = tmp_path / "run" / "shards"
    (shards / "000001.jsonl").write_bytes((shards / "000001.jsonl").read_bytes()[:-30])
    flip(shards / "000004.jsonl", 200)
    return made


def test_every_flipped_bit_of_a_shard_is_found() -> None:
    from rlabel.run.records_io import result_to_bytes

    whole, dice = result_to_bytes(shard_result(3), "f" * 64), random.Random(1)
    footer_at = whole.rfind(b"\n", 0, -1) + 1
    checked_body(whole, 3, "f" * 64)
    flips = [(at, bit) for at in range(footer_at, len(whole)) for bit in range(8)]
    flips += [(dice.randrange(footer_at), dice.randrange(8)) for _ in range(300)]
    for at, bit in flips:
        data = bytearray(whole)
        data[at] ^= 1 << bit
        with pytest.raises(DamagedShard):
            checked_body(bytes(data), 3, "f" * 64)


def test_a_footer_of_an_older_version_without_a_hash_of_its_own_is_read() -> None:
    from rlabel.run.records_io import result_to_bytes

    record = json.loads(result_to_bytes(shard_result(3), "f" * 64).splitlines()[-1])
    expected = footer_from_tail(json.dumps(record).encode() + b"\n")
    del record["footer_sha256"]
    assert footer_from_tail(json.dumps(record).encode() + b"\n") == expected


def test_damaged_shards_are_named_and_a_look_touches_nothing(run, tmp_path) -> None:
    before = files(tmp_path)
    found = verify_run(run)
    assert (found.num_shards, found.num_checked, found.num_missing) == (6, 6, 0)
    assert [(bad.shard, bad.file) for bad in found.damaged] == [
        (index, str(tmp_path / "run" / "shards" / f"{index:06d}.jsonl")) for index in (1, 4)
    ]
    assert "cut off" in found.damaged[0].reason and "content hash" in found.damaged[1].reason
    assert files(tmp_path) == before


def test_what_is_wrong_is_found_without_a_large_file_in_memory(run, tmp_path, monkeypatch) -> None:
    whole = tmp_path / "run" / "shards" / "000000.jsonl"
    monkeypatch.setattr("rlabel.run.directory._CHUNK_BYTES", 7)
    monkeypatch.delattr(Store, "read")
    assert run.damage_of(0) is None
    whole.write_bytes(b"x" * 5_000_000)
    assert "cut off" in str(run.damage_of(0))
    whole.write_bytes(b"")
    assert "cut off" in str(run.damage_of(0))
    whole.write_bytes((tmp_path / "run" / "shards" / "000002.jsonl").read_bytes())
    assert "its footer says shard 2" in str(run.damage_of(0))


@pytest.mark.parametrize("delete", [False, True])
def test_taken_out_shards_are_made_anew_alone_and_give_the_same_bytes(run, tmp_path, delete) -> None:
    shards, labels = tmp_path / "run" / "shards", (tmp_path / "run" / "labels.json").read_bytes()
    damaged = {index: (shards / f"{index:06d}.jsonl").read_bytes() for index in (1, 4)}
    with pytest.raises(RunError, match=r"000001\.jsonl: damaged: .*rlabel repair"):
        run.merge()
    taken = take_out(run, verify_run(run), delete=delete)
    assert run.committed() == {0, 2, 3, 5}
    aside = tmp_path / "run" / "damaged"
    if delete:
        assert not aside.exists() and [bad.moved_to for bad in taken.damaged] == [None, None]
    else:
        assert [bad.moved_to for bad in taken.damaged] == [str(aside / f"{index:06d}-1.jsonl") for index in (1, 4)]
        assert {index: (aside / f"{index:06d}-1.jsonl").read_bytes() for index in (1, 4)} == damaged
    status = read_status(run.store)
    assert status is not None and (status.state, status.shards_done) == ("stopped", 4)
    assert "2 damaged shards were" in status.message
    assert not [name for name in run.store.list() if name.startswith("driver")]
    for index in (1, 4):
        assert run.commit(shard_result(index))
    run.merge()
    assert (tmp_path / "run" / "labels.json").read_bytes() == labels
    assert verify_run(run).damaged == ()


def test_a_shard_damaged_again_is_moved_beside_the_first_one(run, tmp_path) -> None:
    for number in (1, 2):
        (bad, _) = (
            take_out(run, verify_run(run)).damaged if number == 1 else (*take_out(run, verify_run(run)).damaged, None)
        )
        assert bad is not None and bad.moved_to == str(tmp_path / "run" / "damaged" / f"000001-{number}.jsonl")
        run.commit(shard_result(1))
        flip(tmp_path / "run" / "shards" / "000001.jsonl", 99)


def test_a_shard_made_anew_since_it_was_looked_at_stays(run) -> None:
    found = verify_run(run)
    run.store.delete(run.shard_path(1))
    run.store.delete(run.shard_path(4))
    assert run.commit(shard_result(1))
    taken = take_out(run, found, delete=True)
    assert run.committed() == {0, 1, 2, 3, 5} and [bad.moved_to for bad in taken.damaged] == [None, None]


def test_nothing_is_taken_out_while_a_driver_is_at_the_run(run) -> None:
    found = verify_run(run)
    with held(run.store, 2.0), pytest.raises(RunInUse):
        take_out(run, found)
    assert run.committed() == set(range(6))


# The command


def test_the_command_names_moves_and_says_how_to_go_on(run, tmp_path) -> None:
    folder = str(tmp_path / "run")
    looked = rlabel_here("repair", [folder, "--check"])
    assert looked.returncode == 1 and "6 of 6 shards verified, 2 damaged" in looked.stdout
    assert run.committed() == set(range(6)) and f"rlabel repair {folder} --delete" in looked.stdout
    moved = rlabel_here("repair", [folder])
    assert moved.returncode == 1 and "Run the command of this run again" in moved.stdout
    for index in (1, 4):
        assert f"shard {index}: {folder}/shards/{index:06d}.jsonl: " in moved.stdout
        assert f"moved to {folder}/damaged/{index:06d}-1.jsonl" in moved.stdout
    again = rlabel_here("repair", [folder, "--json"])
    assert again.returncode == 0
    assert json.loads(again.stdout) == {
        "run": folder, "shards_total": 6, "shards_checked": 4, "shards_missing": 2, "damaged": [], "taken_out": "moved", "exit_code": 0,
    }  # fmt: skip


def test_the_command_tells_a_script_what_it_deleted(run, tmp_path) -> None:
    said = rlabel_here("repair", [str(tmp_path / "run"), "--json", "--delete"])
    document = json.loads(said.stdout)
    assert (said.returncode, document["exit_code"], document["taken_out"]) == (1, 1, "deleted")
    assert [(bad["shard"], bad["moved_to"]) for bad in document["damaged"]] == [(1, None), (4, None)]


@pytest.mark.parametrize("arguments", [["--check", "--delete"], []])
def test_a_wrong_call_is_refused(tmp_path, arguments) -> None:
    said = rlabel_here("repair", [str(tmp_path), *arguments])
    assert said.returncode == 2 and said.stdout == "" and "Traceback" not in said.stderr
    assert ("--check" if arguments else "expected a run directory") in said.stderr
