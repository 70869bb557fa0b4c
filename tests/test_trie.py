"""Tries of names: what may be said next, and that nothing outside a vocabulary ever is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model_factories
from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.trie import ROOT, Trie

END = 9
# "cat", "cat flap", "car": the second goes on where the first ends.
NAMES = [[4, END], [4, 5, END], [3, 5, 2, END]]


def walked(trie: Trie, logits_RTV: torch.Tensor) -> list[list[int]]:
    """Return the tokens that each row says, its logits at step t given."""
    node_R = torch.full((len(logits_RTV),), ROOT)
    said: list[list[int]] = [[] for _ in logits_RTV]
    for t in range(logits_RTV.shape[1]):
        token_R, node_R = trie.pick(logits_RTV[:, t], node_R)
        for row, token in zip(said, token_R.tolist(), strict=True):
            row += [token] if token >= 0 else []
    assert bool(trie.ended(node_R).all())
    return said


def test_the_likeliest_token_among_those_that_go_on_is_picked() -> None:
    trie = Trie(NAMES)
    logits_RV = torch.zeros(3, 10)
    logits_RV[:, 7] = 5.0  # likeliest of all, but no name has it
    logits_RV[0, 3] = logits_RV[1, 4] = logits_RV[2, 4] = 1.0
    token_R, node_R = trie.pick(logits_RV, torch.full((3,), ROOT))
    assert token_R.tolist() == [3, 4, 4]
    logits_RV[1, END] = 2.0
    logits_RV[2, 5] = 2.0
    token_R, node_R = trie.pick(logits_RV, node_R)
    assert token_R.tolist() == [5, END, 5]
    assert trie.ended(node_R).tolist() == [False, True, False]
    token_R, after_R = trie.pick(logits_RV, node_R)
    assert token_R.tolist() == [2, -1, END] and int(after_R[1]) == int(node_R[1])
    assert trie.longest == 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4), min_size=1, max_size=30),
    st.integers(0, 2**31 - 1),
)
def test_only_names_are_said_and_the_likeliest_first_token_leads(names: list[list[int]], seed: int) -> None:
    ids = [[*name, END] for name in names]
    trie = Trie(ids)
    logits = torch.randn(50, trie.longest, 10, generator=torch.Generator().manual_seed(seed))
    for row, said in enumerate(walked(trie, logits)):
        assert said in ids
        firsts = {name[0] for name in ids}
        assert said[0] == max(firsts, key=lambda token: float(logits[row, 0, token]))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "got none"),
        ([[]], "without any"),
        ([[1], [1, 2]], "behind the end"),
        ([[1, 2], [1]], "the beginning of another"),
    ],
)
def test_what_is_no_vocabulary_is_refused(names: list[list[int]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Trie(names)


def test_an_engine_kept_inside_names_says_nothing_else_and_gives_the_models_own_probabilities() -> None:
    model = model_factories.model()
    processor = model_factories.processor(model)
    inputs = model_factories.random_inputs(processor, [4, 3])
    names = ("cat", "fire hydrant", "dog")
    engine = Engine(model, processor, EngineOptions(names=names, max_new_tokens=1))
    free = Engine(model, processor, EngineOptions())
    answers = engine.answer(inputs)
    assert {answer.text for own in answers for answer in own} <= set(names)
    texts = [[[answer.text] for answer in own] for own in answers]
    scores = free.score_answers(inputs, texts)
    for own, scored in zip(answers, scores, strict=True):
        for answer, (score,) in zip(own, scored, strict=True):
            assert sum(answer.token_logprobs) == pytest.approx(score, abs=1e-4)
