"""Scores of labels, from the model's token probabilities and the way the text was snapped.

The scores are ordered (a more probable answer that is nearer to its category scores higher) but not calibrated: a score
of 0.8 does not promise 80 % right answers. Calibrating them on labeled data is left to whoever uses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlabel.records import Evidence, Snap

SCORE_DECIMALS = 6
_LOGPROB_FLOOR = -1000.0


def text_score(token_logprobs: Sequence[float]) -> float:
    """Return the probability of the whole answer, exp(sum of token log-probabilities), in [0, 1], to 6 decimals.

    token_logprobs: natural logarithms, end token included, any order. No tokens at all, or one that is not a number,
    give 0.0.
    """
    if not token_logprobs or any(math.isnan(logprob) for logprob in token_logprobs):
        return 0.0
    return round(math.exp(math.fsum(map(floored, token_logprobs))), SCORE_DECIMALS)


def label_score(text_probability: float, snap: Snap) -> float:
    """Return the score of a label in [0, 1], to 6 decimals: uncalibrated, but ordered. 0.0 where the snap abstains.

    text_probability: what `text_score` gave. It stands as it is where words decided, and is multiplied by
    max(similarity, 0) where the embedding did.
    """
    if snap.category_id is None or not math.isfinite(text_probability):
        return 0.0
    nearness = max(snap.similarity, 0.0) if snap.decided_by == "embedding" else 1.0
    return round(min(max(text_probability * nearness, 0.0), 1.0), SCORE_DECIMALS)


def candidate_share(evidence: Evidence) -> float:
    """Return the first candidate's share of the probability of all candidates, in [0, 1], to 6 decimals; 0.0 where there is none."""
    return first_share([one.logprob for one in evidence.candidates])


def first_share(logprobs: Sequence[float]) -> float:
    """Return the share of the first of some probabilities, given as natural logarithms, of their sum; see `candidate_share`."""
    if not logprobs:
        return 0.0
    most = max(logprobs)  # not always the first: they may be ranked otherwise
    shares = [math.exp(logprob - most) for logprob in logprobs]
    return round(shares[0] / math.fsum(shares), SCORE_DECIMALS)


def evidence_of(token_logprobs: Sequence[float], agreement: float | None = None) -> Evidence:
    """Return what the log-probabilities of an answer's tokens say, to 6 decimals; none of them gives zeros. They must be finite."""
    if not token_logprobs:
        return Evidence(agreement=agreement)
    values = [floored(value) for value in token_logprobs]
    return Evidence(
        num_tokens=len(values),
        mean_logprob=round(math.fsum(values) / len(values), SCORE_DECIMALS),
        min_logprob=round(min(values), SCORE_DECIMALS),
        agreement=agreement,
    )


def floored(logprob: float) -> float:
    """Return a log-probability within [-1000, 0]: half precision can lift one slightly above 0, and sums of lower ones overflow."""
    return min(0.0, max(logprob, _LOGPROB_FLOOR))
