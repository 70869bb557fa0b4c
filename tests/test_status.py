"""status.json counts what is committed, from footers; and each schema of a run takes the good and refuses the bad."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rlabel.errors import InputError, RunError
from rlabel.records import JsonObject, JsonValue
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import Manifest, manifest_to_bytes
from rlabel.run.records_io import Footer, result_to_bytes
from rlabel.run.status import RunStatus, compute_status, read_status, status_to_json, write_status
from rlabel.schema_files import validate
from rlabel.storage import Store
from run_factories import begin_run, everything, manifest

FINGERPRINT = "f" * 64


def test_the_status_counts_what_is_committed_and_reads_each_footer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin_run(tmp_path, 3)
    footers: dict[int, Footer] = {}
    run.commit(everything(0))
    start = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = compute_status(run, "running", footers=footers, started_at=start, now=start)
    assert (first.shards_done, first.shards_total, first.regions_done, first.regions_total) == (1, 3, 3, 12)
    assert (first.labels, first.abstentions, first.failures, first.regions_per_s) == (1, 1, 1, None)
    monkeypatch.delattr(RunDirectory, "read")
    run.commit(everything(2))
    reads: list[int] = []
    read_footer = RunDirectory.read_footer

    def noting_read_footer(self: RunDirectory, index: int) -> Footer:
        reads.append(index)
        return read_footer(self, index)

    monkeypatch.setattr(RunDirectory, "read_footer", noting_read_footer)
    later = start + timedelta(seconds=2)
    second = compute_status(
        run, "stopped", footers=footers, started_at=start, now=later, regions_done_at_start=3, exit_code=1
    )
    assert reads == [2]
    assert second.failures_by_kind == {"region": 2}
    assert (second.regions_per_s, second.started_at, second.exit_code) == (1.5, "2030-01-02T03:04:05+00:00", 1)


def test_a_status_comes_back_as_written_and_can_be_replaced(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert read_status(store) is None
    run = begin_run(tmp_path, 1)
    for status in (compute_status(run, "running"), compute_status(run, "done", exit_code=0, message="ü")):
        write_status(store, status)
        assert read_status(store) == status
        validate(status_to_json(status), "status", "status.json")
    store.put("status.json", b'{"state": "running"')
    with pytest.raises(RunError, match="status.json: expected a run's status"):
        read_status(store)


# Schemas


def a_status() -> RunStatus:
    zeros = {field.name: 0 for field in dataclasses.fields(RunStatus) if field.type == "int"}
    return RunStatus(state="running", **zeros)  # type: ignore[arg-type]


def changed(document: JsonObject, **changes: JsonValue) -> JsonObject:
    return {key: value for key, value in {**document, **changes}.items() if value != "REMOVED"}


def manifest_document(of: Manifest) -> JsonObject:
    document: JsonObject = json.loads(manifest_to_bytes(of))
    return document


def label_record() -> JsonObject:
    record: JsonObject = json.loads(result_to_bytes(everything(), FINGERPRINT).split(b"\n")[2])
    return record


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ("manifest", manifest_document(manifest()), {"fingerprint": "REMOVED"}),
        ("manifest", manifest_document(manifest()), {"hostname": "here"}),
        ("manifest", manifest_document(manifest()), {"settings": {"nested": {"a": 1}}}),
        ("shard-record", label_record(), {"score": 1.5}),
        ("shard-record", label_record(), {"region": "REMOVED"}),
        ("shard-record", label_record(), {"kind": "maybe"}),
        ("status", status_to_json(a_status()), {"state": "sleeping"}),
        ("status", status_to_json(a_status()), {"regions_done": -1}),
    ],
)
def test_each_schema_takes_the_valid_example_and_refuses_the_changed_one(
    schema: str, valid: JsonObject, invalid: JsonObject
) -> None:
    validate(valid, schema, "example")
    with pytest.raises(InputError, match="example"):
        validate(changed(valid, **invalid), schema, "example")
