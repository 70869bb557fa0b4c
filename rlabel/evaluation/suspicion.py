"""How likely contradicted human labels are wrong, from how sure the labeler is and how near to its answer the human's category comes. Arithmetic only.

Where people and labeler differ, one of them is wrong. A labeler that errs mostly says something near: the true category is among the next likeliest. A person's
slip is taken to fall on any other category alike. Both shares, and how near the labeler's own mistakes come, are estimated together from the contradictions
by expectation maximisation (Dempster, Laird and Rubin, J. R. Stat. Soc. B 1977).

Legend: R regions; B bins of ranks. Slips among look-alikes are commoner than this takes them to be, so they are listed later than they deserve.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
NOT_RANKED = -1
_SUREST_SHARE = 0.2  # of the regions: those whose contradictions are taken for the people's mistakes, as a start
_MOST_RIGHT = 0.999  # no answer is certain
_MAX_ROUNDS = 500
_STILL = 1e-7


def mistake_probabilities(
    sureness_R: Floats, agrees_R: Bools, rank_R: Ints, num_ranked: int, num_categories: int, *, is_calibrated: bool
) -> tuple[float | None, Floats]:
    """Return the estimated share of wrong human labels, None without regions, and of each contradicted one how likely it is wrong (0 for the others).

    sureness_R: of the labeler's answer, in [0, 1]. is_calibrated: it is how often such answers are right; else that is read off from how often people
    agree, which needs some hundreds of regions. rank_R: how many candidates the labeler found likelier than the human's category, NOT_RANKED where that
    is no candidate. num_ranked: candidates of a region; with 0, nearness says nothing. num_categories: among which people chose.
    """
    num = len(sureness_R)
    if not num:
        return None, np.zeros(0)
    surest = np.argsort(-sureness_R, kind="stable")[: max(1, round(_SUREST_SHARE * num))]
    noise = float(1 - agrees_R[surest].mean())
    agreement_R = sureness_R if is_calibrated else _agreement(sureness_R, agrees_R)
    starts = _bin_starts(num_ranked, num_categories)
    bin_R = np.maximum(np.searchsorted(starts, np.where(rank_R == NOT_RANKED, starts[-1], rank_R), "right") - 1, 0)
    width_B = np.diff([*starts, max(num_categories, int(starts[-1]) + 1)])
    chance_B = width_B / width_B.sum()  # of a person's slip
    near_B = chance_B  # of the labeler's mistake; alike at the start
    is_against_R = ~agrees_R
    # With one bin any noise explains the contradictions as well as another.
    is_learned = len(starts) > 1 and bool(is_against_R.any())
    if is_learned:
        noise = max(noise, 0.5 / num)
    for _ in range(_MAX_ROUNDS):
        right_R = np.minimum(agreement_R if is_calibrated else agreement_R / max(1 - noise, _STILL), _MOST_RIGHT)
        slip_R = noise * chance_B[bin_R]
        wrong_R = np.where(
            is_against_R, slip_R / np.maximum(slip_R + (1 - noise) * (1 - right_R) * near_B[bin_R], 1e-300), 0.0
        )
        if not is_learned:
            break
        before, noise = noise, float(np.clip(wrong_R.sum() / num, 0.0, 0.5))
        near_B = _falling(
            (np.bincount(bin_R, (1 - wrong_R) * is_against_R, len(starts)) + chance_B) / chance_B, chance_B
        )
        if abs(noise - before) < _STILL:
            break
    return noise, wrong_R


def _agreement(sureness_R: Floats, agrees_R: Bools) -> Floats:
    """Return how often people agree with an answer of each sureness: isotonic regression, so that a surer one never counts for less."""
    from sklearn.isotonic import IsotonicRegression

    return np.asarray(IsotonicRegression(y_min=0, y_max=1).fit_transform(sureness_R, agrees_R.astype(np.float64)))


def _bin_starts(num_ranked: int, num_categories: int) -> Ints:
    """Return the first ranks of the bins: 1, 2, 3, 5, 9, ..., and one for what is no candidate."""
    starts = [1]
    while (following := 2 * starts[-1] - (starts[-1] > 1)) < min(num_ranked, num_categories):
        starts.append(following)
    is_rest = 1 < num_ranked < num_categories
    return np.asarray([*starts, num_ranked] if is_rest else starts, dtype=np.int64)


def _falling(density_B: Floats, chance_B: Floats) -> Floats:
    """Return shares (they sum to 1) whose density never rises with rank: a mistake is rather near than far."""
    from sklearn.isotonic import IsotonicRegression

    places_B = np.arange(len(density_B))
    fitted_B = IsotonicRegression(increasing=False).fit(places_B, density_B, sample_weight=chance_B).predict(places_B)
    return np.asarray(fitted_B * chance_B / (fitted_B * chance_B).sum())
