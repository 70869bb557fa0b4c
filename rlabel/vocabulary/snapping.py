"""Snaps free text to a category, or abstains: exact -> synonym -> inflection -> phrase -> embedding.

The lexical steps (`lexicon`) come first and report similarity 1.0 and margin 1.0: no vector is made for them. The
embedding step reports the cosine to the nearest category, the largest over its names (with its definition mixed in),
and the margin to the next category. Both carry 6 decimals. An abstention keeps the nearest name, where one is known,
and says why; where words name something but do not decide (two things alike, a denial), it has similarity 1.0, margin
0.0.

A text's outcome depends on the text, the vocabulary, the embedder and the two thresholds, never on what else was
snapped: texts are embedded one a call, so that equal runs give equal bytes however the work was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlabel.errors import UsageError
from rlabel.records import Snap
from rlabel.vocabulary.embedding import Rows, TextEmbedder
from rlabel.vocabulary.lexicon import Finding, Lexicon
from rlabel.vocabulary.phrases import first_sentence
from rlabel.vocabulary.prototypes import Prototypes, query_text
from rlabel.vocabulary.vocabulary import Vocabulary

DEFAULT_THRESHOLD = 0.6
DEFAULT_MARGIN = 0.02
# How far another category must lead the head of a noun phrase to be meant instead. Measured: of 1,027 human captions
# 97.3 instead of 96.2 % right, of LVIS synonyms left out one at a time 53.7 instead of 44.9 %; 0.02 loses captions.
NARROWER_LEAD = 0.05
SIMILARITY_DECIMALS = 6
_MAX_REMEMBERED = 100_000
_MAX_REMEMBERED_CHARACTERS = 1000
_LEXICAL_SIMILARITY = 1.0
_LEXICAL_MARGIN = 1.0


class Snapper:
    """Snaps texts to one vocabulary.

    embedder: None leaves out the embedding step; it then abstains where no word decides.
    threshold: the least cosine, in [-1, 1], and margin: the least lead over the next category, in [0, 2], for the
    embedding to decide.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        embedder: TextEmbedder | None,
        threshold: float = DEFAULT_THRESHOLD,
        margin: float = DEFAULT_MARGIN,
    ) -> None:
        """Index the vocabulary; it is embedded when a text first needs it.

        Raises UsageError where threshold or margin is outside its range.
        """
        if not -1.0 <= threshold <= 1.0:
            raise UsageError(
                f"snapping threshold: expected a cosine from -1 to 1, got {threshold}. The default is "
                f"{DEFAULT_THRESHOLD}."
            )
        if not 0.0 <= margin <= 2.0:
            raise UsageError(
                f"snapping margin: expected a difference of cosines from 0 to 2, got {margin}. The default is "
                f"{DEFAULT_MARGIN}."
            )
        self._vocabulary = vocabulary
        self._embedder = embedder
        self._threshold = threshold
        self._margin = margin
        self._lexicon = Lexicon(vocabulary)
        self._prototypes: Prototypes | None = None
        self._remembered: dict[str, Snap] = {}

    def snap(self, texts: Sequence[str]) -> list[Snap]:
        """Return the category of each text, in order; category_id None, with a reason, where it abstains.

        Equal texts are worked out once, also across calls. Never raises for a text, whatever is in it.
        """
        return [self._snap_remembered(text) for text in texts]

    def _snap_remembered(self, text: str) -> Snap:
        known = self._remembered.get(text)
        if known is None and len(text) > _MAX_REMEMBERED_CHARACTERS:
            known = self._snap_one(text)
        elif known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[text] = self._snap_one(text)
        return known

    def _snap_one(self, text: str) -> Snap:
        if not text.strip():
            return _abstain("the answer is empty")
        finding = self._lexicon.find(text)
        if finding is not None:
            return self._narrower(finding) or self._finding_to_snap(finding)
        query = query_text(first_sentence(text))
        if not query:
            return _abstain("the answer has no words")
        if self._embedder is None:
            return _abstain("no name or synonym is in the answer, and there is no embedder")
        cosines_C = self._similarities(self._embedder, query)
        return self._nearest(cosines_C)

    def _narrower(self, finding: Finding) -> Snap | None:
        """Return what a noun phrase means beyond its head ("garbage can": a trash can, not any can), None if
        nothing.
        """
        if not finding.noun_phrase or finding.decided_by is None or self._embedder is None:
            return None
        cosines_C = self._similarities(self._embedder, query_text(finding.noun_phrase))
        lead = float(cosines_C.max()) - float(cosines_C[finding.category_index or 0])
        if not lead > NARROWER_LEAD:
            return None
        nearest = self._nearest(cosines_C)
        return nearest if nearest.decided_by else None

    def _finding_to_snap(self, finding: Finding) -> Snap:
        index = finding.category_index
        category = None if index is None else self._vocabulary.categories[index]
        if finding.decided_by is None or category is None:
            return Snap(
                category_id=None,
                nearest_name=None if category is None else category.name,
                similarity=0.0 if category is None else _LEXICAL_SIMILARITY,
                margin=0.0,
                decided_by=None,
                reason=finding.reason,
            )
        return Snap(
            category_id=category.category_id,
            nearest_name=category.name,
            similarity=_LEXICAL_SIMILARITY,
            margin=_LEXICAL_MARGIN,
            decided_by=finding.decided_by,
        )

    def _similarities(self, embedder: TextEmbedder, query: str) -> Rows:
        """Return float32 (C,), the cosine of a text to each category, in [-1, 1]; NaN where the embedder gave NaN."""
        if self._prototypes is None:
            self._prototypes = Prototypes(self._vocabulary, embedder)
        # One text a call: a text's vector must not depend on its batch-mates (see TextEmbedder).
        return self._prototypes.similarities(embedder.embed([query])[0])

    def _nearest(self, cosines_C: Rows) -> Snap:
        if not np.isfinite(cosines_C).all():
            return _abstain("the similarity is not a number: the embedder gave no usable vector")
        best = int(np.argmax(cosines_C))
        others_C = np.delete(cosines_C, best)
        similarity = _rounded(cosines_C[best])
        lead = _rounded(similarity - (float(others_C.max()) if others_C.size else -1.0))
        category = self._vocabulary.categories[best]
        reason = None
        if similarity < self._threshold:
            reason = f"the nearest category, {category.name!r}, is less similar than {self._threshold}"
        elif lead < self._margin:
            reason = f"the nearest category, {category.name!r}, leads the next by less than {self._margin}"
        return Snap(
            category_id=None if reason else category.category_id,
            nearest_name=category.name,
            similarity=similarity,
            margin=max(lead, 0.0),
            decided_by=None if reason else "embedding",
            reason=reason,
        )


def _rounded(value: float | np.floating) -> float:
    return round(float(value), SIMILARITY_DECIMALS)


def _abstain(reason: str) -> Snap:
    return Snap(category_id=None, nearest_name=None, similarity=0.0, margin=0.0, decided_by=None, reason=reason)
