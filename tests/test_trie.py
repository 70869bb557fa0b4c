"""Tries of names: what may be said next, and that nothing outside a vocabulary ever is."""

from __future__ import annotations

import pytest
import torch

import model_factories
from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.trie import ROOT, Trie

END = 9
# "cat", "cat flap", "car": the second goes on where the first ends.
NAMES = [[4, END], [4, 5, END], [3, 5, 2, END]]


def test_ways_on_are_those_of_names_and_the_end_of_a_name_stays() -> None:
    trie = Trie(NAMES)
    values_RV = torch.arange(10.0).expand(2, -1)
    value_RC, token_RC, node_RC = trie.go_on(values_RV, torch.full((2,), ROOT))
    assert token_RC.tolist() == [[3, 4], [3, 4]] and value_RC.tolist() == [[3.0, 4.0], [3.0, 4.0]]
    value_RC, token_RC, node_RC = trie.go_on(values_RV, node_RC[0])
    assert token_RC[1].tolist() == [5, END] and token_RC[0, 0] == 5 and value_RC[0, 1] == -torch.inf
    ended = node_RC[1, 1]
    assert trie.ended(node_RC[1]).tolist() == [False, True]
    value_RC, token_RC, node_RC = trie.go_on(values_RV[:1], ended[None])
    assert (value_RC[0, 0], token_RC[0, 0], node_RC[0, 0]) == (0.0, -1, ended)
    assert trie.longest == 4


def test_an_ended_name_goes_on_once_beside_rows_with_more_ways_on() -> None:
    trie = Trie(NAMES)
    ended = next(node for node in range(len(trie.name_S)) if trie.name_S[node] == 0)
    value_RC, token_RC, node_RC = trie.go_on(torch.zeros(2, 10), torch.tensor([ended, ROOT]))
    assert value_RC.tolist() == [[0.0, -torch.inf], [0.0, 0.0]]
    assert (int(token_RC[0, 0]), int(node_RC[0, 0]), token_RC[1].tolist()) == (-1, ended, [3, 4])


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
