"""The vectors that stand for the categories of a vocabulary, and the similarity of a text to each. Decides nothing.

Legend: P prototypes, C categories, D dimensions of the embedder.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlabel.vocabulary.embedding import Rows, TextEmbedder
from rlabel.vocabulary.lexicon import surface_forms
from rlabel.vocabulary.vocabulary import Vocabulary
from rlabel.vocabulary.words import fold

# How much of "name: definition" is mixed into each name of a category that has a definition. Of 0, 0.2, 0.3, 0.4 and
# 0.5 it is the best compromise over LVIS and ImageNet: of synonyms left out one at a time, 62.4 and 58.6 % have the
# right category nearest, against 58.4 and 56.5 % with names alone (benchmarks/snapping.py). (Tried and dropped:
# definitions as prototypes of their own, a bonus for equal head nouns or shared words.)
DEFINITION_SHARE = 0.4
_MAX_QUERY_CHARACTERS = 200


class Prototypes:
    """One unit vector for each name and synonym of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, embedder: TextEmbedder) -> None:
        """Embed the whole vocabulary in two calls, so that its vectors depend on it alone."""
        texts, category_index_of = _names_in_order(vocabulary)
        self._category_index_P: NDArray[np.intp] = np.asarray(category_index_of, dtype=np.intp)
        self._num_categories = len(vocabulary.categories)
        names_PD = embedder.embed(texts)
        glosses = {
            index: f"{category.name}: {category.definition}"
            for index, category in enumerate(vocabulary.categories)
            if category.definition
        }
        self._rows_PD: Rows = _mixed(names_PD, category_index_of, glosses, embedder) if glosses else names_PD

    def similarities(self, vector_D: Rows) -> Rows:
        """Return float32 (C,), in [-1, 1]: the largest cosine of a unit vector to a prototype of each category; -1
        where it has none.
        """
        if not len(self._category_index_P):
            return np.full(self._num_categories, -1.0, dtype=np.float32)
        # einsum, not @: a BLAS may sum in another order under another number of threads.
        cosines_P = np.clip(np.einsum("pd,d->p", self._rows_PD, vector_D), -1.0, 1.0)
        cosines_C = np.full(self._num_categories, -1.0, dtype=np.float32)
        with np.errstate(invalid="ignore"):  # a NaN passes through: the caller abstains on it
            np.maximum.at(cosines_C, self._category_index_P, cosines_P)
        return cosines_C


def query_text(text: str) -> str:
    """Return a text in the form that is embedded and compared with prototypes: its words, 200 characters at most, "" if
    it has none.
    """
    # Folding can lengthen a text (ligatures) as well as shorten it: cut before, for speed, and after, for the model.
    return " ".join(fold(text[: 4 * _MAX_QUERY_CHARACTERS]))[:_MAX_QUERY_CHARACTERS].strip()


def _names_in_order(vocabulary: Vocabulary) -> tuple[list[str], list[int]]:
    """Return the distinct names and synonyms with their category's index, in category order.

    As in the lexicon, a name belongs to the first category so named, and never to those that have it as a synonym.
    """
    names = {query_text(category.name) for category in vocabulary.categories}
    taken: set[str] = set()
    texts: list[str] = []
    category_index_of: list[int] = []
    for index, category in enumerate(vocabulary.categories):
        own: set[str] = set()
        for form, is_name in surface_forms(category):
            text = query_text(form)
            if not text or text in own or (text in taken if is_name else text in names):
                continue
            own.add(text)
            if is_name:
                taken.add(text)
            texts.append(text)
            category_index_of.append(index)
    return texts, category_index_of


def _mixed(names_PD: Rows, category_index_of: list[int], glosses: dict[int, str], embedder: TextEmbedder) -> Rows:
    """Return float32 (P, D) unit rows: each name with a share of its category's definition mixed in, where there is
    one.
    """
    defined = sorted(glosses)
    gloss_rows = dict(zip(defined, embedder.embed([glosses[index] for index in defined]), strict=True))
    mixed_PD = names_PD.copy()
    for row, index in enumerate(category_index_of):
        if index in gloss_rows:
            mixed = (1.0 - DEFINITION_SHARE) * names_PD[row] + DEFINITION_SHARE * gloss_rows[index]
            length = float(np.linalg.norm(mixed))
            mixed_PD[row] = mixed / length if length > 0.0 else names_PD[row]
    return mixed_PD
