"""The likeliest name of a trie, found without looking at all: judged by the probability of every name, worked out one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import model_factories
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.rows import Texts
from rlabel.labeling.search import Stretches, searched
from rlabel.labeling.trie import Trie

END = 9
TOKENS = 10
_IMPOSSIBLE = 200.0  # exp(-200) is 0 in float32, and nothing beside 1 in float64


class TableRows:
    """Rows that say what a table tells: the logits behind each beginning, by row. Counts the tokens that were tried."""

    def __init__(self, seed: int, sharpness: float, rows: Sequence[int], ties: bool = False) -> None:
        self.seed, self.sharpness, self.rows, self.ties = seed, sharpness, list(rows), ties
        self.tried: list[int] = []

    def logits(self, row: int, beginning: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, row, beginning)) % 2**31)
        if self.ties:
            # Equally probable tokens beside impossible ones, so that many names are equally probable: sums of ones and
            # zeros are exact, whatever their order, and so are equal for two beginnings that are equal but for it.
            return torch.randint(0, 2, (TOKENS,), generator=generator).float().sub_(1) * _IMPOSSIBLE
        return torch.randn(TOKENS, generator=generator) * self.sharpness

    def try_texts(self, texts: Texts) -> Tensor:
        said = []
        for row, ids, length, first in zip(self.rows, texts.ids_RM, texts.lengths_R, texts.first_R, strict=True):
            self.tried.append(int(length - first))
            said += [self.logits(row, tuple(ids[: i + 1].tolist())) for i in range(int(first), int(length))]
        return torch.stack(said)

    def fork(self, index_R: Tensor) -> TableRows:
        forked = TableRows(self.seed, self.sharpness, [self.rows[i] for i in index_R], self.ties)
        forked.tried = self.tried
        return forked

    def first(self) -> Tensor:
        return torch.stack([self.logits(row, ()) for row in self.rows])

    def feed(self, embeddings_RMD: Tensor) -> Tensor:
        raise AssertionError("a search feeds nothing to the rows themselves")

    def keep(self, index_R: Tensor) -> None:
        raise AssertionError("a search keeps the rows themselves")

    def logprob(self, row: int, name: Sequence[int]) -> float:
        """Return the probability of a name, token by token, from the table."""
        total = 0.0
        for i, token in enumerate(name):
            total += float(self.logits(row, tuple(name[:i])).double().log_softmax(-1)[token])
        return total


_names = st.lists(st.lists(st.integers(0, 8), max_size=4), min_size=1, max_size=40, unique_by=tuple)


@settings(max_examples=60, deadline=None)
@given(_names, st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 3.0, 12.0]), st.integers(1, 4))
def test_the_best_names_found_are_the_best_of_all(
    names: list[list[int]], seed: int, sharpness: float, num_best: int
) -> None:
    ids = [[*name, END] for name in names]
    rows = TableRows(seed, sharpness, range(3))
    (found,) = searched(Stretches(Trie(ids)), rows, rows.first(), "exact", num_best)
    answers = found.answers()
    for row, (own, (tokens, logprobs, (low, high))) in enumerate(zip(found.names(), answers, strict=True)):
        every = [rows.logprob(row, name) for name in ids]
        best = sorted(every, reverse=True)[:num_best]
        assert [value for _, value in own[:num_best]] == pytest.approx(best, abs=1e-4)
        assert all(value == pytest.approx(every[number], abs=1e-4) for number, value in own)
        assert rows.logprob(row, tokens) == pytest.approx(max(every), abs=1e-4)
        assert sum(logprobs) == pytest.approx(max(every), abs=1e-4) and len(logprobs) == len(tokens)
        share = float(torch.tensor(every, dtype=torch.float64).softmax(0).max())
        assert low - 1e-4 <= share <= high + 1e-4


@settings(max_examples=40, deadline=None)
@given(_names, st.integers(0, 10_000))
def test_of_equally_probable_names_the_first_is_chosen(names: list[list[int]], seed: int) -> None:
    ids = [[*name, END] for name in names]
    rows = TableRows(seed, 0.0, range(2), ties=True)
    (found,) = searched(Stretches(Trie(ids)), rows, rows.first(), "exact")
    for row, (tokens, _, _) in enumerate(found.answers()):
        every = [round(rows.logprob(row, name), 9) for name in ids]
        ours = ids.index(tokens)
        assert every[ours] == max(every)
        # Sums of the same numbers in another order may differ in the last bit; equal paths may not.
        firsts = [
            n
            for n, name in enumerate(ids)
            if every[n] == max(every) and _values(rows, row, name) == _values(rows, row, tokens)
        ]
        assert ours == min(firsts)


def _values(rows: TableRows, row: int, name: Sequence[int]) -> list[float]:
    return [rows.logprob(row, name[: i + 1]) for i in range(len(name))]


@settings(max_examples=40, deadline=None)
@given(_names, st.integers(0, 10_000))
def test_going_down_takes_the_likeliest_token_at_each_step(names: list[list[int]], seed: int) -> None:
    ids = [[*name, END] for name in names]
    rows = TableRows(seed, 2.0, range(3))
    (found,) = searched(Stretches(Trie(ids)), rows, rows.first(), "greedy")
    for row, (tokens, logprobs, _) in enumerate(found.answers()):
        said: list[int] = []
        while said not in ids:
            ways = {name[len(said)] for name in ids if name[: len(said)] == said}
            said.append(max(ways, key=lambda token: float(rows.logits(row, tuple(said))[token])))
        assert tokens == said
        assert sum(logprobs) == pytest.approx(rows.logprob(row, said), abs=1e-4)


def every_name() -> Iterator[list[int]]:
    for a in range(9):
        for b in range(9):
            yield from ([a, b, c, END] for c in range(9))


def test_a_model_that_is_sure_is_asked_little() -> None:
    sure, unsure = TableRows(1, 8.0, range(4)), TableRows(1, 0.0, range(4))
    stretches = Stretches(Trie(every_name()))
    for rows in (sure, unsure):
        list(searched(stretches, rows, rows.first(), "exact"))
    # 9 + 81 + 729 beginnings a row; all are equally likely to one who is not sure.
    assert sum(unsure.tried) == 4 * 819
    assert sum(sure.tried) < 4 * 80


def test_where_one_name_is_left_its_tokens_are_tried_at_once() -> None:
    rows = TableRows(2, 2.0, [0])
    (found,) = searched(Stretches(Trie([[1, 2, 3, 4, END], [5, END]])), rows, rows.first(), "all")
    # The way to 4, and 5: the end tokens need no step.
    assert sorted(rows.tried) == [1, 4]
    assert len(found.names()[0]) == 2


def test_a_single_name_is_given_with_its_probability() -> None:
    rows = TableRows(3, 2.0, [0])
    for name in ([END], [4, END], [4, 4, 7, END]):
        for how in ("greedy", "exact"):
            (found,) = searched(Stretches(Trie([name])), rows, rows.first(), how)  # type: ignore[arg-type]
            ((tokens, logprobs, share),) = found.answers()
            assert tokens == name and share == (1.0, 1.0)
            assert sum(logprobs) == pytest.approx(rows.logprob(0, name), abs=1e-5)


def test_probabilities_that_are_no_numbers_end_the_search() -> None:
    rows = TableRows(3, 2.0, [0, 1])
    rows.logits = lambda row, beginning: torch.full((TOKENS,), torch.nan)  # type: ignore[method-assign]
    for how in ("greedy", "exact", "all"):
        (found,) = searched(Stretches(Trie(every_name())), rows, rows.first(), how)  # type: ignore[arg-type]
        assert all(not logprobs or logprobs[0] != logprobs[0] for _, logprobs, _ in found.answers())


@pytest.mark.parametrize("sharing", ["packed", "expanded"])
def test_an_engine_gives_the_name_that_scoring_every_name_finds_best(sharing: str) -> None:
    model = model_factories.model()
    processor = model_factories.processor(model)
    inputs = model_factories.random_inputs(processor, [4, 0, 3])
    names = tuple(f"{a} {b}" for a in ("cat", "dog", "fire") for b in ("", "truck", "hydrant", "box", "bear"))
    names = tuple(name.strip() for name in names)
    options = EngineOptions(names=names, search="exact", prefix_sharing=sharing)  # type: ignore[arg-type]
    answers = Engine(model, processor, options).answer(inputs)
    texts = [[list(names) for _ in own] for own in answers]
    scores = Engine(model, processor, EngineOptions()).score_answers(inputs, texts)
    for own, scored in zip(answers, scores, strict=True):
        for answer, values in zip(own, scored, strict=True):
            assert answer.text == names[values.index(max(values))]
            assert sum(answer.token_logprobs) == pytest.approx(max(values), abs=1e-4)
            values_T = torch.tensor(values).exp()
            assert answer.share is not None
            assert answer.share[0] - 1e-4 <= float(values_T.max() / values_T.sum()) <= answer.share[1] + 1e-4
