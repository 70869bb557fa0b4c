"""What killed writers leave half-written in a run directory goes when the run is finished, and late writers do no harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlabel.errors import StorageError
from rlabel.storage import Store
from run_factories import begin_run, shard_result

LEFT = ".rlabel-tmp-0123"


def test_a_finished_run_is_tidied_of_what_is_half_written_and_of_nothing_else(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    run.commit(shard_result(0))
    for folder in (tmp_path, tmp_path / "shards"):
        (folder / LEFT).write_bytes(b"half")
        (folder / "notes.txt").write_bytes(b"of a person")
    run.tidy()
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "notes.txt", "shards"]
    assert sorted(os.listdir(tmp_path / "shards")) == ["000000.jsonl", "notes.txt"]


def test_what_cannot_be_tidied_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise StorageError("no permission")

    monkeypatch.setattr(Store, "remove_leftovers", fails)
    begin_run(tmp_path, 1).tidy()


def test_a_late_writer_that_loses_its_file_finds_the_shard_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin_run(tmp_path, 1)
    link = os.link

    def after_the_end_of_the_run(source: Path, target: Path) -> None:
        monkeypatch.setattr("os.link", link)
        assert run.commit(shard_result(0))
        Path(source).unlink()  # as on a filesystem without locks
        link(source, target)

    monkeypatch.setattr("os.link", after_the_end_of_the_run)
    assert run.commit(shard_result(0)) is False
    assert run.committed() == {0} and os.listdir(tmp_path / "shards") == ["000000.jsonl"]
