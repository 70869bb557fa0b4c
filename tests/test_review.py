"""Decisions of a person, applied: the former label is kept, everything else stays byte for byte, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from label_factories import rlabel_here
from rlabel.errors import InputError, RunError
from rlabel.records import ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.review import apply_decisions, former_decisions, read_decisions
from rlabel.schema_files import validate
from run_factories import CATEGORIES, abstention, committed_run, failure, image_row, label, region, shard_result

SHAPE = [[4, 6, 24, 6, 24, 16, 4, 16]]


def small_run(folder: Path) -> RunDirectory:
    """Two labels, a failure with an outline and one without, and an abstention; the second label has no id of its own."""
    outcomes = (
        label(region("1", 1, segmentation=SHAPE), segmentation=SHAPE, score=0.25),
        label(region("row 2"), box=(1, 1, 5, 5)),
        failure(region("3", 3, segmentation=SHAPE)),
        abstention(region("4", 4, segmentation=SHAPE)),
        failure(region("5", 5)),
    )
    run = committed_run(folder, [ShardResult(index=0, images=(image_row(1), image_row(2)), outcomes=outcomes)])
    run.merge()
    return run


def decisions_file(folder: Path, run: RunDirectory, *rows: dict[str, Any], name: str = "d.json") -> str:
    document = {"format": "rlabel-review", "version": 1, "run": run.fingerprint, "decisions": list(rows)}
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


def said(key: str, decision: str, category_id: int | None = None) -> dict[str, Any]:
    return {"region_key": key, "decision": decision} | ({} if category_id is None else {"category_id": category_id})


def applied(run: RunDirectory, *files: str) -> dict[str, Any]:
    apply_decisions(run, read_decisions(files, run))
    path = run.store.local_path("labels.reviewed.json")
    assert path is not None
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def test_each_decision_makes_its_row_and_keeps_the_former_label(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    rows = [said("1", "category", 3), said("row 2", "accept"), said("3", "category", 1203), said("4", "category", 7)]
    document = applied(run, decisions_file(tmp_path, run, *rows))
    validate(document, "labels", "labels.reviewed.json")
    changed, accepted, from_failure, from_abstention = document["annotations"]
    assert (changed["id"], changed["category_id"], changed["score"]) == (1, 3, 1.0)
    kept = {key: value for key, value in changed["attributes"].items() if key.startswith(("former", "decided"))}
    assert kept == {
        "decided_by": "review",
        "former_status": "labeled",
        "former_category_id": 7,
        "former_score": 0.25,
        "former_decided_by": "embedding",
    }
    assert accepted["category_id"] == 7 and accepted["attributes"]["decided_by"] == "review"
    # the outline that failed is drawn, 20 x 10 pixels, and the abstention's own outline comes from the shard
    assert from_failure["bbox"] == [4, 6, 20, 10] and from_failure["area"] == 200
    assert from_failure["attributes"]["former_status"] == "failed"
    assert from_abstention["segmentation"] == SHAPE and from_abstention["attributes"]["text"] == "a thing"
    assert len({row["id"] for row in document["annotations"]}) == 4


def test_abstaining_takes_a_label_out_and_leaves_a_line_on_it(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    document = applied(run, decisions_file(tmp_path, run, said("1", "abstain"), said("4", "abstain")))
    assert [row["attributes"]["region_id"] for row in document["annotations"]] == [None]
    lines = [json.loads(line) for line in (tmp_path / "run" / "reviewed.jsonl").read_text().splitlines()]
    assert [(line["region_key"], line["former_status"]) for line in lines] == [("1", "labeled"), ("4", "abstained")]
    assert lines[0]["former_category_id"] == 7 and lines[0]["image_id"] == 1


def test_rows_that_nobody_decided_stay_byte_for_byte_and_twice_is_once(tmp_path: Path) -> None:
    results = [shard_result(0), shard_result(1)]
    run = committed_run(tmp_path / "run", results)
    run.merge()
    labels = [one for result in results for one in result.outcomes if type(one).__name__ == "Label"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    file = decisions_file(tmp_path, run, said(labels[1].key, "category", 1203))
    applied(run, file)
    first = (tmp_path / "run" / "labels.reviewed.json").read_bytes()
    applied(run, file)
    assert (tmp_path / "run" / "labels.reviewed.json").read_bytes() == first
    assert {path: path.read_bytes() for path in before} == before
    old = (tmp_path / "run" / "labels.json").read_bytes().split(b"\n")
    new = first.split(b"\n")
    assert len(old) == len(new) and len(labels) > 5
    assert len([1 for one, other in zip(old, new, strict=True) if one != other]) == 2  # info, and the label
    coco = COCO(str(tmp_path / "run" / "labels.reviewed.json"))
    assert len(coco.anns) == len(labels)


@pytest.mark.parametrize("outcomes", [(), (label(region("1")),)])
def test_runs_without_labels_before_or_after_are_whole_files(tmp_path: Path, outcomes: tuple[Any, ...]) -> None:
    run = committed_run(tmp_path / "run", [ShardResult(index=0, images=(image_row(1),), outcomes=outcomes)])
    run.merge()
    document = applied(run, decisions_file(tmp_path, run, *(said(one.key, "abstain") for one in outcomes)))
    assert document["annotations"] == [] and document["categories"] == list(CATEGORIES)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([said("77", "accept")], "77"),
        ([said("1", "category", 8)], r"8 \(region 1\)"),
        ([said("4", "accept")], "4: expected a label to accept, got an abstained"),
        ([said("5", "category", 7)], "5: expected an outline"),
        ([said("1", "accept"), said("1", "abstain")], "region 1: expected one decision"),
        ([said("1", "accept"), said("1", "accept")], "region 1: expected one decision"),
        ([said("1", "accept", 7)], r"decisions\[0\]"),
        ([said("1", "category")], r"decisions\[0\]"),
        ([{"region_key": 1, "decision": "accept"}], r"decisions\[0\]"),
        ([said("1", "delete")], r"decisions\[0\]"),
    ],
)
def test_what_cannot_be_applied_is_named_and_nothing_is_written(tmp_path: Path, rows: list[Any], named: str) -> None:
    run = small_run(tmp_path / "run")
    with pytest.raises(InputError, match=named):
        applied(run, decisions_file(tmp_path, run, *rows))
    assert not (tmp_path / "run" / "labels.reviewed.json").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [("[1]", "format"), ("{", "JSON"), ('{"format": "rlabel-review"}', "required"), ("[" * 100_000, "JSON")],
)
def test_a_file_that_is_no_review_is_named(tmp_path: Path, content: str, named: str) -> None:
    run = small_run(tmp_path / "run")
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(InputError, match=f"d.json.*{named}"):
        read_decisions([str(tmp_path / "d.json")], run)
    with pytest.raises(InputError, match="no such file"):
        read_decisions([str(tmp_path / "other.json")], run)


def test_a_review_of_another_run_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    other = committed_run(tmp_path / "other", [shard_result(0), shard_result(1)])
    with pytest.raises(InputError, match="expected decisions on the run"):
        read_decisions([decisions_file(tmp_path, other)], run)


def test_two_reviewers_may_agree_but_not_differ(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    one = decisions_file(tmp_path, run, said("1", "accept"), said("4", "abstain"), name="one.json")
    same = decisions_file(tmp_path, run, said("1", "accept"), said("row 2", "abstain"), name="same.json")
    other = decisions_file(tmp_path, run, said("1", "category", 3), name="other.json")
    assert set(read_decisions([one, same], run)) == {"1", "4", "row 2"}
    with pytest.raises(InputError, match=r"(?s)other.json: region 1.*accept \(.*one.json\) and category 3"):
        read_decisions([one, other], run)


def test_labels_of_other_shards_are_not_reviewed(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    path = tmp_path / "run" / "labels.json"
    lines = path.read_bytes().split(b"\n")
    decisions = {}
    for broken in (
        b"{}",
        b"\n".join(lines[:-4] + lines[-3:]),
        path.read_bytes().replace(run.fingerprint.encode(), b"0" * 64),
    ):
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"labels\.json: expected the labels merged"):
            apply_decisions(run, decisions)
    path.unlink()
    with pytest.raises(RunError, match="there is none"):
        apply_decisions(run, decisions)


def test_what_was_decided_before_can_be_read_again(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    assert former_decisions(run) == []
    rows = [said("1", "category", 3), said("row 2", "accept"), said("4", "abstain")]
    applied(run, decisions_file(tmp_path, run, *rows))
    assert [one.to_json() for one in former_decisions(run)] == rows
    for broken in ("{", "[1]", '{"region_key": "1", "decision": "keep"}', "[" * 100_000):
        (tmp_path / "run" / "reviewed.jsonl").write_text(broken)
        with pytest.raises(InputError, match=r"(?s)reviewed\.jsonl: expected a decision in each line.*Delete the file"):
            former_decisions(run)


def test_decisions_that_a_later_file_leaves_out_are_counted_as_dropped(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    first = decisions_file(tmp_path, run, said("1", "accept"), said("4", "abstain"), name="first.json")
    second = decisions_file(tmp_path, run, said("1", "abstain"), name="second.json")
    assert apply_decisions(run, read_decisions([first], run)).dropped == 0
    done = rlabel_here("review", [str(tmp_path / "run"), second])
    assert done.returncode == 0 and "1 region that an earlier review decided is undecided now" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["dropped"] == 1
    assert apply_decisions(run, read_decisions([second], run)).dropped == 0


def test_the_command_says_what_it_did_in_its_last_line(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    file = decisions_file(tmp_path, run, said("1", "accept"))
    done = rlabel_here("review", [str(tmp_path / "run"), file])
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["accepted"], last["labels"], last["undecided"]) == (1, 2, 4)
    assert last["file"].endswith("labels.reviewed.json")
    assert rlabel_here("review", [str(tmp_path), file]).returncode == 2
