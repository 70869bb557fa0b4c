"""A run's answers under another vocabulary, without the model, as a run of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from rlabel.errors import RunError, UsageError
from rlabel.records import Abstention, Caption, Label, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.run.resnap import also_folders, open_snapped, open_source, refuse_overlap, snap_run, snapped_manifest
from rlabel.run.snap_lines import distinct_texts_of
from rlabel.storage import Store
from rlabel.vocabulary.embedding import Rows
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import make_vocabulary
from run_factories import (
    abstention,
    begin_run,
    committed_run,
    everything,
    failure,
    image_row,
    label,
    manifest,
    region,
    shard_result,
)
from snap_factories import BEASTS, AxisEmbedder, files_of, job, one_shard, results_of, snap_all


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


def run_of_odd_texts(folder: Path, num_shards: int) -> RunDirectory:
    """Return a run with one answer a shard, which no word decides."""
    images = [image_row(index) for index in range(num_shards)]
    labels = [label(region(f"{index}", None), index, text=f"blorp {index}") for index in range(num_shards)]
    pairs = enumerate(zip(images, labels, strict=True))
    results = [ShardResult(index=index, images=(image,), outcomes=(one,)) for index, (image, one) in pairs]
    return committed_run(folder, results)


def test_texts_are_embedded_while_others_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = run_of_odd_texts(tmp_path / "old", 6)
    is_embedded = Event()

    class Telling(AxisEmbedder):
        def embed(self, texts: Sequence[str]) -> Rows:
            is_embedded.set()
            return super().embed(texts)

    bodies_read = []

    def patient(body: bytes) -> list[str]:
        bodies_read.append(body)
        assert len(bodies_read) < 6 or is_embedded.wait(60)
        return distinct_texts_of(body)

    monkeypatch.setattr("rlabel.run.resnap._FEW_TEXTS", 1)
    monkeypatch.setattr("rlabel.run.resnap.distinct_texts_of", patient)
    run = snap_all(source, tmp_path / "new", Snapper(BEASTS, Telling("feline", "cat", "thing")))
    assert len(run.committed()) == 6 == len(bodies_read)


def test_a_damaged_shard_is_told_of_before_the_texts_of_others_are_embedded(tmp_path: Path) -> None:
    source = run_of_odd_texts(tmp_path / "old", 3)
    (tmp_path / "old/shards/000002.jsonl").write_bytes(b"")
    embedder = AxisEmbedder("feline", "cat", "thing")
    with pytest.raises(RunError, match="000002.jsonl: damaged"):
        snap_all(source, tmp_path / "new", Snapper(BEASTS, embedder))
    assert embedder.asked == []


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
