"""Applying a calibrator, by hand arithmetic, and what its files may hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration_factories import RIGHT, SETTINGS, WRONG, likely, scored_label
from rlabel.errors import InputError, UsageError
from rlabel.records import Abstention, JsonObject
from rlabel.vocabulary.calibration import (
    Calibrator,
    Threshold,
    Weight,
    abstain_below,
    apply,
    calibrated_label,
    calibrator_to_bytes,
    check_fits,
    features_of,
    load_calibrator,
    made_for,
    threshold_for,
)
from run_factories import CATEGORIES

TWO_FEATURES = Calibrator(
    method="logistic",
    weights=(
        Weight(name="similarity", mean=0.5, scale=0.25, weight=2.0),
        Weight(name="agreement", mean=0.5, scale=0.5, weight=1.0, weight_missing=-3.0),
    ),
    intercept=0.5,
)
STEPS = Calibrator(method="isotonic", starts=(0.0, 0.5, 0.9), values=(0.1, 0.4, 0.95))
THRESHOLD = Threshold(precision=0.95, confidence=0.95, score=0.9, num_labels=80, num_right=79, coverage=0.4)


def written(path: Path, calibrator: Calibrator) -> str:
    path.write_bytes(calibrator_to_bytes(calibrator))
    return str(path)


# Applying


def test_a_logistic_regression_by_hand() -> None:
    # 0.5 + 2 x (1 - 0.5) / 0.25 + 1 x (0 - 0.5) / 0.5 = 3.5
    assert apply(TWO_FEATURES, {"similarity": 1.0, "agreement": 0.0}) == round(1 / (1 + math.exp(-3.5)), 6)


def test_a_missing_feature_has_a_weight_of_its_own_and_an_unknown_one_says_nothing() -> None:
    # 0.5 + 4 - 3 = 1.5
    expected = round(1 / (1 + math.exp(-1.5)), 6)
    assert apply(TWO_FEATURES, {"similarity": 1.0, "agreement": None}) == expected
    assert apply(TWO_FEATURES, {"similarity": 1.0, "moon": 7.0}) == expected


def test_another_deciding_step_is_no_missing_feature() -> None:
    calibrator = Calibrator(
        method="logistic",
        weights=(Weight(name="decided_by=exact", mean=0.5, scale=0.5, weight=1.0, weight_missing=50.0),),
    )
    assert apply(calibrator, {"decided_by=embedding": 1.0}) == round(1 / (1 + math.exp(1.0)), 6)


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, 0.1), (0.499999, 0.1), (0.5, 0.4), (0.899999, 0.4), (0.9, 0.95), (1.0, 0.95)]
)
def test_a_step_holds_its_own_beginning(score: float, expected: float) -> None:
    assert apply(STEPS, features_of(scored_label(1, 1, score))) == expected


def test_a_step_is_reached_by_a_score_that_is_its_beginning_but_for_the_last_bit() -> None:
    assert math.exp(math.log(0.003)) < 0.003, "an uncalibrated score comes back from its logarithm"
    steps = Calibrator(method="isotonic", starts=(0.0, 0.003), values=(0.1, 0.4))
    assert apply(steps, {"log_score": math.log(0.003)}) == 0.4


def test_steps_stand_behind_a_regression() -> None:
    both = replace(TWO_FEATURES, starts=STEPS.starts, values=STEPS.values)
    assert apply(both, {"similarity": 1.0, "agreement": 0.0}) == 0.95  # 0.97 before
    assert apply(both, {"similarity": 0.0, "agreement": 0.0}) == 0.1  # 0.01 before


@given(
    st.dictionaries(
        st.sampled_from(["similarity", "agreement", "log_score"]), st.none() | st.floats(-1e6, 1e6), max_size=3
    )
)
def test_whatever_the_features_the_score_is_a_probability(features: dict[str, float | None]) -> None:
    for calibrator in (TWO_FEATURES, STEPS, Calibrator(method="isotonic")):
        score = apply(calibrator, {name: min(value, 0.0) if name == "log_score" and value else value for name, value in features.items()})  # fmt: skip
        assert 0.0 <= score <= 1.0 and score == round(score, 6)


def test_a_calibrated_label_keeps_all_but_its_score() -> None:
    before = scored_label(1, 1, 0.7, mean_logprob=-0.1, min_logprob=-0.2, num_tokens=2)
    after = calibrated_label(before, STEPS)
    assert (after.score, after.raw_score) == (0.4, 0.7)
    assert replace(after, score=0.7, raw_score=None) == before
    # Calibrating again starts from the score without calibration.
    assert calibrated_label(after, STEPS) == after


def test_labels_below_the_least_score_become_abstentions_that_say_so() -> None:
    label = scored_label(1, 1, 0.7)
    assert abstain_below(label, 0.7) is label
    below = abstain_below(label, 0.700001)
    assert isinstance(below, Abstention)
    assert (below.snap.category_id, below.snap.decided_by, below.snap.nearest_name) == (None, None, "cat")
    assert "0.7" in str(below.snap.reason) and below.evidence == label.evidence and below.region == label.region


# Features


def test_features_of_a_label_with_candidates() -> None:
    candidates = likely((RIGHT, math.log(0.6)), (WRONG, math.log(0.2)))
    features = features_of(scored_label(1, 1, 0.5, candidates=candidates))
    assert features["candidate_share"] == pytest.approx(math.log(0.75 / 0.25))
    assert features["candidate_lead"] == pytest.approx(math.log(3))
    assert features["candidate_entropy"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert features["candidate_logprob"] == pytest.approx(math.log(0.6))
    assert features["log_score"] == features["log_rest"] == pytest.approx(math.log(0.5))
    assert features["decided_by=exact"] == 1.0


def test_the_candidate_that_was_not_chosen_counts_against_the_label() -> None:
    candidates = likely((WRONG, math.log(0.6)), (RIGHT, math.log(0.2)))
    features = features_of(scored_label(1, 1, 0.5, RIGHT, candidates=candidates))
    assert features["candidate_share"] == pytest.approx(math.log(0.25 / 0.75))
    assert features["candidate_lead"] == pytest.approx(-math.log(3))


def test_what_a_run_does_not_have_is_missing_and_not_zero() -> None:
    features = features_of(scored_label(1, 1, 0.5))
    missing = {name for name, value in features.items() if value is None}
    assert missing == {
        "mean_logprob", "min_logprob", "log_num_tokens", "agreement",
        "candidate_logprob", "candidate_share", "candidate_lead", "candidate_entropy",
    }  # fmt: skip


@pytest.mark.parametrize("score", [0.0, 1.0, float("nan"), float("inf")])
def test_features_are_finite_at_the_ends(score: float) -> None:
    candidates = likely((WRONG, -1000.0), (RIGHT, 0.0))  # the first by another rank
    label = scored_label(1, 1, score, candidates=candidates, num_tokens=1, mean_logprob=-1000.0, min_logprob=-1000.0)
    features = features_of(label)
    assert all(value is None or math.isfinite(value) for value in features.values())
    assert 0 <= apply(STEPS, features) <= 1


# Files


def test_a_file_gives_back_the_calibrator_and_its_digest(tmp_path: Path) -> None:
    whole = replace(
        TWO_FEATURES, starts=(0.0, 0.5), values=(0.25, 0.75), thresholds=(THRESHOLD,), made_for={"model_sha256": "m"}
    )
    loaded = load_calibrator(written(tmp_path / "c.json", whole))
    assert loaded == whole and loaded.sha256 == whole.sha256
    assert replace(whole, intercept=0.6).sha256 != whole.sha256
    assert replace(whole, measured={"ece": 0.1}).sha256 == whole.sha256


def _changed(**more: Any) -> str:
    document = json.loads(calibrator_to_bytes(replace(STEPS, weights=TWO_FEATURES.weights)))
    return json.dumps(document | more)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "type"),
        ("[" * 100_000, "not readable as JSON"),
        (_changed(method="magic"), "method"),
        (_changed(intercept=float("nan")), "NaN"),
        (_changed(intercept=10**400), "intercept"),
        (_changed(intercept="x").replace('"x"', "1e999"), "intercept"),
        (_changed(features=[{"name": "x", "mean": 0, "scale": 0, "weight": 1, "weight_missing": 0}]), "scale"),
        (_changed(steps={"starts": [0.5, 0.1], "values": [0.1, 0.2]}), "ascending"),
        (_changed(steps={"starts": [0.1, 0.5], "values": [0.2, 0.1]}), "ascending"),
        (_changed(steps={"starts": [0.1], "values": []}), "as many values"),
        (_changed(steps={"starts": [0.1], "values": [1.5]}), "values"),
        (_changed(weights=[]), "unknown key"),
        (_changed(format_version=2), "format_version"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_calibrator(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_calibrator(str(tmp_path / "gone.json"))


# Whether it may be used


ROWS: list[JsonObject] = list(CATEGORIES)


def fits(**changed: Any) -> list[str]:
    calibrator = replace(STEPS, made_for=made_for(SETTINGS, ROWS))
    return check_fits(calibrator, {**SETTINGS, **changed}, ROWS, "c.json")


def test_a_run_of_the_same_kind_may_use_it() -> None:
    assert fits() == []
    assert fits(num_candidates=9, rank_by="prior") == []  # of hybrid decoding alone


@pytest.mark.parametrize("name", ["model_sha256", "decoding", "question", "views"])
def test_another_way_of_asking_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        fits(**{name: "other"})


def test_another_vocabulary_is_refused_and_other_synonyms_are_told() -> None:
    assert "other synonyms" in fits(vocabulary_sha256="w")[0]
    calibrator = replace(STEPS, made_for=made_for(SETTINGS, ROWS))
    others: list[JsonObject] = [{"id": 7, "name": "kettle"}, *ROWS[1:]]
    with pytest.raises(InputError, match="fitted for the vocabulary"):
        check_fits(calibrator, {**SETTINGS, "vocabulary_sha256": "w"}, others, "c.json")


def test_another_threshold_of_snapping_is_told() -> None:
    assert "threshold 0.6, this run has 0.5" in fits(threshold=0.5)[0]


def test_the_threshold_for_a_precision() -> None:
    assert threshold_for(replace(STEPS, thresholds=(THRESHOLD,)), 0.95, "c.json") == 0.9
    with pytest.raises(UsageError, match="holds thresholds for 0.95"):
        threshold_for(replace(STEPS, thresholds=(THRESHOLD,)), 0.9, "c.json")
    with pytest.raises(UsageError, match="no score promises it"):
        threshold_for(replace(STEPS, thresholds=(replace(THRESHOLD, score=None),)), 0.95, "c.json")
