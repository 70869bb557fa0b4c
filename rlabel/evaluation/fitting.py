"""Fits calibrators with scikit-learn, and chooses among them by cross-validation over images. Nothing of scikit-learn is in what it returns.

Legend: N labels; score_N float64 in [0, 1]; is_right_N bool; image_N int64, labels of one image have one number and are never parted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlabel.evaluation.judged_labels import Labels
from rlabel.evaluation.reliability import Bools, Floats
from rlabel.vocabulary.calibration import Calibrator, Features, Weight, apply
from rlabel.vocabulary.scores import SCORE_DECIMALS

Method = Literal["isotonic", "logistic_score", "logistic", "logistic_isotonic"]
# The simplest first: of ways that are as good as each other the first is taken. Steps come late, since they lose the order within each.
METHODS: tuple[Method, ...] = ("logistic_score", "logistic", "isotonic", "logistic_isotonic")
NUM_FOLDS = 5
_NUM_REPEATS = 5
# Of the uncalibrated score alone: beta calibration (see `features_of`).
_OF_SCORE = ("log_score", "log_rest")
# What cross-validation chooses from: the inverse strength of the ridge penalty, and the fewest labels of a step.
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_STEP_SIZES = (20, 40)
_LEAST_SPREAD = 1e-6  # a feature that varies less is the same for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One way of fitting, measured on folds that it was not fitted on. strength, step_size: None where the method has no such thing."""

    method: Method
    strength: float | None
    step_size: int | None
    log_loss: float
    brier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A calibrator that is fitted on all labels.

    tried: the way that was taken, then the others, best first. score_N: of each label by calibrators that its image had no part in.
    """

    calibrator: Calibrator
    tried: tuple[Tried, ...]
    score_N: Floats


def fit(labels: Labels, methods: Sequence[Method] = METHODS) -> Fit:
    """Return the simplest calibrator, among these methods, whose log loss in cross-validation over images is within one standard error of the best.

    The standard error is of the paired difference, over images. Source of the rule: Breiman, Friedman, Olshen and Stone, Classification and
    Regression Trees (1984), section 3.4.3. The labels must have passed `check_enough`. The same labels give the same calibrator.
    """
    rows = _rows_of(labels)
    found: list[_Found] = []
    folds = _folds(rows)
    for method, strength, step_size in _ways(methods):
        fitter = _fitter(method, strength, step_size)
        score_N = _cross_fitted(rows, folds, fitter)
        inside_N = np.clip(score_N, 1e-6, 1 - 1e-6)
        loss_N = -np.log(np.where(labels.is_right_N, inside_N, 1 - inside_N))
        tried = Tried(
            method=method,
            strength=strength,
            step_size=step_size,
            log_loss=float(loss_N.mean()),
            brier=float(np.mean((score_N - labels.is_right_N) ** 2)),
        )
        found.append(_Found(tried=tried, score_N=score_N, loss_N=loss_N, fitter=fitter))
    chosen = _simplest(found, labels.image_N)
    # Other foldings: the mean of several is near to what the calibrator of all labels would say of a label that it has not seen.
    repeats = [_cross_fitted(rows, _folds(rows, seed), chosen.fitter) for seed in range(1, _NUM_REPEATS)]
    others = sorted((one for one in found if one is not chosen), key=lambda one: one.tried.log_loss)
    return Fit(
        calibrator=replace(chosen.fitter(rows), method=chosen.tried.method),
        tried=tuple(one.tried for one in (chosen, *others)),
        score_N=np.stack([chosen.score_N, *repeats]).mean(axis=0).round(SCORE_DECIMALS),
    )


def predict(calibrator: Calibrator, features: Sequence[Features]) -> Floats:
    """Return the calibrated scores, float64 (N,), exactly as labeling gives them."""
    return np.asarray([apply(calibrator, one) for one in features], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Labels as a matrix. value_NF: of the features in `names`; NaN where missing."""

    names: tuple[str, ...]
    value_NF: Floats
    is_right_N: Bools
    image_N: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> _Rows:
        return _Rows(
            names=self.names,
            value_NF=self.value_NF[rows],
            is_right_N=self.is_right_N[rows],
            image_N=self.image_N[rows],
        )


def _rows_of(labels: Labels) -> _Rows:
    names = tuple(sorted({name for one in labels.features for name in one}))
    rows = [[_number(one.get(name, _default(name))) for name in names] for one in labels.features]
    return _Rows(
        names=names,
        value_NF=np.asarray(rows, dtype=np.float64).reshape(len(rows), len(names)),
        is_right_N=labels.is_right_N,
        image_N=labels.image_N,
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _default(name: str) -> float | None:
    """Return what a feature that is not there counts as: that another step decided is no missing feature (see `apply`)."""
    return 0.0 if name.startswith("decided_by=") else None


def _predict(calibrator: Calibrator, rows: _Rows) -> Floats:
    """Return what `predict` returns, all at once; the last of the 6 decimals may differ."""
    place = {name: column for column, name in enumerate(rows.names)}
    if calibrator.weights:
        logit_N = np.full(len(rows.value_NF), calibrator.intercept)
        for one in calibrator.weights:
            value_N = rows.value_NF[:, place[one.name]]
            part_N = one.weight * (value_N - one.mean) / one.scale
            logit_N += np.where(np.isnan(value_N), one.weight_missing, part_N)
        score_N = 1.0 / (1.0 + np.exp(-np.clip(logit_N, -500.0, 500.0)))
    else:
        score_N = np.exp(rows.value_NF[:, place["log_score"]])
    score_N = np.round(score_N, SCORE_DECIMALS)
    if calibrator.starts:
        step_N = np.searchsorted(np.asarray(calibrator.starts), score_N, side="right") - 1
        score_N = np.asarray(calibrator.values)[np.maximum(step_N, 0)]
    return score_N


_Fitter = Callable[[_Rows], Calibrator]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A way with its cross-fitted scores and the log loss of each label."""

    tried: Tried
    score_N: Floats
    loss_N: Floats
    fitter: _Fitter


def _simplest(found: Sequence[_Found], image_N: NDArray[np.int64]) -> _Found:
    best = min(found, key=lambda one: one.tried.log_loss)
    for method in METHODS:
        own = [one for one in found if one.tried.method == method]
        if not own:
            continue
        first = min(own, key=lambda one: one.tried.log_loss)
        more_I = np.bincount(image_N, weights=first.loss_N - best.loss_N)
        error = float(np.sqrt(len(more_I) * more_I.var())) / len(image_N)
        if first.tried.log_loss - best.tried.log_loss <= error:
            return first
    return best


def _ways(methods: Sequence[Method]) -> Iterator[tuple[Method, float | None, int | None]]:
    for method in methods:
        if method == "isotonic":
            yield from ((method, None, size) for size in _STEP_SIZES)
        elif method == "logistic_isotonic":
            yield from ((method, strength, _STEP_SIZES[0]) for strength in _STRENGTHS[1:3])
        else:
            yield from ((method, strength, None) for strength in _STRENGTHS)


def _fitter(method: Method, strength: float | None, step_size: int | None) -> _Fitter:
    if method == "isotonic":
        return lambda rows: _fit_isotonic(rows, step_size or 1)
    if method == "logistic_isotonic":
        return lambda rows: _fit_both(rows, strength or 1.0, step_size or 1)
    names = _OF_SCORE if method == "logistic_score" else None
    return lambda rows: _fit_logistic(rows, strength or 1.0, names)


_Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _folds(rows: _Rows, seed: int = 0) -> _Folds:
    """Return (rows to fit on, rows to measure on) of each fold, the labels of an image always together."""
    from sklearn.model_selection import GroupKFold

    num_folds = min(NUM_FOLDS, len(np.unique(rows.image_N)))
    splitter = GroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    return list(splitter.split(rows.value_NF, rows.is_right_N, rows.image_N))


def _cross_fitted(rows: _Rows, folds: _Folds, fitter: _Fitter) -> Floats:
    score_N = np.empty(len(rows.value_NF))
    for fitted, measured in folds:
        part = rows.take(fitted)
        # All right or all wrong: there is nothing to fit, but the share with one label of the other kind.
        if part.is_right_N.all() or not part.is_right_N.any():
            score_N[measured] = (part.is_right_N.sum() + 0.5) / (len(part.is_right_N) + 1)
        else:
            score_N[measured] = _predict(fitter(part), rows.take(measured))
    return score_N


def _fit_isotonic(rows: _Rows, step_size: int) -> Calibrator:
    start = Calibrator(method="isotonic")
    return _with_steps(start, _predict(start, rows), rows.is_right_N, step_size)


def _fit_both(rows: _Rows, strength: float, step_size: int) -> Calibrator:
    """Return a logistic regression with steps behind it, which are fitted to what it says of images that it has not seen."""
    score_N = _cross_fitted(rows, _folds(rows), lambda part: _fit_logistic(part, strength, None))
    return _with_steps(_fit_logistic(rows, strength, None), score_N, rows.is_right_N, step_size)


def _with_steps(calibrator: Calibrator, score_N: Floats, is_right_N: Bools, step_size: int) -> Calibrator:
    """Return the calibrator with steps: isotonic, each of at least step_size labels (or all of them), none at 0 or 1.

    Steps of few labels cost log loss on other images: 0.353 with any, 0.347 with at least 20 (things-val, free text).
    """
    from sklearn.isotonic import IsotonicRegression

    level_N = IsotonicRegression().fit(score_N, is_right_N).predict(score_N)
    levels, place_N = np.unique(level_N, return_inverse=True)
    step_of, filled = np.zeros(len(levels), dtype=np.int64), 0
    for place, count in enumerate(np.bincount(place_N)):
        if place:
            step_of[place] = step_of[place - 1] + (filled >= step_size)
            filled = filled if filled < step_size else 0
        filled += int(count)
    if filled < step_size and step_of[-1] > 0:  # too few at the upper end join the step below
        step_of[step_of == step_of[-1]] -= 1
    step_N = step_of[place_N]
    num, num_right = np.bincount(step_N), np.bincount(step_N, weights=is_right_N)
    # Half a right and half a wrong label more: 20 right of 20 are not certain. That may turn the order round, so once more.
    share = (num_right + 0.5) / (num + 1.0)
    share = IsotonicRegression().fit(np.arange(len(num)), share, sample_weight=num).predict(np.arange(len(num)))
    starts = [round(float(score_N[step_N == step].min()), SCORE_DECIMALS) for step in range(len(num))]
    return replace(
        calibrator, starts=tuple(starts), values=tuple(round(float(value), SCORE_DECIMALS) for value in share)
    )


def _fit_logistic(rows: _Rows, strength: float, names: Sequence[str] | None) -> Calibrator:
    """Return a logistic regression on standardised features, with a column for "missing" where some have a feature and some have not.

    names: None takes all features that vary.
    """
    from sklearn.linear_model import LogisticRegression

    weights: list[Weight] = []
    columns: list[Floats] = []
    for column, name in enumerate(rows.names):
        value_N = rows.value_NF[:, column]
        is_missing_N = np.isnan(value_N)
        present = value_N[~is_missing_N]
        is_wanted = names is None or name in names
        if not is_wanted or not len(present) or (present.std() < _LEAST_SPREAD and not is_missing_N.any()):
            continue
        mean, scale = float(present.mean()), max(float(present.std()), _LEAST_SPREAD)
        weights.append(Weight(name=name, mean=mean, scale=scale, weight=0.0))
        columns.append(np.where(is_missing_N, 0.0, (value_N - mean) / scale))
        columns.append(is_missing_N.astype(np.float64))
    if not columns:  # every label looks the same
        share = (rows.is_right_N.sum() + 0.5) / (len(rows.is_right_N) + 1)
        return Calibrator(method="logistic", starts=(0.0,), values=(round(float(share), SCORE_DECIMALS),))
    model = LogisticRegression(C=strength, max_iter=2000).fit(np.stack(columns, axis=1), rows.is_right_N)
    found = model.coef_[0].tolist()
    return Calibrator(
        method="logistic",
        weights=tuple(
            replace(one, weight=found[2 * i], weight_missing=found[2 * i + 1]) for i, one in enumerate(weights)
        ),
        intercept=float(model.intercept_[0]),
    )
