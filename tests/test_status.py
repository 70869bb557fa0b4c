"""status.json counts what is committed, from footers; and each schema of a run takes the good and refuses the bad."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from label_factories import rlabel_here
from rlabel.errors import InputError, RunError
from rlabel.records import JsonObject, JsonValue, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import held, this_driver
from rlabel.run.manifest import Manifest, manifest_to_bytes
from rlabel.run.progress import RunProgress
from rlabel.run.records_io import Footer, result_to_bytes
from rlabel.run.status import (
    ActorStatus,
    Counted,
    DriverStatus,
    RunStatus,
    compute_status,
    read_status,
    reason_in_general,
    status_to_json,
    write_status,
)
from rlabel.schema_files import validate
from rlabel.storage import Store
from run_factories import begin_run, everything, failure, image_row, label, manifest, region

FINGERPRINT = "f" * 64


def test_the_status_counts_what_is_committed_and_reads_each_footer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin_run(tmp_path, 3)
    counted = Counted()
    run.commit(everything(0))
    start = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = compute_status(run, "running", counted=counted, started_at=start, now=start)
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
        run, "stopped", counted=counted, started_at=start, now=later, regions_done_at_start=3, exit_code=1
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


def test_reasons_of_failures_are_counted_in_general_and_only_once(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 3)
    counted = Counted()
    reasons = [f"{n}.jpg: the picture is cut off ({n} bytes not processed)." for n in range(1, 5)]
    reasons += [f"a.jpg, region {n}: the box [{n}, 2.5, -1e+30, 4] lies outside." for n in range(2)]
    outcomes = [failure(region(str(n)), reason=reason) for n, reason in enumerate(reasons)]
    run.commit(ShardResult(index=0, images=(image_row(1),), outcomes=tuple(outcomes)))
    expected = {"the picture is cut off (N bytes not processed)": 4, "the box [N, N, N, N] lies outside": 2}
    for _ in range(2):
        status = compute_status(run, "running", counted=counted)
        assert list(status.failures_by_reason.items()) == list(expected.items())
    run.commit(ShardResult(index=1, images=(), outcomes=(label(region("good")),)))
    damaged = failure(region("bad"), kind="region", reason="b.jpg: 'π' is no mask.")
    run.commit(ShardResult(index=2, images=(), outcomes=(damaged,)))
    path = tmp_path / "shards" / "000002.jsonl"
    path.write_bytes(path.read_bytes().replace(b"b.jpg", b"c.jpg"))
    found = compute_status(run, "running", counted=counted).failures_by_reason
    assert found == {**expected, "(not known: shard 2 is damaged; rlabel repair tells more)": 1}
    assert reason_in_general("b.jpg: 'π' is no mask.") == "'...' is no mask"
    assert reason_in_general("no colon in 3 words") == "no colon in N words"
    assert len(reason_in_general("x: " + "word " * 1000)) <= 160


def test_only_the_most_frequent_reasons_are_told_and_kept(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    names = ["".join(chr(ord("a") + int(digit)) for digit in str(n)) for n in range(1200)]
    outcomes = [failure(region(name), reason=f"x.jpg: {name}.") for name in names]
    outcomes.append(failure(region("again"), reason=f"y.jpg: {names[7]}."))
    run.commit(ShardResult(index=0, images=(), outcomes=tuple(outcomes)))
    found = compute_status(run, "running").failures_by_reason
    assert len(found) == 10 and list(found.items())[:2] == [("other reasons", 200), (names[7], 2)]


def a_running_status(run: RunDirectory, updated_at: datetime, **more: object) -> RunStatus:
    driver = DriverStatus(host="node-7", pid=41, since="2030-01-01T00:00:00+00:00")
    actors = (
        ActorStatus(node="node-7/ab12", pid=77, gpu_ids=("0", "1"), state="ready", in_flight=2),
        ActorStatus(node="", pid=None, gpu_ids=(), state="starting", in_flight=0),
    )
    status = compute_status(run, "running", now=updated_at, driver=driver, actors=actors)
    return dataclasses.replace(status, regions_per_s=2.0, **more)  # type: ignore[arg-type]


def test_actors_and_driver_come_back_as_written(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 2)
    status = a_running_status(run, datetime.now(UTC))
    write_status(run.store, status)
    assert read_status(run.store) == status
    validate(status_to_json(status), "status", "status.json")


def test_status_tells_of_actors_rate_time_to_go_and_that_the_driver_lives(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 3)
    run.commit(everything(0))
    write_status(run.store, a_running_status(run, datetime.now(UTC)))
    run.commit(everything(1))  # since then: what is committed counts
    said = rlabel_here("status", [str(tmp_path)])
    assert said.returncode == 0
    assert (
        "running, 6/12 regions (50.0 %), 2/3 shards, 2.0 regions/s, 0:00:03 to go, 2 abstained, 2 failed" in said.stdout
    )
    for line in (
        "driver: node-7, pid 41, since 2030-01-01T00:00:00+00:00",
        "actors: 1 ready, 1 starting",
        "node-7/ab12, pid 77, GPU 0,1: 2 shards in flight",
        "failures: 2 of kind region",
        "2 x cut off",
        "last sign of life ",
    ):
        assert line in said.stdout, line
    document = json.loads(rlabel_here("status", [str(tmp_path), "--json"]).stdout)
    validate(document, "status", "stdout")
    assert (document["sign_of_life"], document["seconds_to_go"]) == ("fresh", 3.0) and document["silent_for_s"] < 60
    assert [actor["pid"] for actor in document["actors"]] == [77, None]


def test_a_run_whose_driver_is_silent_is_said_to_be_dead_unless_it_beats(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    write_status(run.store, a_running_status(run, datetime.now(UTC) - timedelta(minutes=5, seconds=3)))
    said = rlabel_here("status", [str(tmp_path), "--watch"])  # which ends, since nothing will come
    assert (
        said.returncode == 0 and "no sign of life for 5 min: probably dead; run the same command again" in said.stdout
    )
    document = json.loads(rlabel_here("status", [str(tmp_path), "--json"]).stdout)
    assert document["sign_of_life"] == "none" and 303 <= document["silent_for_s"] < 900
    with held(run.store, 1.2):  # its clock, or this one, is wrong
        assert json.loads(rlabel_here("status", [str(tmp_path), "--json"]).stdout)["sign_of_life"] == "fresh"
    for text in ("no time at all", "9999-12-31T23:59:59-23:59"):
        status = dataclasses.replace(a_running_status(run, datetime.now(UTC)), updated_at=text)
        write_status(run.store, status)
        assert rlabel_here("status", [str(tmp_path)]).returncode == 0


def test_a_driver_whose_process_has_ended_here_is_told_at_once(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    mine = this_driver(600.0)
    if mine.boot_id is None:
        pytest.skip("processes cannot be looked at here")
    gone = dataclasses.replace(mine, process_started=1)
    run.store.put("driver-000001.json", json.dumps(dataclasses.asdict(gone)).encode())
    write_status(run.store, a_running_status(run, datetime.now(UTC)))
    said = rlabel_here("status", [str(tmp_path)])
    assert "its driver's process has ended (last sign of life, " in said.stdout
    assert "run the same command again" in said.stdout


def test_control_characters_of_a_status_reach_no_terminal(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    write_status(run.store, a_running_status(run, datetime.now(UTC), message="\x1b[2Jgone"))
    said = rlabel_here("status", [str(tmp_path)])
    assert "\x1b" not in said.stdout and "?[2Jgone" in said.stdout


def test_watching_ends_when_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin_run(tmp_path, 2)
    write_status(run.store, a_running_status(run, datetime.now(UTC)))
    waits: list[float] = []

    def finishes(seconds: float) -> None:
        waits.append(seconds)
        run.commit(everything(len(waits) - 1))
        if len(waits) == 2:
            write_status(run.store, compute_status(run, "done", exit_code=0, message="all there"))

    monkeypatch.setattr("rlabel.cli.status.time.sleep", finishes)
    said = rlabel_here("status", [str(tmp_path), "--watch", "--every-s", "3"])
    assert waits == [3.0, 3.0] and "\r" not in said.stdout
    lines = said.stdout.splitlines()
    assert [line.split(": ")[1].split(",")[:2] for line in lines[:3]] == [
        ["running", " 0/12 regions (0.0 %)"], ["running", " 3/12 regions (25.0 %)"], ["done", " 6/12 regions (50.0 %)"],
    ]  # fmt: skip
    assert lines[-1] == "all there"


def test_heartbeat_lines_go_on_while_one_shard_takes_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin_run(tmp_path, 2)
    with held(run.store, 1.2) as lease:  # a beat each tenth of a second
        progress = RunProgress(run, 0.2, lease)
        progress.write("running")
        run.commit(everything(0))
        end = time.monotonic() + 30
        said = ""
        while said.count("3/12 regions") < 2 and time.monotonic() < end:  # and nobody calls progress.beat()
            time.sleep(0.02)
            said += capsys.readouterr().err
        progress.write("stopped", 130, "interrupted")
        time.sleep(0.4)
    lines = said.splitlines()
    assert len(lines) >= 2 and "\r" not in said
    assert re.fullmatch(
        r"rlabel: 3/12 regions \(25\.0 %\), 1/2 shards, [0-9.]+ regions/s, \d:\d\d:\d\d to go, 1 abstained, 1 failed",
        lines[-1],
    )
    status = read_status(run.store)
    assert status is not None and status.state == "stopped", "a late beat does not overwrite how it ended"
    assert capsys.readouterr().err == ""


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
        (
            "status",
            status_to_json(a_status()),
            {"actors": [{"node": "n", "pid": 1, "gpu_ids": [0], "state": "ready", "in_flight": 0}]},
        ),
        ("status", status_to_json(a_status()), {"driver": {"host": "h", "pid": 0, "since": ""}}),
    ],
)
def test_each_schema_takes_the_valid_example_and_refuses_the_changed_one(
    schema: str, valid: JsonObject, invalid: JsonObject
) -> None:
    validate(valid, schema, "example")
    with pytest.raises(InputError, match="example"):
        validate(changed(valid, **invalid), schema, "example")
