"""Which category a region is, by how likely the model finds the names of each. Knows nothing of models, and makes no vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlabel.records import LikelyCategory, Snap
from rlabel.vocabulary.scores import SCORE_DECIMALS, floored
from rlabel.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyName:
    """A name with the natural-log probability that the model gives to it as the whole answer.

    rank: what names are compared by: that probability, or what is made of it to be fair to long or rare names.
    """

    name: str
    logprob: float
    rank: float


class Choosing:
    """Chooses among the categories of a vocabulary. by_sum: a category is as likely as its names together, else as the best of them.

    names: all names and synonyms, each once. As in snapping, a name belongs to the first category so named, and to one that has it as a synonym
    only where none is named so.
    """

    def __init__(self, vocabulary: Vocabulary, *, by_sum: bool = True) -> None:
        self._by_sum = by_sum
        self._name_of = {category.category_id: category.name for category in vocabulary.categories}
        self._owner_of: dict[str, int] = {}
        for category in vocabulary.categories:
            self._owner_of.setdefault(category.name, category.category_id)
        for category in vocabulary.categories:
            for synonym in category.synonyms:
                if synonym.strip():
                    self._owner_of.setdefault(synonym, category.category_id)
        self.names = tuple(self._owner_of)

    def main_name(self, category_id: int) -> str:
        """Return the name of a category."""
        return self._name_of[category_id]

    def category_of(self, name: str) -> int | None:
        """Return the category that a name or synonym belongs to, None for one that the vocabulary does not have."""
        return self._owner_of.get(name)

    def choose(self, snap: Snap, likely_names: Sequence[LikelyName]) -> tuple[Snap, tuple[LikelyCategory, ...]]:
        """Return what is decided of an answer, and the candidates, best first.

        snap: what the free text said. It stands where it is of the same category, and where the text was empty or a denial: then the model was not
        willing to name anything. Else the likeliest category is taken, "likelihood" decided, and its similarity and margin, which no text has
        to do with, are 0.
        """
        candidates = self._candidates(likely_names)
        if not candidates or (snap.reason is not None and snap.reason.startswith("the answer ")):
            return snap, candidates
        best = candidates[0].category_id
        if snap.category_id == best:
            return snap, candidates
        chosen = replace(
            snap,
            category_id=best,
            nearest_name=self._name_of[best],
            similarity=0.0,
            margin=0.0,
            decided_by="likelihood",
            reason=None,
        )
        return chosen, candidates

    def _candidates(self, likely_names: Sequence[LikelyName]) -> tuple[LikelyCategory, ...]:
        of: dict[int, list[LikelyName]] = {}
        for one in likely_names:
            if one.name in self._owner_of and math.isfinite(one.logprob):
                of.setdefault(self._owner_of[one.name], []).append(one)
        logprob = {category_id: _log_sum([one.logprob for one in own]) for category_id, own in of.items()}
        rank = logprob if self._by_sum else {id_: max(one.rank for one in own) for id_, own in of.items()}
        in_order = sorted(of, key=lambda category_id: (-rank[category_id], category_id))
        return tuple(LikelyCategory(category_id=category_id, logprob=logprob[category_id]) for category_id in in_order)


def likelihood_score(candidates: Sequence[LikelyCategory], category_id: int) -> float:
    """Return the probability of a category's names in [0, 1], to 6 decimals; 0.0 for one that is no candidate."""
    return next(
        (round(math.exp(one.logprob), SCORE_DECIMALS) for one in candidates if one.category_id == category_id), 0.0
    )


def _log_sum(logprobs: Sequence[float]) -> float:
    values = [floored(value) for value in logprobs]
    best = max(values)
    return round(floored(best + math.log(math.fsum(math.exp(value - best) for value in values))), SCORE_DECIMALS)
