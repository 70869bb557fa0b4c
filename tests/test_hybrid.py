"""Hybrid decoding: the likeliest names of a vocabulary, exactly scored, beside the free text; and what is chosen from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model_factories
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.ensemble import EnsembleDescriber
from rlabel.labeling.hybrid import HybridDescriber
from rlabel.labeling.trie import ROOT, Trie
from rlabel.prompts.instructions import CLASSIFY
from rlabel.records import LikelyCategory, Snap
from rlabel.regiongpt.processing import RegionInputs
from rlabel.vocabulary.likelihood import Choosing, LikelyName, likelihood_score
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, make_vocabulary

NAMES = ["cat", "dog", "teapot", "fire hydrant", "umbrella", "fire truck", "a"]


def engine_and_inputs(num_regions: int = 3) -> tuple[Engine, list[RegionInputs]]:
    torch.manual_seed(0)
    model = model_factories.model()
    processor = model_factories.processor(model)
    engine = Engine(model, processor, EngineOptions(max_new_tokens=4))
    inputs = model_factories.random_inputs(processor, (num_regions, 0, 1))
    return engine, inputs


def test_a_beam_as_wide_as_the_vocabulary_gives_what_scoring_every_name_gives() -> None:
    engine, inputs = engine_and_inputs()
    answers = HybridDescriber(engine, NAMES, num_candidates=2).describe(inputs)
    texts = [[list(NAMES) for _ in own] for own in answers]
    scored = engine.score_answers(inputs, texts)
    assert [len(own) for own in answers] == [3, 0, 1]
    for own, scores in zip(answers, scored, strict=True):
        for answer, values in zip(own, scores, strict=True):
            by_name = dict(zip(NAMES, values, strict=True))
            assert {one.name for one in answer.likely_names} == set(NAMES)
            for one in answer.likely_names:
                assert one.logprob == pytest.approx(by_name[one.name], abs=1e-4)
            ranks = [one.rank for one in answer.likely_names]
            assert ranks == sorted(ranks, reverse=True)


def test_the_free_text_is_what_it_is_without_names() -> None:
    engine, inputs = engine_and_inputs()
    plain = engine.answer(inputs)
    hybrid = HybridDescriber(engine, NAMES, num_candidates=2).describe(inputs)
    assert [[one.text for one in own] for own in hybrid] == [[one.text for one in own] for own in plain]
    for ours, theirs in zip(hybrid, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)


def test_a_narrow_beam_keeps_as_many_names_and_scores_them_right() -> None:
    engine, inputs = engine_and_inputs()
    names = [
        f"{a} {b}"
        for a in ("cat", "dog", "red", "fire")
        for b in ("cup", "truck", "hat", "box", "lid", "car", "bus", "jar", "pot")
    ]
    answers = HybridDescriber(engine, names, num_candidates=3).describe(inputs[:1])[0]
    texts = [[one.name for one in answer.likely_names] for answer in answers]
    assert all(1 <= len(own) <= 3 and set(own) <= set(names) for own in texts)
    scored = engine.score_answers(inputs[:1], [texts])[0]
    for answer, values in zip(answers, scored, strict=True):
        assert [one.logprob for one in answer.likely_names] == pytest.approx(values, abs=1e-4)


def test_names_near_the_text_are_scored_too_and_unknown_ones_left_out() -> None:
    engine, inputs = engine_and_inputs()
    names = [
        f"{a} {b}"
        for a in ("cat", "dog", "red", "fire")
        for b in ("cup", "truck", "hat", "box", "lid", "car", "bus", "jar", "pot")
    ]
    asked: list[list[str]] = []

    def near(texts: Sequence[str]) -> list[list[str]]:
        asked.append(list(texts))
        return [["fire pot", "no such name"] for _ in texts]

    answers = HybridDescriber(engine, names, num_candidates=1, near=near).describe(inputs)
    assert asked and len(asked[0]) == len(set(asked[0]))
    texts = [[["fire pot"] for _ in own] for own in answers]
    scored = engine.score_answers(inputs, texts)
    for own, values in zip(answers, scored, strict=True):
        for answer, (value,) in zip(own, values, strict=True):
            found = {one.name: one.logprob for one in answer.likely_names}
            assert found["fire pot"] == pytest.approx(value, abs=1e-4) and "no such name" not in found


def test_an_exact_search_finds_the_likeliest_names_which_a_beam_may_miss() -> None:
    engine, inputs = engine_and_inputs()
    names = [
        f"{a} {b}"
        for a in ("cat", "dog", "red", "fire")
        for b in ("cup", "truck", "hat", "box", "lid", "car", "pot", "jar", "bus")
    ]
    exact = Engine(engine.model, engine.processor, EngineOptions(max_new_tokens=4, search="exact"))
    answers = HybridDescriber(exact, names, num_candidates=3).describe(inputs)[0]
    scored = engine.score_answers(inputs[:1], [[names for _ in answers]])[0]
    for answer, values in zip(answers, scored, strict=True):
        assert [one.logprob for one in answer.likely_names] == pytest.approx(sorted(values, reverse=True)[:3], abs=1e-4)


def test_several_wordings_are_averaged() -> None:
    engine, inputs = engine_and_inputs()
    questions = CLASSIFY[:3]
    answers = HybridDescriber(engine, NAMES, num_candidates=2, questions=questions).describe(inputs)
    texts = EnsembleDescriber(engine, questions).describe(inputs)
    scored = [engine.score_answers(inputs, [[NAMES for _ in own] for own in answers], one) for one in questions]
    assert [[one.text for one in own] for own in answers] == [[one.text for one in own] for own in texts]
    for i, own in enumerate(answers):
        for r, answer in enumerate(own):
            found = {one.name: one.logprob for one in answer.likely_names}
            for n, name in enumerate(NAMES):
                assert found[name] == pytest.approx(sum(by_question[i][r][n] for by_question in scored) / 3, abs=1e-4)


@pytest.mark.parametrize("rank_by", ["per_token", "prior"])
def test_names_are_ranked_by_what_is_asked(rank_by: str) -> None:
    engine, inputs = engine_and_inputs()
    describer = HybridDescriber(engine, NAMES, num_candidates=2, rank_by=rank_by)
    answer = describer.describe(inputs)[0][0]
    for one in answer.likely_names:
        if rank_by == "per_token":
            assert one.rank == pytest.approx(one.logprob / len(engine.processor.answer_ids(one.name)))
        else:
            assert one.rank == pytest.approx(one.logprob - describer._prior[one.name])
    ranks = [one.rank for one in answer.likely_names]
    assert ranks == sorted(ranks, reverse=True)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=12), st.integers(0, 2**31 - 1)
)
def test_all_ways_on_from_a_node_lead_to_its_children(names: list[list[int]], seed: int) -> None:
    ids = [[*name, 9] for name in names]
    trie = Trie(ids)
    logprobs_1V = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    logprob_1C, token_1C, child_1C = trie.go_on(logprobs_1V, torch.tensor([ROOT]))
    real = logprob_1C[0] > -torch.inf
    assert set(token_1C[0][real].tolist()) == {row[0] for row in ids}
    assert torch.equal(logprob_1C[0][real], logprobs_1V[0][token_1C[0][real]])
    ends = (trie.name_S >= 0).nonzero()[:, 0]
    logprob_RC, token_RC, child_RC = trie.go_on(logprobs_1V.expand(len(ends), -1), ends)
    assert torch.equal(child_RC[:, 0], ends) and (logprob_RC[:, 0] == 0).all() and (token_RC == -1).all()
    assert (logprob_RC[:, 1:] == -torch.inf).all()
    # Each end knows the first name that ends there.
    assert sorted(trie.name_S[ends].tolist()) == sorted({ids.index(row) for row in ids})


def vocabulary() -> Choosing:
    rows = [
        Category(category_id=3, name="cat", synonyms=("kitty", "dog")),
        Category(category_id=5, name="dog", synonyms=("hound", "kitty")),
        Category(category_id=9, name="person"),
    ]
    return Choosing(make_vocabulary("few", rows))


def snap(category_id: int | None, reason: str | None = None) -> Snap:
    return Snap(
        category_id=category_id,
        nearest_name=None,
        similarity=1.0,
        margin=1.0,
        decided_by="exact" if category_id else None,
        reason=reason,
    )


def likely(**logprobs: float) -> list[LikelyName]:
    return [LikelyName(name=name, logprob=value, rank=value) for name, value in logprobs.items()]


def test_the_probabilities_of_a_categorys_names_are_added_up() -> None:
    choosing = vocabulary()
    assert choosing.names == ("cat", "dog", "person", "kitty", "hound")
    # 0.25 for cat against 0.2 + 0.1 for dog; a name goes before another category's synonym, and the first owner keeps a shared synonym.
    names = likely(cat=math.log(0.25), dog=math.log(0.2), hound=math.log(0.1), unknown=-0.1)
    chosen, candidates = choosing.choose(snap(3), names)
    assert (chosen.category_id, chosen.decided_by, chosen.similarity) == (5, "likelihood", 0.0)
    assert [one.category_id for one in candidates] == [5, 3]
    assert [math.exp(one.logprob) for one in candidates] == pytest.approx([0.3, 0.25], abs=1e-5)
    assert likelihood_score(candidates, 5) == pytest.approx(0.3, abs=1e-5)
    assert likelihood_score(candidates, 9) == 0.0


def test_what_the_text_says_stands_where_the_likeliest_category_is_the_same() -> None:
    chosen, _ = vocabulary().choose(snap(5), likely(dog=-0.1, cat=-3.0))
    assert chosen == snap(5)


@pytest.mark.parametrize(
    "reason", ["the answer is empty", "the answer has no words", "the answer denies or does not know ('no')"]
)
def test_a_denial_stays_an_abstention(reason: str) -> None:
    chosen, candidates = vocabulary().choose(snap(None, reason), likely(dog=-0.1))
    assert chosen.category_id is None and chosen.reason == reason
    assert candidates == (LikelyCategory(category_id=5, logprob=-0.1),)


@pytest.mark.parametrize("text", ["", "  ", "...", "\U0001f600", "unknown", "not a cat", "there is no dog"])
def test_what_names_nothing_is_known_by_what_snapping_says_of_it(text: str) -> None:
    two = make_vocabulary("two", [Category(category_id=3, name="cat"), Category(category_id=5, name="dog")])
    (said,) = Snapper(two, None).snap([text])
    assert said.category_id is None
    chosen, _ = Choosing(two).choose(said, likely(dog=-0.1))
    assert chosen == said


def test_a_text_that_no_category_is_near_to_is_decided_by_likelihood() -> None:
    chosen, _ = vocabulary().choose(
        snap(None, "the nearest category, 'cat', is less similar than 0.6"), likely(person=-0.5)
    )
    assert (chosen.category_id, chosen.nearest_name, chosen.decided_by, chosen.reason) == (
        9,
        "person",
        "likelihood",
        None,
    )


def test_without_candidates_the_text_decides() -> None:
    assert vocabulary().choose(snap(3), []) == (snap(3), ())
    assert vocabulary().choose(snap(3), likely(cat=math.nan)) == (snap(3), ())
