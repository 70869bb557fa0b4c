"""The vectors that stand for the categories of a vocabulary, and the similarity of a text to each. Decides nothing.

Legend: P prototypes, C categories, N categories that have a prototype, Q queries, B queries of a block, K nearest,
F pairs of a query and a prototype that may be among its nearest, D dimensions of the embedder.
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
# Products of two such numbers are multiples of 2**-48, and of unit vectors their sums stay below 2: 49 of 53 bits.
_GRID = 2.0**24
# Cosines that are held at once: 16 MiB of rough ones. Products of more rows are faster.
_BLOCK_NUMBERS = 2**22
# A float32 product of D terms is off by less than D * 2**-24 times the lengths of its vectors (Higham, Accuracy and Stability of
# Numerical Algorithms, section 3.1), in whatever order it is summed. Twice that is taken.
_ROUGHNESS = 2.0**-23
# Of a query; one to which more prototypes are about equally near has all its cosines worked out.
_MAX_FINALISTS = 64
# Pairs of vectors that are multiplied at once: 50 MB of them.
_PAIRS = 2**13

Cosines = NDArray[np.float64]


class Prototypes:
    """One unit vector for each name and synonym of a vocabulary.

    Cosines are exact: the numbers of all vectors lie on a grid so fine (2**-24) that it changes a cosine by less than 1e-6, and
    so coarse that sums of their products fit into a float64 without rounding. So they have the same bytes in whatever order
    and blocks they are summed, on any number of threads. Such numbers are float32 too, so vectors are kept as that.
    """

    def __init__(self, vocabulary: Vocabulary, embedder: TextEmbedder) -> None:
        """Embed the whole vocabulary in two calls."""
        texts, category_index_of = _names_in_order(vocabulary)
        self._num_categories = len(vocabulary.categories)
        names_PD = embedder.embed(texts)
        glosses = {
            index: f"{category.name}: {category.definition}"
            for index, category in enumerate(vocabulary.categories)
            if category.definition
        }
        if glosses:
            names_PD = _mixed(names_PD, category_index_of, glosses, embedder)
        self._rows_PD: Rows = _on_grid(names_PD)
        self._longest = float(np.linalg.norm(self._rows_PD, axis=1).max(initial=0.0))
        # Prototypes lie in the order of their categories: those of a category stand together.
        owners_P = np.asarray(category_index_of, dtype=np.intp)
        self._owners_P = owners_P
        self._start_of: dict[int, int] = {}
        for row, index in enumerate(category_index_of):
            self._start_of.setdefault(index, row)
        self._named_N: NDArray[np.intp] = np.asarray(list(self._start_of), dtype=np.intp)
        self._starts_N: NDArray[np.intp] = np.asarray(list(self._start_of.values()), dtype=np.intp)
        self._end_of = {index: int(np.searchsorted(owners_P, index, side="right")) for index in self._start_of}

    def similarities(self, vector_D: Rows) -> Cosines:
        """Return float64 (C,), in [-1, 1]: the largest cosine of a unit vector to a prototype of each category; -1
        where it has none, NaN where the embedder gave NaN.
        """
        return self._similarities(vector_D[None])[0]

    def cosine(self, vector_D: Rows, category_index: int) -> float:
        """Return what `similarities` gives for one category."""
        if category_index not in self._start_of:
            return -1.0
        rows_PD = self._rows_PD[self._start_of[category_index] : self._end_of[category_index]]
        return float(np.clip(_wide(rows_PD) @ _wide(_on_grid(vector_D)), -1.0, 1.0).max())

    def nearest(self, rows_QD: Rows, k: int) -> tuple[NDArray[np.intp], Cosines]:
        """Return the k nearest categories of each unit row, best first, of equal ones the first in the vocabulary.

        Gives category indices (Q, K) and cosines, float64 (Q, K), K the lesser of k and the number of categories. A row
        of cosines is NaN where a vector of it or of the vocabulary is not finite. Memory is bounded: rows are taken in blocks.
        """
        num_nearest = max(0, min(k, self._num_categories))
        indices_QK = np.zeros((len(rows_QD), num_nearest), dtype=np.intp)
        cosines_QK = np.zeros((len(rows_QD), num_nearest), dtype=np.float64)
        size = max(1, _BLOCK_NUMBERS // max(1, len(self._rows_PD), self._num_categories))
        for start in range(0, len(rows_QD), size):
            rows_BD = rows_QD[start : start + size]
            block = slice(start, start + len(rows_BD))
            open_B = self._fill_from_finalists(rows_BD, indices_QK[block], cosines_QK[block])
            if open_B.any():
                places_Q = start + np.flatnonzero(open_B)
                indices_QK[places_Q], cosines_QK[places_Q] = self._nearest_of_all(rows_BD[open_B], num_nearest)
        return indices_QK, cosines_QK

    def _nearest_of_all(self, rows_BD: Rows, num_nearest: int) -> tuple[NDArray[np.intp], Cosines]:
        cosines_BC = self._similarities(rows_BD)
        indices_BK = np.zeros((len(rows_BD), num_nearest), dtype=np.intp)
        cosines_BK = np.zeros((len(rows_BD), num_nearest), dtype=np.float64)
        rows_B = np.arange(len(cosines_BC))
        finite_B = np.isfinite(cosines_BC).all(axis=1)
        for place in range(num_nearest):
            best_B = cosines_BC.argmax(axis=1)
            indices_BK[:, place] = best_B
            cosines_BK[:, place] = np.where(finite_B, cosines_BC[rows_B, best_B], np.nan)
            cosines_BC[rows_B, best_B] = -np.inf
        return indices_BK, cosines_BK

    def _fill_from_finalists(
        self, rows_BD: Rows, indices_BK: NDArray[np.intp], cosines_BK: Cosines
    ) -> NDArray[np.bool_]:
        """Work out the nearest of each row from the few prototypes that a rough product leaves; tell of which rows that cannot be done, (B,).

        What is left out is certainly further than the last of the nearest: rough cosines are off by less than `slack`. With 20,000
        prototypes it takes a third of the time of all exact cosines.
        """
        num_nearest = indices_BK.shape[1]
        if not num_nearest or num_nearest > len(self._named_N) or not np.isfinite(self._longest):
            return np.ones(len(rows_BD), dtype=np.bool_)
        rows_BD = _on_grid(rows_BD)
        lengths_B = np.linalg.norm(rows_BD, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            rough_BP = rows_BD @ self._rows_PD.T
            slack_B = rows_BD.shape[1] * _ROUGHNESS * lengths_B * self._longest
        rows_B = np.arange(len(rows_BD))
        taken: list[tuple[int, slice, Rows]] = []
        for place in range(num_nearest):
            best_B = rough_BP.argmax(axis=1)
            last_B = rough_BP[rows_B, best_B]
            if place + 1 < num_nearest:
                for row, index in enumerate(self._owners_P[best_B].tolist()):
                    own = slice(self._start_of[index], self._end_of[index])
                    taken.append((row, own, rough_BP[row, own].copy()))
                    rough_BP[row, own] = -np.inf
        for row, own, values in taken:
            rough_BP[row, own] = values
        least_B = np.minimum(last_B, 1.0) - 2.0 * slack_B
        near_BP = rough_BP >= least_B[:, None].astype(np.float32)
        # Cosines beyond -1 and 1 are clipped and then alike; and a row that is not finite has no order.
        rows_F, prototypes_F = np.divmod(np.flatnonzero(near_BP), len(self._rows_PD))
        num_finalists_B = np.bincount(rows_F, minlength=len(rows_BD))
        open_B = ~(np.isfinite(lengths_B) & (least_B > -1.0)) | (num_finalists_B > _MAX_FINALISTS)
        rows_F, prototypes_F = rows_F[~open_B[rows_F]], prototypes_F[~open_B[rows_F]]
        exact_F = np.empty(len(rows_F), dtype=np.float64)
        for start in range(0, len(rows_F), _PAIRS):
            some = slice(start, start + _PAIRS)
            queries_FD, own_FD = _wide(rows_BD[rows_F[some]]), _wide(self._rows_PD[prototypes_F[some]])
            np.einsum("fd,fd->f", queries_FD, own_FD, out=exact_F[some])
        np.clip(exact_F, -1.0, 1.0, out=exact_F)
        owners_F = self._owners_P[prototypes_F]
        found: dict[int, int] = dict.fromkeys(np.flatnonzero(~open_B).tolist(), 0)
        seen: set[tuple[int, int]] = set()
        for at in np.lexsort((owners_F, -exact_F, rows_F)).tolist():
            row, index = int(rows_F[at]), int(owners_F[at])
            place = found[row]
            if place < num_nearest and (row, index) not in seen:
                seen.add((row, index))
                indices_BK[row, place], cosines_BK[row, place] = index, exact_F[at]
                found[row] = place + 1
        return open_B

    def _similarities(self, rows_BD: Rows) -> Cosines:
        if not self._start_of:
            return np.full((len(rows_BD), self._num_categories), -1.0)
        with np.errstate(invalid="ignore"):  # a NaN passes through: the caller abstains on it
            cosines_BP = _wide(_on_grid(rows_BD)) @ _wide(self._rows_PD).T
            np.clip(cosines_BP, -1.0, 1.0, out=cosines_BP)
            if len(self._rows_PD) == self._num_categories == len(self._named_N):
                return cosines_BP
            cosines_BC = np.full((len(rows_BD), self._num_categories), -1.0)
            cosines_BC[:, self._named_N] = np.maximum.reduceat(cosines_BP, self._starts_N, axis=1)
        return cosines_BC


def _on_grid(rows: Rows) -> Rows:
    """Return rows of float32 on the grid of `Prototypes`: no number of it up to 1 takes more than 24 bits, and above float32 is coarser."""
    return (np.rint(rows.astype(np.float64) * _GRID) / _GRID).astype(np.float32)


def _wide(rows: Rows) -> Cosines:
    """Return rows as float64, in which their products and sums are exact."""
    return rows.astype(np.float64)


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
