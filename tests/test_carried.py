"""`rlabel snap`: what a new run keeps of likelihoods and calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from label_factories import rlabel_here
from rlabel.errors import InputError
from rlabel.records import Abstention, JsonObject, Label, LikelyCategory, Outcome, ShardResult, Snap
from rlabel.run.carried import Carried, carried_over
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.run.records_io import line_to_outcome, outcome_to_line
from rlabel.run.resnap import SnapJob, carried_to, open_snapped, scores_of, snap_run, snapped_manifest
from rlabel.run.snap_lines import NewSnap, snap_body
from rlabel.storage import Store
from rlabel.vocabulary.calibration import Calibrator, calibrator_to_bytes, made_for
from rlabel.vocabulary.likelihood import likelihood_score
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, Vocabulary, make_vocabulary
from run_factories import CATEGORIES, abstention, box_rle, image_row, label, manifest, region

SAME = make_vocabulary(
    "same",
    [Category(category_id=7, name="cat", synonyms=("kitty",)), Category(category_id=3, name="dog"), Category(category_id=1203, name="überraschungsei")],
)  # fmt: skip
OTHER = make_vocabulary(
    "other",
    [
        Category(category_id=1, name="wolf"),
        Category(category_id=2, name="pet", synonyms=("kitty", "dog")),
        Category(category_id=4, name="überraschungsei"),
    ],
)
SHAPE = box_rle(4, 6, 20, 10)


def text_of(category_id: int | None, reason: str | None = None) -> Snap:
    """What a text alone was snapped to."""
    name = next((one.name for one in (*SAME.categories, *OTHER.categories) if one.category_id == category_id), "cat")
    decided_by = None if category_id is None else "exact"
    return Snap(
        category_id=category_id, nearest_name=name, similarity=1.0, margin=1.0, decided_by=decided_by, reason=reason
    )  # type: ignore[arg-type]


def likely(*pairs: tuple[int, float]) -> tuple[LikelyCategory, ...]:
    return tuple(LikelyCategory(category_id=one, logprob=logprob) for one, logprob in pairs)


def hybrid(key: str = "1", *candidates: tuple[int, float], text: str = "a cat") -> Label:
    """A label of a run with --decoding hybrid."""
    made = label(region(key, int(key), segmentation=SHAPE), segmentation=SHAPE, text=text)
    found = likely(*candidates)
    score = likelihood_score(found, found[0].category_id) if found else made.score
    return replace(made, evidence=replace(made.evidence, candidates=found), score=score)


def carried_to_vocabulary(vocabulary: Vocabulary) -> Carried:
    return carried_over(CATEGORIES, vocabulary)


def snapped_line(outcome: Outcome, snap: Snap, carried: Carried) -> Outcome:
    body, num_labels, num_abstentions = snap_body(
        outcome_to_line(outcome) + b"\n", {outcome.text: NewSnap.of(snap)}, carried  # type: ignore[union-attr]
    )  # fmt: skip
    made = line_to_outcome(body[:-1])
    assert (num_labels, num_abstentions) == ((1, 0) if isinstance(made, Label) else (0, 1))
    return made


def test_under_the_same_names_nothing_changes() -> None:
    for old in (hybrid("1", (3, -0.75), (7, -0.5)), hybrid("2", (7, -0.25)), hybrid("3")):
        first = old.evidence.candidates[0].category_id if old.evidence.candidates else 7
        said = text_of(7)
        expected = replace(old, category_id=first, score=old.score if old.evidence.candidates else 0.75)
        decided = (
            said
            if first == 7
            else replace(said, category_id=3, nearest_name="dog", similarity=0.0, margin=0.0, decided_by="likelihood")
        )
        assert snapped_line(old, said, carried_to_vocabulary(SAME)) == replace(expected, snap=decided)  # fmt: skip


def test_names_that_are_one_category_now_are_as_likely_as_both() -> None:
    snap, candidates = carried_to_vocabulary(OTHER).choose(text_of(None), likely((3, -2.0), (1203, -0.5), (7, -1.0)))
    # In the old order, the best first: what they were ranked by is not on record.
    assert [one.category_id for one in candidates] == [2, 4]
    assert candidates[0].logprob == pytest.approx(math.log(math.exp(-2.0) + math.exp(-1.0)), abs=1e-6)
    assert (snap.category_id, snap.nearest_name, snap.decided_by) == (2, "pet", "likelihood")


def test_candidates_without_a_place_are_left_out_and_the_text_decides_where_the_best_is_one() -> None:
    carried = carried_to_vocabulary(make_vocabulary("dogs", [Category(category_id=5, name="dog")]))
    assert carried.choose(text_of(None), likely((3, -0.5), (7, -0.75))) == (
        replace(text_of(5), nearest_name="dog", similarity=0.0, margin=0.0, decided_by="likelihood"),
        likely((5, -0.5)),
    )
    said = text_of(None, "too far")
    assert carried.choose(said, likely((7, -0.5), (3, -0.75))) == (said, ())
    made = snapped_line(hybrid("1", (7, -0.5), (3, -0.75)), said, carried)
    assert isinstance(made, Abstention) and made.evidence.candidates == ()


def test_a_text_that_names_what_the_model_was_not_asked_about_decides() -> None:
    made = snapped_line(hybrid("1", (7, -0.5)), text_of(1), carried_to_vocabulary(OTHER))
    assert isinstance(made, Label)
    assert (made.category_id, made.evidence.candidates, made.score) == (1, (), 0.75)


def test_a_denial_stays_one() -> None:
    said = text_of(None, "the answer denies that there is anything")
    assert carried_to_vocabulary(SAME).choose(said, likely((7, -0.5))) == (said, likely((7, -0.5)))


def test_an_abstention_with_a_likely_name_becomes_a_label_with_its_mask() -> None:
    old = abstention(region("1", 1, segmentation=SHAPE), text="blorp")
    old = replace(old, evidence=replace(old.evidence, candidates=likely((3, -0.5))))
    made = snapped_line(old, text_of(None, "too far"), carried_to_vocabulary(SAME))
    assert isinstance(made, Label)
    assert (made.category_id, made.segmentation, made.score) == (3, SHAPE, 0.606531)


def test_categories_that_are_no_rows_of_names_carry_nothing() -> None:
    odd: list[JsonObject] = [{"id": "7", "name": "cat"}, {"id": 7, "name": 5, "synonyms": "cat"}, {"name": "cat"}, {}]
    carried = carried_over(odd, SAME)
    assert carried.choose(text_of(7), likely((7, -0.5))) == (text_of(7), ())


# Calibration


def job(where: Path, **more: object) -> SnapJob:
    fields: dict[str, object] = {"vocabulary": SAME, "threshold": 0.5, "margin": 0.0, "embedder": "none", **more}
    return SnapJob(where=str(where), **fields)  # type: ignore[arg-type]


def run_of(folder: Path, outcomes: Sequence[Outcome], settings: JsonObject) -> RunDirectory:
    plan = PlanSummary(num_shards=1, num_images=1, num_regions=len(outcomes), sha256="b" * 64)
    run = RunDirectory.create_or_resume(Store.open(folder), manifest(settings=settings, plan=plan))
    run.commit(ShardResult(index=0, images=(image_row(1),), outcomes=tuple(outcomes)))
    return run


def calibrator_for(source: RunDirectory, asked: SnapJob) -> Calibrator:
    """One that gives 0.25 to labels below 0.5 and 0.875 to the others."""
    new = snapped_manifest(source.manifest, source.fingerprint, asked)
    return Calibrator(
        method="isotonic", starts=(0.0, 0.5), values=(0.25, 0.875), made_for=made_for(new.settings, new.categories)
    )


def test_a_calibrator_that_fits_is_applied_again_and_low_scores_abstain(tmp_path: Path) -> None:
    sure, unsure = label(region("1", 1)), replace(label(region("2", 2)), text_score=0.125)
    sure, unsure = (replace(one, evidence=replace(one.evidence, candidates=())) for one in (sure, unsure))
    source = run_of(tmp_path / "old", [sure, unsure], {"calibrator_sha256": "c" * 64})
    fitted = calibrator_for(source, job(tmp_path / "new"))
    asked = job(tmp_path / "new", calibrator=fitted, min_score=0.5)
    assert scores_of(source, asked) == []
    run = open_snapped(source, asked)
    snap_run(source, run, lambda: Snapper(SAME, None, 0.5), lambda: None, carried_to(source, asked))
    first, second = run.read(0).outcomes
    assert isinstance(first, Label) and (first.score, first.raw_score) == (0.875, 0.75)
    assert isinstance(second, Abstention) and second.snap.reason == "the score of 'cat', 0.25, is below 0.5"
    assert run.merge().abstentions == 1
    assert (run.manifest.settings["calibrator_sha256"], run.manifest.settings["min_score"]) == (fitted.sha256, 0.5)


def test_scores_that_are_not_calibrated_any_more_are_said_to_be(tmp_path: Path) -> None:
    source = run_of(
        tmp_path / "old", [], {"calibrator_sha256": "c" * 64, "vocabulary_sha256": SAME.sha256, "vocabulary": "same"}
    )
    (note,) = scores_of(source, job(tmp_path / "new"))
    assert "not calibrated" in note and "Pass that calibrator (cccccccccccc) with --calibrator" in note
    (note,) = scores_of(source, job(tmp_path / "new", vocabulary=OTHER))
    assert "not calibrated" in note and "fitted for another vocabulary" in note
    assert scores_of(run_of(tmp_path / "plain", [], {"task": "classify"}), job(tmp_path / "new")) == []
    fitted = calibrator_for(source, job(tmp_path / "new"))
    with pytest.raises(InputError, match='fitted for the vocabulary "same"'):
        scores_of(source, job(tmp_path / "new", vocabulary=OTHER, calibrator=fitted))


def test_the_command_calibrates_or_says_that_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlabel.cli.snap._embedder", lambda *_: None)  # words decide here
    one = hybrid("1", (7, -0.25), text="cat")
    source = run_of(tmp_path / "old", [one], {"calibrator_sha256": "c" * 64, "threshold": 0.5, "margin": 0.0})
    (tmp_path / "names.json").write_text(
        json.dumps({"name": "same", "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]})
    )
    command = [str(tmp_path / "old"), "--vocabulary", str(tmp_path / "names.json"), "--thesaurus", "none"]
    plain = rlabel_here("snap", [*command, "--out", str(tmp_path / "plain")])
    assert plain.returncode == 0 and "the scores are not calibrated" in plain.stderr
    assert json.loads(plain.stdout.splitlines()[-1])["calibrated"] is False
    made = RunDirectory.open(Store.open(tmp_path / "plain")).manifest
    fitted = Calibrator(
        method="isotonic", starts=(0.0,), values=(0.625,), made_for=made_for(made.settings, made.categories)
    )
    (tmp_path / "calibrator.json").write_bytes(calibrator_to_bytes(fitted))
    more = ["--calibrator", str(tmp_path / "calibrator.json"), "--out", str(tmp_path / "calibrated")]
    done = rlabel_here("snap", [*command, *more])
    assert done.returncode == 0 and "not calibrated" not in done.stderr, done.stderr
    (row,) = json.loads((tmp_path / "calibrated/labels.json").read_bytes())["annotations"]
    assert (row["score"], row["attributes"]["raw_score"]) == (0.625, 0.778801)
    assert row["attributes"]["candidate_share"] == 1.0
    wrong = replace(fitted, made_for={**fitted.made_for, "question": "Who?"})
    (tmp_path / "calibrator.json").write_bytes(calibrator_to_bytes(wrong))
    refused = rlabel_here("snap", [*command, *more[:2], "--out", str(tmp_path / "refused")])
    assert refused.returncode == 1 and "fitted for question" in refused.stderr and not (tmp_path / "refused").exists()
    assert source.read(0).outcomes == (one,)
