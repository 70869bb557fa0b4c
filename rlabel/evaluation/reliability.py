"""How far scores can be trusted: calibration error, Brier score, risk and coverage, thresholds that promise a precision. Arithmetic only.

Legend: N labels; score_N float64 in [0, 1]; is_right_N bool. Equal scores are never told apart: no number here depends on the order of labels.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rlabel.records import JsonObject, JsonValue
from rlabel.vocabulary.calibration import Threshold

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NUM_BINS = 15
_NUM_SIMULATIONS = 200
_SEED = 20_231
_LEAST = 1e-6  # what a score of 0 or 1 counts as in the log loss; scores carry 6 decimals


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Labels whose scores lie together: from low (excluded, but for 0) to high. mean_score, accuracy: in [0, 1]."""

    low: float
    high: float
    num_labels: int
    mean_score: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """What scores are worth on some labels.

    ece, ece_equal_mass: expected calibration error over 15 bins, as wide as each other or with as many labels as each other.
    ece_by_chance: the mean ece that scores of this size show when they are exactly right, from simulated outcomes: no ece far below it can be measured.
    aurc: area under the risk-coverage curve, the mean share of wrong labels among the surest 1, 2, ... N; excess_aurc: minus that of a perfect order.
    """

    num_labels: int
    num_right: int
    mean_score: float
    ece: float
    ece_equal_mass: float
    ece_by_chance: float
    brier: float
    log_loss: float
    aurc: float
    excess_aurc: float
    bins: tuple[Bin, ...]

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_labels

    def to_json(self) -> JsonObject:
        bins: list[JsonValue] = [asdict(one) for one in self.bins]
        return {**{name: value for name, value in asdict(self).items() if name != "bins"}, "bins": bins}


def reliability(score_N: Floats, is_right_N: Bools) -> Reliability:
    """Return all measures of these labels, of which there must be at least one. Their order does not matter, and nothing is random."""
    assert len(score_N) == len(is_right_N) > 0, "reliability of no labels"
    bins = equal_width_bins(score_N, is_right_N)
    inside_N = np.clip(score_N, _LEAST, 1 - _LEAST)
    curve_N = risk_coverage(score_N, is_right_N)
    return Reliability(
        num_labels=len(score_N),
        num_right=int(is_right_N.sum()),
        mean_score=float(score_N.mean()),
        ece=expected_calibration_error(bins),
        ece_equal_mass=expected_calibration_error(equal_mass_bins(score_N, is_right_N)),
        ece_by_chance=_ece_by_chance(score_N),
        brier=float(np.mean((score_N - is_right_N) ** 2)),
        log_loss=float(-np.mean(np.log(np.where(is_right_N, inside_N, 1 - inside_N)))),
        aurc=float(curve_N.mean()),
        excess_aurc=float(curve_N.mean() - risk_coverage(is_right_N.astype(np.float64), is_right_N).mean()),
        bins=tuple(bins),
    )


def equal_width_bins(score_N: Floats, is_right_N: Bools, num_bins: int = NUM_BINS) -> list[Bin]:
    """Return the bins with labels in them, ascending. A bin holds its upper end: Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""
    return _bins(score_N, is_right_N, np.linspace(0.0, 1.0, num_bins + 1))


def equal_mass_bins(score_N: Floats, is_right_N: Bools, num_bins: int = NUM_BINS) -> list[Bin]:
    """Return bins of about as many labels as each other, ascending; fewer where many scores are equal."""
    ends = np.quantile(score_N, np.arange(1, num_bins + 1) / num_bins, method="inverted_cdf")
    return _bins(score_N, is_right_N, np.unique(np.concatenate([[0.0], ends])))


def _bins(score_N: Floats, is_right_N: Bools, edges: Floats) -> list[Bin]:
    place_N = _places(score_N, edges)
    return [
        Bin(
            low=float(edges[place]),
            high=float(edges[min(place + 1, len(edges) - 1)]),
            num_labels=int((place_N == place).sum()),
            mean_score=float(score_N[place_N == place].mean()),
            accuracy=float(is_right_N[place_N == place].mean()),
        )
        for place in np.unique(place_N)
    ]


def _places(score_N: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, score_N, side="left") - 1, 0, max(len(edges) - 2, 0))


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the distance of mean score and accuracy, averaged over labels, in [0, 1]."""
    num_labels = sum(one.num_labels for one in bins)
    return sum(one.num_labels / num_labels * abs(one.mean_score - one.accuracy) for one in bins)


def _ece_by_chance(score_N: Floats) -> float:
    """Return the mean calibration error of outcomes drawn with exactly these probabilities: the bias that few labels leave in it."""
    generator = np.random.default_rng(_SEED)
    ordered_N = np.sort(score_N)
    place_N = _places(ordered_N, np.linspace(0.0, 1.0, NUM_BINS + 1))
    expected_B = np.bincount(place_N, weights=ordered_N)
    errors = [
        np.abs(np.bincount(place_N, weights=generator.random(len(ordered_N)) < ordered_N) - expected_B).sum()
        for _ in range(_NUM_SIMULATIONS)
    ]
    return float(np.mean(errors)) / len(ordered_N)


def risk_coverage(score_N: Floats, is_right_N: Bools) -> Floats:
    """Return risk_N: the share of wrong ones among the surest 1, 2, ... N labels.

    Among equal scores the wrong ones come evenly: what a random order would give in the mean. Source: Geifman and El-Yaniv, NeurIPS 2017.
    """
    num, num_right = _reached(score_N, is_right_N)
    wrong = np.concatenate([[0], num - num_right])
    places = np.arange(1, len(score_N) + 1)
    return np.interp(places, np.concatenate([[0], num]), wrong) / places


def _reached(score_N: Floats, is_right_N: Bools) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each distinct score from the highest down, how many labels have at least it, and how many of those are right."""
    _, place_N = np.unique(-score_N, return_inverse=True)
    num = np.bincount(place_N).cumsum()
    return num, np.bincount(place_N, weights=is_right_N).astype(np.int64).cumsum()


def find_threshold(
    score_N: Floats,
    is_right_N: Bools,
    num_regions: int,
    precision: float,
    confidence: float = 0.0,
    group_N: NDArray[np.int64] | None = None,
) -> Threshold:
    """Return the least score from which on at least `precision` of the labels are right: the one with the largest coverage.

    confidence: 0 takes the share that is right as it is; else the lower Clopper-Pearson bound of that confidence must reach the precision (Clopper
    and Pearson, Biometrika 1934), so that it is likely to hold on other labels. It takes the threshold as given: choosing among thresholds makes it a
    little less sure than it says.
    group_N: labels with one number are right or wrong together more often than others, as those of one picture are; they count for as many labels as
    would vary as much by themselves (Korn and Graubard, Survey Methodology 1998), and all right ones for as many as there are groups. None: no groups.
    num_regions: what coverage is a share of.
    """
    from scipy.stats import beta

    num, num_right = _reached(score_N, is_right_N)
    bound = num_right / np.maximum(num, 1)
    if confidence > 0 and len(score_N):
        worth = num.astype(np.float64) if group_N is None else effective_labels(score_N, is_right_N, group_N)
        right = bound * worth
        bound = np.where(num_right > 0, beta.ppf(1 - confidence, np.maximum(right, 1e-9), worth - right + 1), 0.0)
    places = np.flatnonzero(bound >= precision)
    place = int(places[-1]) if len(places) else None
    reached = 0 if place is None else int(num[place])
    return Threshold(
        precision=precision,
        confidence=confidence,
        score=None if place is None else float(np.unique(score_N)[::-1][place]),
        num_labels=reached,
        num_right=0 if place is None else int(num_right[place]),
        coverage=reached / num_regions if num_regions else 0.0,
    )


def effective_labels(score_N: Floats, is_right_N: Bools, group_N: NDArray[np.int64]) -> Floats:
    """Return, for each distinct score from the highest down, how many independent labels those that reach it are worth."""
    order_N = np.argsort(-score_N, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score_N[order_N]) != 0, True])
    size: Counter[int] = Counter()
    right: Counter[int] = Counter()
    sums = np.empty((len(score_N), 3))  # over the groups: of size squared, of size times right, of right squared
    groups_N = np.empty(len(score_N))
    squares, products, rights = 0, 0, 0
    for place, (group, is_right) in enumerate(
        zip(group_N[order_N].tolist(), is_right_N[order_N].tolist(), strict=True)
    ):
        n, k = size[group], right[group]
        squares, products, rights = (
            squares + 2 * n + 1,
            products + k + (n + 1 if is_right else 0),
            rights + (2 * k + 1 if is_right else 0),
        )
        size[group], right[group] = n + 1, k + int(is_right)
        sums[place] = squares, products, rights
        groups_N[place] = len(size)
    num, num_groups = ends + 1.0, groups_N[ends]
    share = np.cumsum(is_right_N[order_N])[ends] / num
    spread = (sums[ends, 2] - 2 * share * sums[ends, 1] + share**2 * sums[ends, 0]) * num_groups
    variance = spread / np.maximum(num_groups - 1, 1) / num**2
    worth = np.where(variance > 1e-12, share * (1 - share) / np.maximum(variance, 1e-300), num_groups)
    return np.minimum(np.where((share > 0) & (share < 1), worth, num_groups), num)


def least_labels(precision: float, confidence: float) -> int:
    """Return how many labels, all of them right, a threshold needs at least to promise a precision; without a confidence, one wrong label's worth."""
    if confidence <= 0:
        return math.ceil(1 / (1 - precision) - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log(precision) - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What became of a threshold on labels that it was not read off. precision: None where none reached it. coverage: of all regions."""

    num_labels: int
    num_right: int
    coverage: float

    @property
    def precision(self) -> float | None:
        return self.num_right / self.num_labels if self.num_labels else None


def hold(threshold: Threshold, score_N: Floats, is_right_N: Bools, num_regions: int) -> Held:
    """Return what a threshold gives on these labels; one without a score labels nothing."""
    reached_N = np.zeros(len(score_N), dtype=bool) if threshold.score is None else score_N >= threshold.score
    num_labels = int(reached_N.sum())
    return Held(
        num_labels=num_labels,
        num_right=int(is_right_N[reached_N].sum()),
        coverage=num_labels / num_regions if num_regions else 0.0,
    )
