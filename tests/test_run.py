"""The run directory: begun once, refused with other settings, each shard committed once and whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlabel.errors import RunError, UsageError
from rlabel.records import JsonObject, JsonValue, ShardResult
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import differing_fields, manifest_from_bytes, manifest_to_bytes, plan_summary
from rlabel.run.records_io import DamagedShard, check_complete, result_from_bytes, result_to_bytes
from rlabel.schema_files import validate
from rlabel.storage import Store
from run_factories import (
    abstention,
    begin_run,
    committed_run,
    everything,
    failure,
    label,
    manifest,
    region,
    shard_of,
    shard_result,
)

TESTS = Path(__file__).resolve().parent
FINGERPRINT = "f" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


# Records


def test_a_result_comes_back_from_its_bytes_as_it_was() -> None:
    for result in (everything(), shard_result(3), ShardResult(index=5, images=(), outcomes=())):
        data = result_to_bytes(result, FINGERPRINT)
        assert result_from_bytes(data, result.index, FINGERPRINT) == result
        assert data == result_to_bytes(result_from_bytes(data, result.index, FINGERPRINT), FINGERPRINT)


@given(extra=st.dictionaries(st.text(), JSON, max_size=3), image_id=JSON, text=st.text())
def test_whatever_json_a_row_holds_comes_back_verbatim(extra: JsonObject, image_id: JsonValue, text: str) -> None:
    own = region("1", extra=extra, segmentation=image_id)
    result = ShardResult(index=0, images=(extra,), outcomes=(failure(own, image_id, reason=text),))
    again = result_from_bytes(result_to_bytes(result, FINGERPRINT), 0, FINGERPRINT)
    assert again == result
    read = [again.images[0], again.outcomes[0].region.extra, again.outcomes[0].image_id]
    assert json.dumps(read, sort_keys=True) == json.dumps([extra, extra, image_id], sort_keys=True), "1 is not 1.0"


def test_numbers_that_json_lacks_stay_readable_in_a_failed_row() -> None:
    own = region("1", box_xywh=(float("nan"), 0.0, float("inf"), 1), segmentation=[[float("-inf")]])
    result = ShardResult(index=0, images=(), outcomes=(failure(own, image_id=float("nan")),))
    data = result_to_bytes(result, FINGERPRINT)
    for line in data.splitlines():
        json.loads(line, parse_constant=pytest.fail)
    again = result_from_bytes(data, 0, FINGERPRINT).outcomes[0]
    assert repr(again.region.box_xywh) == "(nan, 0.0, inf, 1)"
    assert (again.region.segmentation, again.image_id) == ([["-inf"]], "nan")


def test_a_score_that_is_no_number_is_refused() -> None:
    result = ShardResult(index=0, images=(), outcomes=(label(region("1"), score=float("nan")),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        result_to_bytes(result, FINGERPRINT)


def test_every_line_is_canonical_json_and_fits_the_schema() -> None:
    for result in (everything(), shard_result(1)):
        for line in result_to_bytes(result, FINGERPRINT).split(b"\n")[:-1]:
            record = json.loads(line)
            assert json.loads(json.dumps(record, sort_keys=True)) == record
            assert line == canonical_bytes(record)
            validate(record, "shard-record", "line")


def test_the_footer_hashes_the_lines_before_it_and_counts_the_outcomes() -> None:
    lines = result_to_bytes(everything(), FINGERPRINT).split(b"\n")[:-1]
    footer = json.loads(lines[-1])
    own_hash = footer.pop("footer_sha256")
    alone = json.dumps(footer, sort_keys=True, separators=(",", ":"))
    assert own_hash == hashlib.sha256(alone.encode()).hexdigest()
    assert footer == {
        "kind": "footer",
        "shard": 5,
        "fingerprint": FINGERPRINT,
        "rows": 5,
        "sha256": hashlib.sha256(b"".join(line + b"\n" for line in lines[:-1])).hexdigest(),
        "images": 2,
        "labels": 1,
        "abstentions": 1,
        "failures_by_kind": {"region": 1},
        "largest_annotation_id": 2**40,
    }


def test_two_outcomes_of_one_region_are_refused() -> None:
    twice = (label(region("1")), abstention(region("1")))
    with pytest.raises(ValueError, match="2 outcomes for 1 regions"):
        result_to_bytes(ShardResult(index=0, images=(), outcomes=twice), FINGERPRINT)


def test_a_result_must_answer_every_region_of_its_shard_once() -> None:
    result = shard_result(2)
    check_complete(shard_of(result), result)
    outcomes = result.outcomes
    foreign = failure(region("foreign"))
    for wrong in (
        outcomes[1:],
        (*outcomes, foreign),
        (*outcomes, outcomes[0]),
        outcomes[::-1],
        (foreign, *outcomes[1:]),
    ):
        with pytest.raises(RunError, match="shard 2: expected one outcome for each"):
            check_complete(shard_of(result), dataclasses.replace(result, outcomes=wrong))
    with pytest.raises(RunError, match="image rows"):
        check_complete(shard_of(result), dataclasses.replace(result, images=result.images[1:]))


@given(st.data())
def test_any_changed_cut_or_added_byte_is_noticed(data: st.DataObject) -> None:
    good = result_to_bytes(everything(), FINGERPRINT)
    at = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "double"]))
    if how == "flip":
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    else:
        bad = good[:at] if how == "cut" else good[: at + 1] + good
    try:
        read = result_from_bytes(bad, 5, FINGERPRINT)
    except DamagedShard:
        return
    # The footer's own counts are not hashed; a change there that still reads must not change the outcomes.
    assert read == everything()


def test_json_safe_leaves_good_values_alone() -> None:
    value: JsonValue = {"a": [1, 2.5, "NaN", None, True, {"b": -0.0}]}
    assert repr(json_safe(value)) == repr(value)


# Manifest and resume


def test_a_manifest_comes_back_from_its_bytes_and_fits_its_schema() -> None:
    original = manifest(4, header={"info": {"year": float("nan")}, "licenses": "odd"})
    data = manifest_to_bytes(original)
    validate(json.loads(data), "manifest", "manifest.json")
    again = manifest_from_bytes(data, "manifest.json")
    assert (again.fingerprint, manifest_to_bytes(again)) == (original.fingerprint, data)


def test_an_edited_manifest_is_noticed() -> None:
    data = manifest_to_bytes(manifest())
    for bad in (
        data.replace(b"0.4", b"0.5"),
        data[:-20],
        b"[]",
        data.replace(b'"format_version": 1', b'"format_version": 2'),
    ):
        with pytest.raises(RunError, match="manifest.json: .*another --out"):
            manifest_from_bytes(bad, "manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"threshold": 0.5}},
        {"rlabel_version": "0.2.0"},
        {"categories": ({"id": 7, "name": "cat"},)},
        {"header": {}},
    ],
)
def test_everything_that_decides_the_bytes_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert manifest(**change).fingerprint != manifest().fingerprint  # type: ignore[arg-type]


def test_the_plan_counts_what_it_takes() -> None:
    shards = [shard_of(shard_result(index)) for index in range(3)]
    plan = plan_summary(iter(shards))
    assert (plan.num_shards, plan.num_images, plan.num_regions) == (3, 9, sum(s.num_regions for s in shards))
    assert plan != plan_summary(shards[:2])
    assert plan.sha256 == hashlib.sha256((("0" * 64 + "\n") * 3).encode()).hexdigest()


def test_the_same_settings_continue_a_run(tmp_path: Path) -> None:
    committed_run(tmp_path, [shard_result(0)])
    before = (tmp_path / "manifest.json").read_bytes()
    again = begin_run(tmp_path, 1)
    assert (again.committed(), again.read(0)) == ({0}, shard_result(0))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_other_settings_are_refused_with_each_differing_field_and_nothing_is_touched(tmp_path: Path) -> None:
    committed_run(tmp_path, [shard_result(0)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other: JsonObject = {"threshold": 0.55, "prompt": "What is <region>?", "seed": 1}
    with pytest.raises(UsageError) as refused:
        RunDirectory.create_or_resume(Store.open(tmp_path), manifest(2, other))
    message = str(refused.value)
    for part in ("settings.threshold: 0.4 -> 0.55", "settings.seed: (absent) -> 1", "plan.num_shards: 1 -> 2", "--out"):
        assert part in message
    assert "prompt" not in message
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_long_differences_are_shortened() -> None:
    (line,) = differing_fields(manifest(), manifest(categories=({"id": 1, "name": "x" * 500},)))
    assert line.startswith("categories: [") and len(line) < 300


def test_a_folder_with_other_files_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_bytes(b"")
    with pytest.raises(UsageError, match="thesis.doc"):
        begin_run(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_an_empty_folder_or_one_with_hidden_files_is_a_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert begin_run(tmp_path, 1).committed() == set()


def test_opening_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a run directory"):
        RunDirectory.open(Store.open(tmp_path))


def test_a_run_travels_to_another_process_by_pickle(tmp_path: Path) -> None:
    run = pickle.loads(pickle.dumps(begin_run(tmp_path, 1)))
    assert run.commit(shard_result(0))
    assert RunDirectory.open(Store.open(tmp_path)).read(0) == shard_result(0)


# Commits


def test_files_of_shards_that_the_plan_does_not_have_are_none_of_the_run(tmp_path) -> None:
    run = committed_run(tmp_path, [shard_result(0), shard_result(1)])
    for name in ("000002", "000077", "1", "000001.old"):
        run.store.put(f"shards/{name}.jsonl", run.store.read(run.shard_path(1)))
    assert run.committed() == {0, 1}
    assert [result.index for result in run.results()] == [0, 1]


def test_a_shard_is_committed_once(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 2)
    assert not run.is_committed(1)
    assert run.commit(shard_result(1))
    assert run.is_committed(1)
    assert not run.commit(shard_result(1))
    assert run.committed() == {1}


def test_files_that_are_no_shards_are_not_counted(tmp_path: Path) -> None:
    run = committed_run(tmp_path, [shard_result(0)])
    for name in (".rlabel-tmp-1", "000001.jsonl~", "1.jsonl", "000009.jsonl"):
        (tmp_path / "shards" / name).write_bytes(b"")
    assert run.committed() == {0}


def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    run = committed_run(tmp_path, [shard_result(0), shard_result(1)])
    path = tmp_path / "shards" / "000001.jsonl"
    good = path.read_bytes()
    another = result_to_bytes(shard_result(1), "e" * 64)
    of_shard_0 = (tmp_path / "shards" / "000000.jsonl").read_bytes()
    for bad in (b"", good[:-1], good[:-40], good.replace(b"cat", b"cut", 1), good + b"\n", another, of_shard_0):
        path.write_bytes(bad)
        with pytest.raises(RunError, match=r"shards/000001.jsonl: damaged: .*rlabel repair"):
            run.read(1)
        with pytest.raises(RunError, match=r"shards/000001.jsonl: damaged"):
            run.merge()
    assert run.read(0) == shard_result(0)


def test_a_missing_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    for read in (run.read, run.read_footer, run.read_ends):
        with pytest.raises(RunError, match="000000.jsonl: shard 0 is not committed.*again"):
            read(0)


COMMIT_ALL = """
import sys, time
sys.path.insert(0, sys.argv[2])
from run_factories import begin_run, shard_result
run = begin_run(sys.argv[1], 60)
results = [shard_result(index, num_images=9, num_regions=20) for index in range(60) if not run.is_committed(index)]
for result in results:
    if result.index >= int(sys.argv[3]):
        time.sleep(600)  # whoever is to kill this process is late
    run.commit(result)
"""


def test_killed_and_continued_gives_the_same_bytes_as_undisturbed(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", COMMIT_ALL, str(killed), str(TESTS)]
    for num_before_kill in (1, 13, 31):
        worker = subprocess.Popen([*command, str(num_before_kill + 15)], cwd=TESTS.parent)
        give_up_at = time.monotonic() + 100
        while len(list(killed.glob("shards/*.jsonl"))) < num_before_kill:
            assert worker.poll() is None and time.monotonic() < give_up_at
            time.sleep(0.001)
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        run = RunDirectory.open(Store.open(killed))
        assert 0 < len(run.committed()) < 60
        for index in run.committed():
            assert run.read(index) == shard_result(index, num_images=9, num_regions=20)
    subprocess.run([*command, "60"], cwd=TESTS.parent, check=True, stdout=subprocess.DEVNULL, timeout=120)
    results = [shard_result(index, num_images=9, num_regions=20) for index in range(60)]
    fresh = committed_run(tmp_path / "fresh", results)
    for run in (fresh, RunDirectory.open(Store.open(killed))):
        run.merge()
    for name in ("labels.json", "abstained.jsonl", "failures.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
