"""Scores: a probability for the text, a nearness for the category, and never a constant."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlabel.records import DecidedBy, Evidence, LikelyCategory, Snap
from rlabel.vocabulary.scores import candidate_share, label_score, text_score


def make_snap(decided_by: DecidedBy | None, similarity: float = 1.0) -> Snap:
    return Snap(
        category_id=None if decided_by is None else 7,
        nearest_name="cat",
        similarity=similarity,
        margin=0.5,
        decided_by=decided_by,
        reason=None if decided_by else "too far",
    )


def test_text_score_is_the_product_of_the_token_probabilities() -> None:
    assert text_score([math.log(0.5), math.log(0.8)]) == 0.4
    assert text_score([0.0, 0.0]) == 1.0


def test_answer_without_tokens_scores_zero() -> None:
    assert text_score([]) == 0.0


@pytest.mark.parametrize("logprobs", [[-math.inf], [math.nan], [-0.1, math.nan], [-1e9]])
def test_impossible_answers_score_zero(logprobs: list[float]) -> None:
    assert text_score(logprobs) == 0.0


def test_logprobs_just_above_zero_do_not_lift_the_score_above_one() -> None:
    assert text_score([1e-3, 1e300]) == 1.0
    assert text_score([1e-3, math.log(0.5)]) == 0.5


@pytest.mark.parametrize("step", ["exact", "synonym", "inflection", "phrase"])
def test_where_words_decide_the_label_score_is_the_text_score(step: DecidedBy) -> None:
    assert label_score(0.25, make_snap(step, similarity=1.0)) == 0.25


def test_where_the_embedding_decides_the_similarity_scales_the_score() -> None:
    assert label_score(0.5, make_snap("embedding", similarity=0.8)) == 0.4
    assert label_score(0.5, make_snap("embedding", similarity=-0.3)) == 0.0


def test_abstention_and_broken_text_score_give_zero() -> None:
    assert label_score(0.9, make_snap(None)) == 0.0
    assert label_score(math.nan, make_snap("exact")) == 0.0


def test_scores_carry_six_decimals() -> None:
    assert label_score(1 / 3, make_snap("exact")) == 0.333333
    assert text_score([math.log(2 / 3)]) == 0.666667


@given(st.lists(st.floats(max_value=0.5, allow_nan=False), max_size=20))
def test_scores_stay_between_zero_and_one(logprobs: list[float]) -> None:
    score = text_score(logprobs)
    assert 0.0 <= score <= 1.0
    assert 0.0 <= label_score(score, make_snap("embedding", similarity=0.7)) <= score


@given(
    st.lists(st.floats(min_value=-3.0, max_value=0.0), min_size=1, max_size=4), st.floats(min_value=0.1, max_value=3.0)
)
def test_less_probable_token_never_raises_the_score(logprobs: list[float], loss: float) -> None:
    assert text_score([logprobs[0] - loss, *logprobs[1:]]) <= text_score(logprobs)


def test_the_share_of_the_first_candidate_is_of_all_also_where_another_is_likelier() -> None:
    candidates = (LikelyCategory(category_id=1, logprob=-1000.0), LikelyCategory(category_id=2, logprob=-0.1))
    assert candidate_share(Evidence(candidates=candidates)) == 0.0
    even = (LikelyCategory(category_id=1, logprob=-2.0), LikelyCategory(category_id=2, logprob=-2.0))
    assert candidate_share(Evidence(candidates=even)) == 0.5
    assert candidate_share(Evidence()) == 0.0
