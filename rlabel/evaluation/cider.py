"""CIDEr-D, the consensus of a caption with its references (Vedantam, Zitnick and Parikh 2015, arXiv 1411.5726, section 5 and equation 5).

The variant is that of the authors' code, which COCO's caption evaluation runs: n-grams of 1 to 4 words, counts (not frequencies) times the logarithm of
(number of items / items whose references hold the n-gram), counts of the candidate clipped to the reference's, a Gaussian penalty of sigma 6 on the
difference in length, times 10; document frequencies are those of the references at hand. No stemming. Left out is COCO's Java tokenizer: a word here is
a run of letters and digits, with hyphens and apostrophes inside it, in lower case; all other punctuation is dropped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_LONGEST, _SIGMA = 4, 6.0
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
NGrams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """Return the words of a caption as CIDEr counts them."""
    return _WORD.findall(text.lower())


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each candidate against its own references, from 0 to 10; the corpus's score is the mean.

    references: at least one an item. An empty candidate scores 0; so does everything in a corpus of one item, where no n-gram tells items apart.
    """
    of_candidates = [_ngrams(text) for text in candidates]
    of_references = [[_ngrams(text) for text in texts] for texts in references]
    assert len(of_candidates) == len(of_references) and all(of_references)
    frequency: Counter[tuple[str, ...]] = Counter()
    for items in of_references:
        frequency.update({ngram for item in items for ngram in item})
    log_items = math.log(len(of_references)) if of_references else 0.0

    def weighed(ngrams: NGrams) -> list[dict[tuple[str, ...], float]]:
        """Return the weights of the n-grams, for each n."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for ngram, count in ngrams.items():
            vectors[len(ngram) - 1][ngram] = count * (log_items - math.log(max(1, frequency[ngram])))
        return vectors

    scores = []
    for candidate, items in zip(of_candidates, of_references, strict=True):
        own = weighed(candidate)
        similar = [
            _similarity(own, weighed(item)) * math.exp(-((_length(candidate) - _length(item)) ** 2) / (2 * _SIGMA**2))
            for item in items
        ]
        scores.append(10 * math.fsum(similar) / len(similar))
    return scores


def _ngrams(text: str) -> NGrams:
    said = words(text)
    return Counter(tuple(said[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(said) - n + 1))


def _length(ngrams: NGrams) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 1)


def _similarity(own: list[dict[tuple[str, ...], float]], other: list[dict[tuple[str, ...], float]]) -> float:
    """Return the mean over n of the cosines, the candidate's weights clipped to the reference's."""
    total = 0.0
    for mine, theirs in zip(own, other, strict=True):
        norms = math.sqrt(math.fsum(v * v for v in mine.values())) * math.sqrt(
            math.fsum(v * v for v in theirs.values())
        )
        if norms:
            total += (
                math.fsum(min(v, theirs[ngram]) * theirs[ngram] for ngram, v in mine.items() if ngram in theirs) / norms
            )
    return total / _LONGEST
