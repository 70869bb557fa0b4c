"""Fitting calibrators on runs whose truth is known exactly, and `rlabel calibrate` from the outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from calibration_factories import save_run
from rlabel.cli.calibrate import calibrate as command
from rlabel.errors import InputError, RunError, UsageError
from rlabel.evaluation.calibrating import CALIBRATED, Calibration, calibrate
from rlabel.evaluation.fitting import METHODS, fit, predict
from rlabel.evaluation.judged_labels import ScoredRun, first_part, labels_of, read_scored_run
from rlabel.evaluation.reliability import reliability
from rlabel.report.reliability import calibration_to_text
from rlabel.vocabulary.calibration import calibrator_to_bytes, load_calibrator

pytestmark = pytest.mark.timeout(300)


def overconfident(score: float) -> float:
    return score**3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run of 900 labels of which a score's third power is right."""
    return save_run(tmp_path_factory.mktemp("run") / "run", overconfident, num_images=150, per_image=6)


@pytest.fixture(scope="module")
def run(saved: tuple[str, str]) -> ScoredRun:
    return read_scored_run(*saved)


@pytest.fixture(scope="module")
def calibration(run: ScoredRun) -> Calibration:
    return calibrate(run, precision=0.6, confidence=0.9)


# Reading


def test_regions_are_judged_and_those_without_a_label_stay_in_the_count(tmp_path: Path) -> None:
    run = read_scored_run(*save_run(tmp_path / "run", lambda _: 1.0, num_images=10, abstain_every=5))
    labels = labels_of(run.regions)
    assert (len(run.regions), len(labels.score_N), labels.num_regions) == (50, 40, 50)
    assert labels.is_right_N.all() and len(set(labels.image_N.tolist())) == 10


def test_images_are_parted_by_a_hash_and_never_across() -> None:
    ids = [str(i) for i in range(100)]
    first = first_part(ids, seed=0, fraction=0.5)
    assert len(first) == 50 and first == first_part(list(reversed(ids)), 0, 0.5)
    assert first != first_part(ids, seed=1, fraction=0.5)
    assert len(first_part(ids, 0, 0.2)) == 20


# Fitting


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_how_often_labels_are_right(run: ScoredRun, method: str, tmp_path: Path) -> None:
    fitted = fit(labels_of(run.regions), [one for one in METHODS if one == method])
    assert fitted.calibrator.method == method
    fresh = read_scored_run(*save_run(tmp_path / "new", overconfident, num_images=200, per_image=10, seed=9))
    labels = labels_of(fresh.regions)
    score_N = predict(fitted.calibrator, labels.features)
    assert np.abs(score_N - labels.score_N**3).mean() < 0.05  # what is really so
    assert reliability(labels.score_N, labels.is_right_N).ece > 0.2
    assert reliability(score_N, labels.is_right_N).ece < 0.06


def test_scores_that_are_right_already_stay_nearly_as_they_are(tmp_path: Path) -> None:
    run = read_scored_run(*save_run(tmp_path / "run", lambda score: score, num_images=150, per_image=6))
    labels = labels_of(run.regions)
    score_N = predict(fit(labels).calibrator, labels.features)
    assert np.abs(score_N - labels.score_N).mean() < 0.05


def test_features_that_tell_more_are_found_and_used_though_half_the_labels_lack_them(tmp_path: Path) -> None:
    made = save_run(tmp_path / "run", lambda score: 0.3 + 0.4 * score, 120, with_evidence=True)
    labels = labels_of(read_scored_run(*made).regions)
    fitted = fit(labels)
    assert fitted.calibrator.method in ("logistic", "logistic_isotonic")
    names = {one.name for one in fitted.calibrator.weights}
    assert "min_logprob" in names
    assert not names & {"similarity", "agreement", "decided_by=exact"}  # the same for all, or missing for all
    by_score = fit(labels, ["logistic_score"])
    assert fitted.tried[0].log_loss < by_score.tried[0].log_loss - 0.1


def test_what_is_taken_is_as_good_as_the_best_and_the_rest_is_told(run: ScoredRun) -> None:
    fitted = fit(labels_of(run.regions))
    losses = [one.log_loss for one in fitted.tried]
    assert losses[1:] == sorted(losses[1:]) and {one.method for one in fitted.tried} == set(METHODS)
    assert fitted.calibrator.method == fitted.tried[0].method and losses[0] <= min(losses) + 0.01


def test_of_methods_that_do_as_well_the_simplest_is_taken(run: ScoredRun) -> None:
    # Here nothing but the score tells right from wrong, so whatever else is fitted cannot be better by more than luck.
    assert fit(labels_of(run.regions)).calibrator.method == "logistic_score"


def test_the_same_labels_give_the_same_bytes(saved: tuple[str, str], calibration: Calibration) -> None:
    again = calibrate(read_scored_run(*saved), precision=0.6, confidence=0.9)
    assert calibrator_to_bytes(again.calibrator) == calibrator_to_bytes(calibration.calibrator)


def test_labels_that_all_look_the_same_get_the_share_that_is_right(run: ScoredRun) -> None:
    same = tuple(replace(region, features={"log_score": -0.5, "log_rest": -0.9}) for region in run.regions)
    labels = labels_of(same)
    fitted = fit(labels, ["logistic"])
    share = labels.is_right_N.mean()
    assert predict(fitted.calibrator, labels.features[:1])[0] == pytest.approx(share, abs=0.002)


# Measuring


def test_held_out_labels_were_never_fitted_on(run: ScoredRun, calibration: Calibration) -> None:
    # The truth of part 0 turned round: what is fitted on part 1, and so what part 0 is scored with, must not change.
    first = first_part((one.image_id for one in run.regions), 0, 0.5)
    turned = tuple(replace(one, is_right=not one.is_right) if one.image_id in first else one for one in run.regions)
    one, other = (
        next(d for d in found.directions if d.fitted_part == 1)
        for found in (calibration, calibrate(replace(run, regions=turned), precision=0.6, confidence=0.9))
    )
    assert [b.mean_score for b in one.held_out.bins] == [b.mean_score for b in other.held_out.bins]
    assert one.in_sample == other.in_sample and one.held_out.ece != other.held_out.ece


def test_each_label_is_held_out_once_and_calibration_helps(calibration: Calibration) -> None:
    assert calibration.held_out.num_labels == calibration.num_labels == 900
    assert calibration.uncalibrated.ece > 0.2 > 0.06 > calibration.held_out.ece
    assert calibration.held_out.brier < calibration.uncalibrated.brier


def test_similarity_that_is_the_same_for_all_labels_gives_no_coverage(calibration: Calibration) -> None:
    best = {name: one.coverage for name, one in calibration.best_coverage}
    assert best["similarity"] == 0.0
    assert best[CALIBRATED] > 0.2


def test_one_half_alone_is_fitted_and_the_other_measured(run: ScoredRun) -> None:
    found = calibrate(run, half=1, precision=0.6)
    assert [one.fitted_part for one in found.directions] == [1]
    assert found.calibrator.fitted_on["part"] == 1
    assert found.held_out.num_labels + int(str(found.calibrator.fitted_on["num_labels"])) == 900


def test_seen_and_unseen_pictures_are_told_apart_and_the_unseen_can_stand_alone(run: ScoredRun) -> None:
    marked = replace(run, regions=tuple(replace(one, is_seen=int(one.image_id) % 3 == 0) for one in run.regions))
    found = calibrate(marked, precision=0.6)
    assert found.seen is not None and found.unseen is not None
    assert (found.seen.num_labels, found.unseen.num_labels) == (300, 600)
    alone = calibrate(marked, precision=0.6, unseen_only=True)
    assert alone.num_labels == 600 and alone.seen is None
    with pytest.raises(UsageError, match="--provenance"):
        calibrate(run, unseen_only=True)


def test_each_supercategory_has_its_own_threshold_or_too_few_labels(run: ScoredRun) -> None:
    # "rare": 40 labels, fewer than the 59 all right that 95 % with 95 % confidence takes; "sure": all right; "mixed": as the score says
    groups = ["rare" if i < 40 else ("sure" if i % 2 else "mixed") for i in range(len(run.regions))]
    parted = tuple(
        replace(one, group=group, is_right=True if group == "sure" else one.is_right)
        for one, group in zip(run.regions, groups, strict=True)
    )
    calibration = calibrate(replace(run, regions=parted), methods=["logistic_score"])
    found = {group.name: group for group in calibration.groups}
    rare, sure, mixed = found["rare"], found["sure"], found["mixed"]
    assert (rare.num_labels, rare.is_enough, rare.threshold.score) == (40, False, None)
    assert sure.is_enough and sure.threshold.coverage == 1.0
    assert mixed.is_enough and mixed.threshold.coverage < 0.2  # the third power of the score is 0.95 from 0.983 on
    assert sure.to_json()["threshold"]["num_right"] == sure.num_labels  # type: ignore[index,call-overload]
    assert "too few (of 59)" in calibration_to_text(calibration)


def test_a_threshold_that_is_too_kind_to_unseen_pictures_is_told(run: ScoredRun) -> None:
    # Seen pictures are always right, whatever the score, so a threshold of both lets too many wrong labels of unseen ones through.
    parted = tuple(
        replace(one, is_seen=is_seen, is_right=one.is_right or is_seen)
        for one, is_seen in ((one, int(one.image_id) % 4 > 0) for one in run.regions)
    )
    both = calibrate(replace(run, regions=parted), precision=0.8, methods=["logistic_score"])
    assert "fit with --unseen-only" in " ".join(calibration_to_text(both).split())
    unseen = calibrate(replace(run, regions=parted), precision=0.8, methods=["logistic_score"], unseen_only=True)
    assert "fit with --unseen-only" not in " ".join(calibration_to_text(unseen).split())


def test_regions_of_one_source_are_never_parted(run: ScoredRun) -> None:
    # A source is shown by an image and by the one 75 further on.
    sourced = replace(run, regions=tuple(replace(one, source=str(int(one.image_id) % 75)) for one in run.regions))
    by_source = calibrate(sourced, precision=0.6, methods=["logistic_score"], group_by="source")
    assert by_source.num_images == 75 and by_source.calibrator.fitted_on["group_by"] == "source"
    assert "counted by source" in calibration_to_text(by_source)
    half = calibrate(sourced, half=0, methods=["logistic_score"], precision=0.6, group_by="source")
    assert int(str(half.calibrator.fitted_on["num_labels"])) == 38 * 12  # whole sources, of two images of six labels
    with pytest.raises(UsageError, match="--group-by source"):
        calibrate(run, group_by="source")


# What cannot be calibrated


def test_too_few_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="40 of its 50 regions are labeled, expected at least 50"):
        calibrate(read_scored_run(*save_run(tmp_path / "run", lambda s: s, 10, abstain_every=5)))


@pytest.mark.parametrize(("chance", "word"), [(1.0, "right"), (0.0, "wrong")])
def test_labels_that_are_all_right_or_all_wrong_are_refused(tmp_path: Path, chance: float, word: str) -> None:
    with pytest.raises(InputError, match=f"all 300 labels are {word}"):
        calibrate(read_scored_run(*save_run(tmp_path / "run", lambda _: chance)))


def test_labels_of_a_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than 5 images"):
        calibrate(read_scored_run(*save_run(tmp_path / "run", lambda s: s, num_images=3, per_image=40)))


def test_a_part_too_small_is_named(tmp_path: Path) -> None:
    run = read_scored_run(*save_run(tmp_path / "run", lambda s: s, num_images=15, per_image=5))
    with pytest.raises(InputError, match="part 0 of the images"):
        calibrate(run, fraction=0.2)


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_that_is_no_probability_is_refused(
    saved: tuple[str, str], score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.evaluation.judged_labels.raw_score", lambda _: score)
    with pytest.raises(InputError, match="expected a score from 0 to 1"):
        read_scored_run(*saved)


def test_runs_without_all_their_labels_are_refused(tmp_path: Path) -> None:
    run_url, truth_url = save_run(tmp_path / "run", lambda s: s, settings={"min_score": 0.5})
    with pytest.raises(UsageError, match="below 0.5 are left out"):
        read_scored_run(run_url, truth_url)
    run_url, truth_url = save_run(tmp_path / "captions", lambda s: s)
    (Path(run_url) / "shards" / "000000.jsonl").unlink()
    with pytest.raises(RunError, match="1 of 1 shards are missing"):
        read_scored_run(run_url, truth_url)


def test_a_truth_of_another_corpus_is_refused(saved: tuple[str, str], tmp_path: Path) -> None:
    content = json.loads(Path(saved[1]).read_text())
    for row in content["annotations"]:
        row["id"] += 10_000
    other = tmp_path / "truth.json"
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match="another corpus"):
        read_scored_run(saved[0], str(other))


# The command


def called(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])


def test_the_command_writes_a_calibrator_and_its_picture(saved: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    result = called(saved[0], "--truth", saved[1], "--out", out, "--target-precision", 0.6)
    assert result.exit_code == 0, result.output
    loaded = load_calibrator(str(out))
    assert loaded.made_for["model_sha256"] == "m" * 8 and loaded.thresholds[0].precision == 0.6
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert "in-sample: part 0" in result.stdout and "held-out: part 0 -> 1" in result.stdout
    assert "held-out, labeled as" in result.stdout and "animal" in result.stdout
    assert "own threshold for 60.0 %, labeled as" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 115


def test_the_command_prints_one_object_for_scripts(saved: tuple[str, str]) -> None:
    result = called(saved[0], "--truth", saved[1], "--json", "--half", 0, "--method", "isotonic")
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert plain["method"] == "isotonic" and plain["file"].endswith("calibrator.json")
    assert plain["held_out"]["ece"] < plain["uncalibrated"]["ece"]
    assert (Path(saved[0]) / "calibrator.json").is_file() and (Path(saved[0]) / "reliability.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--target-precision", "nan"), 2, "--target-precision"),
        (("--target-precision", "1.5"), 2, "expected a share"),
        (("--confidence", "1"), 2, "--confidence"),
        (("--fraction", "nan"), 2, "--fraction"),
        (("--half", "2"), 2, "--half"),
        (("--unseen-only",), 2, "--provenance"),
        (("--group-by", "source"), 2, "--provenance"),
        (("--provenance", "gone.json"), 1, "gone.json"),
        (("--truth", "gone.json"), 1, "gone.json"),
    ],
)
def test_wrong_calls_end_with_a_sentence(
    saved: tuple[str, str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = called(saved[0], "--truth", saved[1], *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr and "Traceback" not in result.output


def test_a_folder_that_is_no_run_is_refused(saved: tuple[str, str], tmp_path: Path) -> None:
    result = called(tmp_path, "--truth", saved[1])
    assert result.exit_code == 2 and "manifest.json" in result.stderr
