"""Measures of scores, against hand arithmetic, scikit-learn and scipy, and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binomtest
from sklearn.metrics import brier_score_loss, log_loss

from rlabel.evaluation.reliability import (
    effective_labels,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    find_threshold,
    hold,
    least_labels,
    reliability,
    risk_coverage,
)


def floats(*values: float) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def bools(*values: int) -> NDArray[np.bool_]:
    return np.asarray(values, dtype=bool)


def made(num: int, seed: int = 0, tilt: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores whose labels are right with the chance score ** tilt."""
    generator = np.random.default_rng(seed)
    score_N = generator.uniform(size=num).round(6)
    return score_N, generator.uniform(size=num) < score_N**tilt


def test_calibration_error_by_hand() -> None:
    # 15 bins: 0.91 and 0.92 in (0.867, 0.933], 0.1 in (0.067, 0.133]
    bins = equal_width_bins(floats(0.91, 0.92, 0.1), bools(1, 0, 0))
    assert [one.num_labels for one in bins] == [1, 2]
    assert expected_calibration_error(bins) == pytest.approx((abs(0.1 - 0) + 2 * abs(0.915 - 0.5)) / 3)


def test_a_bin_holds_its_upper_end_and_the_first_one_zero() -> None:
    bins = equal_width_bins(floats(0.0, 0.5, 0.500001, 1.0), bools(0, 0, 1, 1), num_bins=2)
    assert [(one.low, one.high, one.num_labels) for one in bins] == [(0.0, 0.5, 2), (0.5, 1.0, 2)]


def test_bins_of_equal_mass_hold_equally_many_and_never_part_equal_scores() -> None:
    score_N, is_right_N = made(150)
    assert {one.num_labels for one in equal_mass_bins(score_N, is_right_N)} == {10}
    tied = equal_mass_bins(floats(*[0.5] * 90, *[0.7] * 60), bools(*[1, 0] * 75))
    assert [one.num_labels for one in tied] == [90, 60]
    assert [one.num_labels for one in equal_mass_bins(floats(*[0.0] * 9), bools(*[0] * 9))] == [9]


def test_brier_and_log_loss_are_scikit_learns() -> None:
    score_N, is_right_N = made(500)
    found = reliability(score_N, is_right_N)
    assert found.brier == pytest.approx(brier_score_loss(is_right_N, score_N))
    assert found.log_loss == pytest.approx(log_loss(is_right_N, np.clip(score_N, 1e-6, 1 - 1e-6)))


def test_the_error_by_chance_is_what_right_scores_show() -> None:
    by_chance = [reliability(*made(300, seed)).ece for seed in range(20)]
    assert reliability(*made(300)).ece_by_chance == pytest.approx(np.mean(by_chance), abs=0.006)
    assert reliability(*made(30_000)).ece_by_chance < 0.012
    assert reliability(*made(30_000, tilt=3)).ece > 0.1  # and scores that are wrong show more


def test_risk_and_coverage_by_hand() -> None:
    assert risk_coverage(floats(0.9, 0.8, 0.7, 0.6), bools(1, 0, 1, 0)).tolist() == [0, 1 / 2, 1 / 3, 1 / 2]
    found = reliability(floats(0.9, 0.8, 0.7, 0.6), bools(1, 0, 1, 0))
    assert found.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # A perfect order: no wrong one among the first two, then 1 of 3 and 2 of 4.
    assert found.excess_aurc == pytest.approx(found.aurc - (1 / 3 + 1 / 2) / 4)


def test_equal_scores_take_the_mean_over_all_orders() -> None:
    is_right = (1, 0, 0, 1)
    orders = [
        risk_coverage(floats(0.9, 0.3, 0.2, 0.1), bools(1, *order)) for order in itertools.permutations((0, 0, 1))
    ]
    assert risk_coverage(floats(0.9, 0.2, 0.2, 0.2), bools(*is_right)) == pytest.approx(np.mean(orders, axis=0))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_the_order_of_labels_changes_nothing(pairs: list[tuple[float, bool]], dice: object) -> None:
    shuffled = list(pairs)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (reliability(floats(*(s for s, _ in p)), bools(*(r for _, r in p))) for p in (pairs, shuffled))
    for name in ("ece", "ece_equal_mass", "ece_by_chance", "brier", "log_loss", "aurc", "excess_aurc"):
        assert getattr(other, name) == pytest.approx(getattr(one, name))
    assert one.excess_aurc >= -1e-12


def test_the_threshold_keeps_the_most_labels_that_are_right_often_enough() -> None:
    score_N = floats(0.9, 0.8, 0.7, 0.7, 0.6, 0.5)
    is_right_N = bools(1, 0, 1, 1, 1, 0)
    # From 0.9: 1/1; 0.8: 1/2; 0.7: 3/4; 0.6: 4/5; 0.5: 4/6. The 0.7s stand or fall together.
    found = find_threshold(score_N, is_right_N, 10, 0.75)
    assert (found.score, found.num_labels, found.num_right, found.coverage) == (0.6, 5, 4, 0.5)
    assert find_threshold(score_N, is_right_N, 10, 0.81).score == 0.9
    none = find_threshold(score_N[1:], is_right_N[1:], 10, 0.9)
    assert (none.score, none.num_labels, none.coverage) == (None, 0, 0.0)


def test_the_sure_threshold_is_clopper_and_pearsons() -> None:
    score_N, is_right_N = made(2000, tilt=0.05)
    found = find_threshold(score_N, is_right_N, 2000, 0.95, confidence=0.95)
    assert found.score is not None
    # The two-sided interval of 90 % has the one-sided bound of 95 % as its lower end.
    bound = binomtest(found.num_right, found.num_labels).proportion_ci(0.9, method="exact").low
    assert bound >= 0.95
    assert found.coverage < find_threshold(score_N, is_right_N, 2000, 0.95).coverage
    below = np.sort(np.unique(score_N[score_N < found.score]))[::-1]
    for score in below[:: max(1, len(below) // 40)]:  # no lower one would do
        reached = score_N >= score
        low = binomtest(int(is_right_N[reached].sum()), int(reached.sum())).proportion_ci(0.9, method="exact").low
        assert low < 0.95


def test_few_labels_promise_nothing() -> None:
    # 58 of 58 right: 0.05 ** (1 / 58) = 0.9497 is below 0.95; with 59 it is above.
    assert find_threshold(np.full(58, 0.9), np.ones(58, dtype=bool), 58, 0.95, 0.95).score is None
    assert find_threshold(np.full(59, 0.9), np.ones(59, dtype=bool), 59, 0.95, 0.95).score == 0.9


def test_a_sure_threshold_keeps_its_promise_on_new_labels() -> None:
    kept = broken = 0
    for seed in range(60):
        threshold = find_threshold(*made(600, seed, tilt=0.1), 600, 0.95, 0.95)
        held = hold(threshold, *made(20_000, 1000 + seed, tilt=0.1), 20_000)
        kept += held.precision is not None
        broken += held.precision is not None and held.precision < 0.95
    assert kept > 40 and broken / kept <= 0.15  # 5 %, and a little for choosing among thresholds


def test_a_threshold_that_does_not_exist_labels_nothing() -> None:
    none = find_threshold(floats(0.5), bools(0), 1, 0.95)
    held = hold(none, floats(0.9, 1.0), bools(1, 1), 2)
    assert (held.num_labels, held.precision, held.coverage) == (0, None, 0.0)


def test_fewer_labels_than_the_least_never_promise_and_so_many_do() -> None:
    for precision, confidence in ((0.95, 0.95), (0.95, 0.9), (0.8, 0.5)):
        least = least_labels(precision, confidence)
        for num, is_found in ((least - 1, False), (least, True)):
            found = find_threshold(np.full(num, 0.9), np.ones(num, dtype=bool), num, precision, confidence)
            assert (found.score is not None) == is_found
    assert (least_labels(0.95, 0.95), least_labels(0.95, 0.0)) == (59, 20)


def test_no_labels_have_no_threshold() -> None:
    assert find_threshold(floats(), bools(), 0, 0.9).score is None


def test_labels_that_vary_together_count_for_fewer() -> None:
    # 40 groups of 5 labels alike, 38 groups right: worth about 40 labels; each alone, all 200
    is_right_N = np.repeat(np.arange(40) % 20 != 0, 5)
    score_N, alike_N, alone_N = np.full(200, 0.9), np.repeat(np.arange(40), 5), np.arange(200)

    def bound(num_right: float, num: float) -> float:
        return float(beta.ppf(0.1, num_right, num - num_right + 1))

    # variance of the share: 40 / 39 * (2 * 4.75 ** 2 + 38 * 0.25 ** 2) / 200 ** 2, so worth 0.95 * 0.05 / variance = 39 labels
    worth = 0.95 * 0.05 / (40 / 39 * (2 * 4.75**2 + 38 * 0.25**2) / 200**2)
    assert worth == pytest.approx(39)
    for group_N, reached in (
        (None, bound(190, 200)),
        (alone_N, bound(190 * 0.995, 199)),
        (alike_N, bound(0.95 * 39, 39)),
    ):
        for precision, is_found in ((reached - 1e-6, True), (reached + 1e-6, False)):
            found = find_threshold(score_N, is_right_N, 200, precision, 0.9, group_N)
            assert (found.score is not None) == is_found


def test_labels_that_are_all_right_count_as_their_groups() -> None:
    score_N, is_right_N, group_N = np.full(90, 0.9), np.ones(90, dtype=bool), np.repeat(np.arange(30), 3)
    assert find_threshold(score_N, is_right_N, 90, 0.95, 0.9).score is not None  # 45 would do
    assert find_threshold(score_N, is_right_N, 90, 0.95, 0.9, group_N).score is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_the_worth_of_labels_is_that_of_the_formula(rows: list[tuple[int, bool, int]]) -> None:
    score_N, is_right_N = floats(*(one[0] / 5 for one in rows)), bools(*(one[1] for one in rows))
    group_N = np.asarray([one[2] for one in rows])
    expected = []
    for score in sorted(set(score_N.tolist()), reverse=True):
        kept = score_N >= score
        share, num, groups = is_right_N[kept].mean(), int(kept.sum()), np.unique(group_N[kept])
        spread = [is_right_N[kept & (group_N == g)].sum() - share * (kept & (group_N == g)).sum() for g in groups]
        variance = len(groups) / max(len(groups) - 1, 1) * float(np.square(spread).sum()) / num**2
        worth = share * (1 - share) / variance if 0 < share < 1 and variance > 1e-12 else len(groups)
        expected.append(min(worth, num))
    assert effective_labels(score_N, is_right_N, group_N) == pytest.approx(expected, rel=1e-6)
