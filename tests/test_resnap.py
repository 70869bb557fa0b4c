"""`rlabel snap`: a run's answers under another vocabulary, without the model, as a run of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_factories import Outcome as Ended
from label_factories import rlabel_here
from rlabel.errors import RunError, UsageError
from rlabel.records import Abstention, Caption, JsonValue, Label, Outcome, ShardResult, Snap
from rlabel.run.carried import NOTHING_CARRIED
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.run.records_io import line_to_outcome, outcome_to_line
from rlabel.run.resnap import (
    SnapJob,
    also_folders,
    open_snapped,
    open_source,
    refuse_overlap,
    snap_run,
    snapped_manifest,
)
from rlabel.run.snap_lines import NewSnap, _edited, snap_body, snapped, texts_of
from rlabel.storage import Store
from rlabel.vocabulary.embedding import Rows
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, Vocabulary, make_vocabulary
from run_factories import (
    abstention,
    begin_run,
    box_polygon,
    box_rle,
    committed_run,
    everything,
    failure,
    image_row,
    label,
    manifest,
    region,
    shard_result,
)  # fmt: skip

BEASTS = make_vocabulary(
    "beasts/of all kinds",
    [Category(category_id=70, name="feline", synonyms=("cat",)), Category(category_id=80, name="thing")],
)
LABELED = Snap(category_id=70, nearest_name="feline", similarity=1.0, margin=1.0, decided_by="phrase")
UNLABELED = Snap(
    category_id=None,
    nearest_name='a "f\u00e9line" \u2028',
    similarity=0.25,
    margin=0.125,
    decided_by=None,
    reason='"no", so',
)


class AxisEmbedder:
    """Puts a text that is known on an axis of its own, others between all; "broken" has no vector."""

    def __init__(self, *texts: str) -> None:
        self.axis_of = {text: axis for axis, text in enumerate(texts)}
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Rows:
        self.asked += texts
        rows = np.zeros((len(texts), len(self.axis_of) + 1), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[self.axis_of.get(text, -1)] = np.nan if text == "broken" else 1.0
        return rows


def job(where: Path, vocabulary: Vocabulary = BEASTS, **more: object) -> SnapJob:
    fields: dict[str, object] = {"threshold": 0.5, "margin": 0.0, "embedder": "axes", **more}
    return SnapJob(vocabulary=vocabulary, where=str(where), **fields)  # type: ignore[arg-type]


def snap_all(source: RunDirectory, where: Path, snapper: Snapper | None = None) -> RunDirectory:
    run = open_snapped(source, job(where))
    snap_run(source, run, lambda: snapper or Snapper(BEASTS, None), lambda: None)
    return run


def one_shard(folder: Path, outcomes: Sequence[Outcome], images: Sequence[int] = (1,), **more: object) -> RunDirectory:
    plan = PlanSummary(num_shards=1, num_images=len(images), num_regions=len(outcomes), sha256="b" * 64)
    run = RunDirectory.create_or_resume(Store.open(folder), manifest(plan=plan, **more))
    run.commit(ShardResult(index=0, images=tuple(image_row(one) for one in images), outcomes=tuple(outcomes)))
    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if not name.endswith("status.json")}


# One line


def odd_outcomes(text: str) -> list[Outcome]:
    odd = region(
        "1",
        1,
        segmentation=box_rle(1, 2, 3, 4),
        extra={"score": 0.5, "x": {"a": 1, "score": 2, "snap": {"text": '},"text":"'}}},
    )
    plain = region("2", 2, segmentation=box_rle(1, 2, 3, 4))
    shape = box_rle(1, 2, 3, 4)
    return [
        label(odd, text=text, segmentation=shape),
        label(plain, text=text, segmentation=shape),
        label(plain, "an id", text=text, segmentation=[[0.5, 0, 9, 0, 9, 9]]),
        replace(label(plain, text=text), raw_score=0.25, score=0.125),
        replace(label(plain, text=text), text_score=1e-06, area_px=1e20),
        abstention(plain, text=text),
        abstention(odd, text=text),
        Caption(
            region=odd, image_id=1, text=text, score=0.75, box_xywh=(1.0, 2.0, 3.0, 4.0), area_px=12.0, segmentation=shape
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("snap", [LABELED, UNLABELED, replace(LABELED, decided_by="embedding", similarity=0.75)])
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=30)
    | st.sampled_from(["\ud800 \u00fc", '},"text":"', ',"snap":{', "\\", "\u0642\u0637\u0629 \U0001f408\u200d\u2b1b"])
)
def test_an_edited_line_is_the_line_of_the_record_with_the_other_snap(snap: Snap, text: str) -> None:
    outcomes = odd_outcomes(text)
    lines = [outcome_to_line(outcome) for outcome in outcomes]
    body = b"".join(line + b"\n" for line in lines)
    assert list(texts_of(body)) == [text] * len(outcomes)
    new_body, num_labels, num_abstentions = snap_body(body, {text: NewSnap.of(snap)})
    sizes: dict[bytes, tuple[JsonValue, JsonValue]] = {b"1": (48, 64)}
    by_records = [snapped(line_to_outcome(line), snap, {}) for line in lines]
    by_records[5:7] = [snapped(outcome, snap, sizes) for outcome in outcomes[5:7]]
    assert new_body.split(b"\n")[:-1] == [outcome_to_line(outcome) for outcome in by_records]
    assert (num_labels, num_abstentions) == ((0, 8) if snap.category_id is None else (8, 0))


def test_ordinary_labels_and_abstentions_are_edited_not_parsed() -> None:
    outcomes = odd_outcomes("a cat")
    edited = [
        _edited(outcome_to_line(outcome), NewSnap.of(LABELED), NOTHING_CARRIED) is not None for outcome in outcomes
    ]
    assert edited == [False, True, True, True, True, True, True, False]
    assert _edited(outcome_to_line(outcomes[5]), NewSnap.of(UNLABELED), NOTHING_CARRIED) is not None
    polygons = abstention(region("3", 3, segmentation=box_polygon(1, 2, 3, 4)))
    assert _edited(outcome_to_line(polygons), NewSnap.of(LABELED), NOTHING_CARRIED) is None


def test_a_snapped_label_keeps_all_that_the_snap_does_not_decide() -> None:
    old = replace(label(region("1", 1), segmentation=[[0, 0, 9, 0, 9, 9]]), raw_score=0.25)
    new = snapped(old, replace(LABELED, decided_by="embedding", similarity=0.5), {})
    assert isinstance(new, Label)
    assert (new.category_id, new.score, new.raw_score) == (70, 0.375, None)  # 0.75 of the text, times 0.5
    assert new.evidence == replace(old.evidence, candidates=())
    assert replace(
        new, category_id=7, score=old.score, raw_score=0.25, snap=old.snap, evidence=old.evidence
    ) == old  # fmt: skip
    abstained = snapped(old, UNLABELED, {})
    assert isinstance(abstained, Abstention)
    assert (abstained.text, abstained.text_score, abstained.snap) == (old.text, old.text_score, UNLABELED)


@pytest.mark.parametrize(
    ("given_shape", "box", "size", "expected"),
    [
        (None, (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        (box_polygon(4, 6, 20, 10), (4.0, 6.0, 20.0, 10.0), (48, 64), box_polygon(4, 6, 20, 10)),
        (box_polygon(4, 6, 20, 10), (4.0, 6.0, 20.0, 10.0), (None, None), box_polygon(4, 6, 20, 10)),
        # Mended polygons are drawn: pycocotools would take a part of four numbers for a box.
        ([*box_polygon(4, 6, 20, 10), [1, 2, 3, 4]], (4.0, 6.0, 20.0, 10.0), (48, 64), box_rle(4, 6, 20, 10)),  # type: ignore[misc]
        ([*box_polygon(4, 6, 20, 10), [1, 2, 3, 4]], (4.0, 6.0, 20.0, 10.0), (None, None), None),  # type: ignore[misc]
        (
            {"size": [48, 64], "counts": [48 * 2 + 3, 5, 48 * 62 - 8]},
            (2.0, 3.0, 1.0, 5.0),
            (48, 64),
            box_rle(2, 3, 1, 5),
        ),
        (box_rle(1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), (None, None), box_rle(1, 2, 3, 4)),
        (box_rle(1, 2, 0, 0), (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        ([[1, 2]], (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        ("nonsense", (1.0, 2.0, 3.0, 4.0), (48, 64), None),
    ],
)
def test_an_abstention_that_becomes_a_label_gets_its_segmentation_as_the_labeler_writes_it(
    given_shape: JsonValue,
    box: tuple[float, float, float, float],
    size: tuple[JsonValue, JsonValue],
    expected: JsonValue,
) -> None:
    old = replace(abstention(region("1", 1, segmentation=given_shape)), box_xywh=box)
    new = snapped(old, LABELED, {b"1": size})
    assert isinstance(new, Label)
    assert new.segmentation == expected


# A run


def test_answers_get_the_new_names_and_failures_stay(tmp_path: Path) -> None:
    outcomes = [
        label(region("1", 1), text="a cat"),
        label(region("2", 2), text="a dog"),
        abstention(region("3", 3), text="A thing."),
        failure(region("4", 4)),
    ]
    source = one_shard(tmp_path / "old", outcomes)
    run = snap_all(source, tmp_path / "new")
    counts = run.merge()
    assert (counts.labels, counts.abstentions, counts.failures) == (2, 1, 1)
    labels = json.loads((tmp_path / "new/labels.json").read_bytes())
    assert [(row["id"], row["category_id"]) for row in labels["annotations"]] == [(1, 70), (3, 80)]
    assert [row["name"] for row in labels["categories"]] == ["feline", "thing"]
    assert labels["info"]["rlabel"]["settings"]["snapped_from"] == source.fingerprint
    (line,) = (tmp_path / "new/abstained.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "no name or synonym is in the answer, and there is no embedder"
    assert json.loads((tmp_path / "new/failures.jsonl").read_text())["reason"] == "1.jpg: cut off"


def test_captions_become_labels(tmp_path: Path) -> None:
    caption = Caption(
        region=region("1", 1), image_id=1, text="a cat on a thing", score=0.5, box_xywh=(1.0, 2.0, 3.0, 4.0), area_px=12.0,
        segmentation=[[0, 0, 9, 0, 9, 9]],
    )  # fmt: skip
    source = one_shard(
        tmp_path / "old", [caption], settings={"task": "caption", "threshold": None, "margin": None}, categories=()
    )
    assert open_source(str(tmp_path / "old")).manifest.task == "caption"
    run = snap_all(source, tmp_path / "new")
    (made,) = run.read(0).outcomes
    assert isinstance(made, Label)
    assert (made.category_id, made.text_score, made.score, made.segmentation) == (70, 0.5, 0.5, caption.segmentation)
    assert run.manifest.task == "classify" and run.merge().labels == 1


def test_a_run_stopped_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = committed_run(tmp_path / "old", [shard_result(index) for index in range(40)])
    before = files_of(tmp_path / "old")
    snap_all(source, tmp_path / "whole").merge()
    cut = open_snapped(source, job(tmp_path / "cut"))
    beats: list[int] = []

    def stop_at_three() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        snap_run(source, cut, lambda: Snapper(BEASTS, None), stop_at_three)
    assert 3 <= len(cut.committed()) < 40
    snap_all(source, tmp_path / "cut").merge()
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")
    assert files_of(tmp_path / "old") == before


def test_a_run_whose_texts_come_in_many_groups_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"cat {number}" if number % 3 else "an odd cat" for number in range(60)]
    results = [
        ShardResult(index=index, images=(image_row(index),), outcomes=tuple(
            label(region(f"{index}/{number}", None), index, text=texts[index * 6 + number]) for number in range(6)
        ))
        for index in range(10)
    ]  # fmt: skip
    source = committed_run(tmp_path / "old", results)
    embedder = AxisEmbedder("feline", "cat", "thing")
    snap_all(source, tmp_path / "at once", Snapper(BEASTS, embedder))
    monkeypatch.setattr("rlabel.run.resnap._MAX_TEXTS", 5)
    snap_all(source, tmp_path / "in groups", Snapper(BEASTS, AxisEmbedder("feline", "cat", "thing")))
    assert files_of(tmp_path / "at once") == files_of(tmp_path / "in groups")
    assert len(embedder.asked) == len(set(embedder.asked))


def test_other_thresholds_are_another_run(tmp_path: Path) -> None:
    source = committed_run(tmp_path / "old", [shard_result(0)])
    open_snapped(source, job(tmp_path / "new"))
    with pytest.raises(UsageError, match="settings.threshold: 0.5 -> 0.75"):
        open_snapped(source, job(tmp_path / "new", threshold=0.75))
    other = make_vocabulary("beasts/of all kinds", BEASTS.categories[:1])
    with pytest.raises(UsageError, match="settings.vocabulary_sha256"):
        open_snapped(source, job(tmp_path / "new", other))


def test_what_was_calibrated_for_the_old_names_is_not_taken_over(tmp_path: Path) -> None:
    old = manifest(settings={"task": "classify", "calibrator_sha256": "c" * 64, "min_score": 0.5, "question": "What?"})
    new = snapped_manifest(old, old.fingerprint, job(tmp_path)).settings
    assert new["question"] == "What?" and not {"calibrator_sha256", "min_score"} & new.keys()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("\U0001f436\u2026?!", "no words"),
        ("broken", "not a number"),
        ("x" * 10_000, "less similar"),
        ("blorp " * 1_700, "less similar"),
        ("\u0642\u0637\u0629 " * 2_500, "less similar"),
        ("not a cat", "denies"),
    ],
)
def test_answers_that_mean_nothing_abstain_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    source = one_shard(tmp_path / "old", [label(region("1", 1), text=text)])
    run = snap_all(source, tmp_path / "new", Snapper(BEASTS, AxisEmbedder("feline", "cat", "thing"), 0.5))
    (outcome,) = run.read(0).outcomes
    assert isinstance(outcome, Abstention) and outcome.text == text
    assert outcome.snap.reason is not None and reason in outcome.snap.reason
    assert run.merge().abstentions == 1


# What is refused


def test_a_folder_that_is_no_run_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a run directory"):
        open_source(str(tmp_path / "nothing"))


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    committed_run(tmp_path, [shard_result(0)])
    (tmp_path / "manifest.json").write_text('{"settings": {}}')
    with pytest.raises(RunError, match="manifest.json"):
        open_source(str(tmp_path))


def test_a_run_without_texts_of_regions_is_a_wrong_call(tmp_path: Path) -> None:
    plan = PlanSummary(num_shards=0, num_images=0, num_regions=0, sha256="b" * 64)
    RunDirectory.create_or_resume(Store.open(tmp_path), manifest(settings={"task": "refer"}, plan=plan))
    with pytest.raises(UsageError, match="got one of refer"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-20], lambda data: data.replace(b"cat", b"cow", 1), lambda data: b""]
)
def test_a_damaged_shard_is_named_and_what_is_committed_stays(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    source = committed_run(tmp_path / "old", [everything(index) for index in range(3)])
    path = tmp_path / "old/shards/000001.jsonl"
    path.write_bytes(harm(path.read_bytes()))
    run = open_snapped(source, job(tmp_path / "new"))
    with pytest.raises(RunError, match="000001.jsonl: damaged"):
        snap_run(source, run, lambda: Snapper(BEASTS, None), lambda: None)


def test_a_shard_of_other_records_is_named(tmp_path: Path) -> None:
    source = begin_run(tmp_path / "old", 1)
    body = b'{"kind":"label","text":"x"}\n'
    footer = committed_run(tmp_path / "other", [everything(0)]).read_footer(0)
    source.commit_body(body, footer)
    run = open_snapped(source, job(tmp_path / "new"))
    with pytest.raises(RunError, match="000000.jsonl: expected the records of a labeling run"):
        snap_run(source, run, lambda: Snapper(BEASTS, None), lambda: None)


def test_an_unfinished_run_needs_to_be_asked_for_and_can_be_completed(tmp_path: Path) -> None:
    source = begin_run(tmp_path / "old", 3)
    for index in (0, 2):
        source.commit(shard_result(index))
    with pytest.raises(RunError, match="1 of 3 shards missing"):
        open_source(str(tmp_path / "old"))
    run = snap_all(open_source(str(tmp_path / "old"), partial=True), tmp_path / "new")
    assert run.committed() == {0, 2}
    run.merge(partial=True)
    source.commit(shard_result(1))
    snap_all(source, tmp_path / "new").merge()
    snap_all(source, tmp_path / "at once").merge()
    assert results_of(tmp_path / "new") == results_of(tmp_path / "at once")


@pytest.mark.parametrize(
    ("run", "out"),
    [
        ("run", "run"),
        ("run", "run/"),
        ("run", "run/new"),
        ("a/run", "a"),
        ("run", "x/../run"),
        ("memory://a/run", "memory://a/run/b"),
    ],
)
def test_a_new_run_in_the_old_one_is_refused(
    run: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="apart from the run"):
        refuse_overlap(run, out)


def test_a_new_run_beside_the_old_one_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_overlap("run", "run-2")
    refuse_overlap("a/run", "a/new")
    refuse_overlap("memory://a/run", "memory://b")


def test_further_vocabularies_have_folders_of_their_own() -> None:
    same = [make_vocabulary(name, BEASTS.categories) for name in ("a", "a", "../b", "\u00fc", "a-2")]
    folders = also_folders("s3://x/run/", same)
    assert [folder.removeprefix("s3://x/run/also/") for folder in folders] == ["a", "a-2", "b", "vocabulary", "a-2-2"]


# The command


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that calls `rlabel` with an embedder of three axes."""
    monkeypatch.setattr("rlabel.cli.snap._embedder", lambda *_: AxisEmbedder("feline", "cat", "thing"))
    names = [{"id": one.category_id, "name": one.name, "synonyms": list(one.synonyms)} for one in BEASTS.categories]
    (tmp_path / "beasts.json").write_text(json.dumps({"name": "beasts", "categories": names}))
    (tmp_path / "dogs.txt").write_text("dog\n")

    def call(command: str, *arguments: str) -> Ended:
        return rlabel_here(command, [argument.replace("{}", str(tmp_path)) for argument in arguments])

    return call


def test_the_command_writes_runs_that_status_counts(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    committed_run(tmp_path / "old", [shard_result(index) for index in range(3)])
    before = files_of(tmp_path / "old")
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--also", "{}/dogs.txt", "--out", "{}/new")
    done = invoke(*command)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["state"] == "done"
    assert document["labels"] + document["abstentions"] + document["failures"] == document["regions"] == 24
    (also,) = document["also"]
    assert also["file"] == str(tmp_path / "new/also/dogs/labels.json") and Path(also["file"]).is_file()
    status = invoke("status", "{}/new", "--json")
    assert json.loads(status.stdout)["labels"] == document["labels"] > 0
    assert files_of(tmp_path / "old") == before
    after = results_of(tmp_path / "new")
    assert invoke(*command).returncode == 0
    assert results_of(tmp_path / "new") == after


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--out", "{}/old/new"), 2, "apart from the run"),
        (("--out", "{}/new", "--threshold", "2"), 2, "snapping threshold"),
        (("--out", "{}/new", "--margin", "nan"), 2, "snapping margin"),
        (("--out", "{}/new", "--also", "{}/gone.json"), 1, "gone.json"),
        (("--out", "{}"), 2, "apart from the run"),
        (("--out", "{}/new", "--embedder", "{}/gone"), 1, "no such folder"),
        (("--out", "{}/full"), 2, "expected an empty folder"),
    ],
)
def test_a_wrong_call_ends_before_anything_is_written(  # type: ignore[no-untyped-def]
    invoke, tmp_path: Path, more: tuple[str, ...], code: int, words: str
) -> None:
    committed_run(tmp_path / "old", [shard_result(0)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    before = files_of(tmp_path)
    done = invoke("snap", "{}/old", "--vocabulary", "{}/beasts.json", *more)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and done.stdout == "" and "Traceback" not in done.stderr
    assert files_of(tmp_path) == before


def test_a_partial_run_says_what_is_missing(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    begin_run(tmp_path / "old", 2).commit(shard_result(1))
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--out", "{}/new")
    refused = invoke(*command)
    assert refused.returncode == 1 and "--partial" in refused.stderr
    done = invoke(*command, "--partial")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["state"] == "stopped"
    assert "1 of 2 shards are not there yet" in done.stderr
