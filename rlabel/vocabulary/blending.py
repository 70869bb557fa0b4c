"""What a thesaurus adds to the cosines of a text: a bonus for categories that mean the same, or of which it is a kind.

A sentence encoder knows common words; that a wildebeest is a gnu it does not. Works on any vocabulary, by its names and synonyms.
Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rlabel.vocabulary.lexicon import surface_forms
from rlabel.vocabulary.thesaurus import Thesaurus
from rlabel.vocabulary.vocabulary import Vocabulary

# Added to a cosine where text and category share their most usual sense, and where the text is directly a kind of the category.
# Chosen on words for COCO's and Objects365's categories (benchmarks/thesaurus.py): right labels less wrong ones are the most, and
# alike, with 0.4 to 0.9 and 0.3; LVIS's synonyms gain no more beyond 0.7. With 0.4 for the second, more words of no category get a label.
SAME_SENSE = 0.7
KIND_OF = 0.3
# Each step further up, and each rarer sense of the text or of the name, counts for so much of the one before. A sense that is rare for
# both counts for nothing: a doll and a chick are both a woman.
_STEP = 0.8
_RARER = 0.85
_MAX_STEPS = 6
_MAX_SENSES = 5


class Blender:
    """The senses of a vocabulary's names and synonyms, indexed."""

    def __init__(self, vocabulary: Vocabulary, thesaurus: Thesaurus) -> None:
        """Look up every name and synonym."""
        self._thesaurus = thesaurus
        # Sense -> category index -> how usual the sense is for the best of its names.
        self._usual_of: dict[int, dict[int, float]] = {}
        for index, category in enumerate(vocabulary.categories):
            for form, _ in surface_forms(category):
                for rank, sense in enumerate(thesaurus.senses(form)):
                    owners = self._usual_of.setdefault(sense, {})
                    owners[index] = max(owners.get(index, 0.0), _RARER**rank)

    def bonuses(self, text: str) -> dict[int, float]:
        """Return what to add to the cosine of a text to each category, by its index in the vocabulary, in (0, SAME_SENSE]; those
        that are left out get nothing. {} where the thesaurus does not know the text.
        """
        found: dict[int, float] = {}
        for rank, sense in enumerate(self._thesaurus.senses(text)[:_MAX_SENSES]):
            for kind, steps in self._thesaurus.above(sense, _MAX_STEPS).items():
                nearness = SAME_SENSE if steps == 0 else KIND_OF * _STEP ** (steps - 1)
                for index, usual in self._usual_of.get(kind, {}).items():
                    if rank and usual < 1.0:
                        continue
                    found[index] = max(found.get(index, 0.0), nearness * _RARER**rank * usual)
        return found


def blend(
    nearest: Sequence[tuple[int, float]], bonuses: Mapping[int, float], cosine: Callable[[int], float]
) -> list[tuple[int, float]]:
    """Return the nearest categories after the bonuses, as many as before, best first, as (category index, value).

    nearest: (category index, cosine), best first. cosine: gives the cosine of any category by its index. A value may pass 1.0: the
    lead of the first is worked out from values, the similarity on record ends at 1.0. Since bonuses only lift, no category
    beyond `nearest` and those with a bonus can be among the first.
    """
    values = dict(nearest)
    values.update({index: (values[index] if index in values else cosine(index)) + bonuses[index] for index in bonuses})
    order = sorted(values, key=lambda index: (-values[index], index))
    return [(index, values[index]) for index in order[: len(nearest)]]
