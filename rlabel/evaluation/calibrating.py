"""Calibrates a run: a calibrator to be saved, and what it is worth on images that it was not fitted on.

Images are parted in two by a hash. A calibrator is fitted on one part and measured on the other, then the other way round; what is saved is fitted on
one part or on all, and nothing that is called held-out was ever measured on labels that were fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from rlabel.errors import UsageError
from rlabel.evaluation.fitting import METHODS, Fit, Method, Tried, fit, predict
from rlabel.evaluation.judged_labels import (
    MIN_LABELS,
    Labels,
    ScoredRegion,
    ScoredRun,
    check_enough,
    first_part,
    labels_of,
)
from rlabel.evaluation.reliability import (
    Bools,
    Floats,
    Held,
    Reliability,
    find_threshold,
    hold,
    least_labels,
    reliability,
)
from rlabel.records import JsonObject, JsonValue
from rlabel.vocabulary.calibration import Calibrator, Threshold, made_for

CALIBRATED = "calibrated score"
GroupBy = Literal["image", "source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldThreshold:
    """A threshold that was read off one part, by one signal, and what it gives on the other."""

    signal: str
    threshold: Threshold
    held: Held

    def to_json(self) -> JsonObject:
        return {"signal": self.signal, **asdict(self.threshold), "held_out": _held_to_json(self.held)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One part fitted on, the other measured. in_sample: of the labels that it was fitted on, never to be quoted."""

    fitted_part: int
    method: Method
    in_sample: Reliability
    held_out: Reliability
    uncalibrated: Reliability
    thresholds: tuple[HeldThreshold, ...]

    def to_json(self) -> JsonObject:
        return {
            "fitted_part": self.fitted_part,
            "method": self.method,
            "in_sample": self.in_sample.to_json(),
            "held_out": self.held_out.to_json(),
            "uncalibrated": self.uncalibrated.to_json(),
            "thresholds": [one.to_json() for one in self.thresholds],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Held-out labels that have something in common. held: those above the thresholds of the calibrated score, each read off the other part.

    threshold: read off these labels alone, with the confidence asked for; its coverage is of num_regions. is_enough: so many labels could promise the
    precision at all; where they could not, the threshold has no score.
    """

    name: str
    num_regions: int
    num_labels: int
    num_right: int
    mean_score: float
    ece: float
    brier: float
    held: Held
    threshold: Threshold
    is_enough: bool

    def to_json(self) -> JsonObject:
        plain = {k: v for k, v in asdict(self).items() if k not in ("held", "threshold")}
        return {**plain, "held_out": _held_to_json(self.held), "threshold": asdict(self.threshold)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A calibrator with all that was measured.

    held_out, uncalibrated: over the held-out labels of all directions, each label once. best_coverage: of each signal, the largest coverage at the
    wanted precision with the threshold read off these labels themselves: how well it orders them. groups: by supercategory of the label;
    seen, unseen: by the provenance, None without one. curve_N: held-out scores with is_right_N, for the pictures.
    """

    calibrator: Calibrator
    precision: float
    confidence: float
    num_images: int
    num_regions: int
    num_labels: int
    num_right: int
    tried: tuple[Tried, ...]
    directions: tuple[Direction, ...]
    held_out: Reliability
    uncalibrated: Reliability
    best_coverage: tuple[tuple[str, Threshold], ...]
    groups: tuple[Group, ...]
    seen: Group | None
    unseen: Group | None
    score_N: Floats
    uncalibrated_N: Floats
    is_right_N: Bools

    def to_json(self) -> JsonObject:
        """Return one plain object; shares, errors and scores in [0, 1]."""
        best: JsonObject = {name: asdict(one) for name, one in self.best_coverage}
        return {
            "method": self.calibrator.method,
            "num_images": self.num_images,
            "num_regions": self.num_regions,
            "num_labels": self.num_labels,
            "num_right": self.num_right,
            "target_precision": self.precision,
            "confidence": self.confidence,
            "thresholds": [asdict(one) for one in self.calibrator.thresholds],
            "tried": [asdict(one) for one in self.tried],
            "directions": [one.to_json() for one in self.directions],
            "held_out": self.held_out.to_json(),
            "uncalibrated": self.uncalibrated.to_json(),
            "best_coverage": best,
            "groups": [one.to_json() for one in self.groups],
            "seen": None if self.seen is None else self.seen.to_json(),
            "unseen": None if self.unseen is None else self.unseen.to_json(),
        }


def calibrate(
    run: ScoredRun,
    *,
    half: int | None = None,
    fraction: float = 0.5,
    seed: int = 0,
    precision: float = 0.95,
    confidence: float = 0.95,
    methods: Sequence[Method] = METHODS,
    unseen_only: bool = False,
    group_by: GroupBy = "image",
) -> Calibration:
    """Return a calibrator and what it is worth.

    half: 0 or 1 saves the calibrator of that part of the images and measures on the other alone; None saves one of all images and measures both ways.
    fraction: share of images in part 0. seed: of the parting. confidence: of the saved threshold, see `find_threshold`.
    unseen_only: leave out regions whose picture the training showed, as pictures still to be labeled are unseen too; it needs a provenance.
    group_by: what is never parted, in halves as in folds: the labels of an image, or those of one source (the same picture shown by several images), which
    needs a provenance with sources. Thresholds count such labels together, too; the numbers of images are then those of sources.
    Raises InputError where there are too few labels, or all of them are right or wrong; UsageError where a provenance is needed.
    """
    regions = run.regions
    if unseen_only:
        if all(region.is_seen is None for region in regions):
            raise UsageError("--unseen-only: it needs to know which pictures the training showed. Give --provenance.")
        regions = tuple(region for region in regions if region.is_seen is False)
    if group_by == "source":
        if all(region.source is None for region in regions):
            raise UsageError(
                "--group-by source: it needs to know which pictures the regions show. Give --provenance, with a source for each region."
            )
        regions = tuple(
            replace(one, image_id=one.image_id if one.source is None else f"source {one.source}") for one in regions
        )
    check_enough(labels_of(regions), "the run")
    parts = ([], [])  # type: tuple[list[ScoredRegion], list[ScoredRegion]]
    first = first_part((region.image_id for region in regions), seed, fraction)
    for region in regions:
        parts[0 if region.image_id in first else 1].append(region)
    sides = (0, 1) if half is None else (half,)
    for side in sides:
        what = f"part {side} of the images (--images-split {seed}, --fraction {fraction:g})"
        check_enough(labels_of(parts[side]), what, least=MIN_LABELS // 2)
        check_enough(labels_of(parts[1 - side]), f"what is left beside {what}", least=MIN_LABELS // 2)
    fits = {side: fit(labels_of(parts[side]), methods) for side in sides}
    chosen = fits[half] if half is not None else fit(labels_of(regions), methods)
    fitted = labels_of(parts[half] if half is not None else regions)
    saved = replace(
        chosen.calibrator,
        thresholds=(
            find_threshold(
                chosen.score_N, fitted.is_right_N, fitted.num_regions, precision, confidence, fitted.image_N
            ),
        ),
        made_for=made_for(run.settings, run.categories),
    )
    held = [_held_out(fits[side], parts[side], parts[1 - side], precision, confidence) for side in sides]
    measured = [region for side in sides for region in parts[1 - side]]
    scores: Floats = np.concatenate([score_N for score_N, _ in held])
    reached = np.concatenate([reached_N for _, reached_N in held])
    labels = labels_of(measured)
    held_out, uncalibrated = reliability(scores, labels.is_right_N), reliability(labels.score_N, labels.is_right_N)
    directions = tuple(_direction(fits[s], s, parts, precision, confidence) for s in sides)
    groups = _Groups(measured, scores, reached, precision, confidence)
    names = sorted({region.group for region in measured if region.features is not None})
    fitted_on: JsonObject = {
        "run": run.run_id,
        "num_images": len({region.image_id for region in (parts[half] if half is not None else regions)}),
        "num_labels": len(fitted.score_N),
        "num_right": int(fitted.is_right_N.sum()),
        "part": half,
        "fraction": fraction,
        "images_split": seed,
        "unseen_only": unseen_only,
        "group_by": group_by,
    }
    summary: JsonObject = {
        key: value for key, value in held_out.to_json().items() if key in ("num_labels", "ece", "ece_by_chance", "brier", "aurc")
    }  # fmt: skip
    return Calibration(
        calibrator=replace(saved, fitted_on=fitted_on, measured=summary),
        precision=precision,
        confidence=confidence,
        num_images=len({region.image_id for region in regions}),
        num_regions=len(regions),
        num_labels=sum(region.features is not None for region in regions),
        num_right=sum(region.is_right for region in regions),
        tried=chosen.tried,
        directions=directions,
        held_out=held_out,
        uncalibrated=uncalibrated,
        best_coverage=tuple(
            (name, find_threshold(signal_N, labels.is_right_N, labels.num_regions, precision))
            for name, signal_N in {**_signals(labels), CALIBRATED: scores}.items()
        ),
        groups=tuple(sorted((groups.of(name, name) for name in names), key=lambda one: (-one.num_labels, one.name))),
        seen=groups.seen(True),
        unseen=groups.seen(False),
        score_N=scores,
        uncalibrated_N=labels.score_N,
        is_right_N=labels.is_right_N,
    )


def _signals(labels: Labels) -> dict[str, Floats]:
    """Return what a user could threshold without a calibrator, one number a label."""

    def of(name: str) -> Floats:
        return np.asarray([one.get(name) or 0.0 for one in labels.features], dtype=np.float64)

    return {
        "similarity": of("similarity"),
        "text score": np.exp(of("text_logprob")),
        "uncalibrated score": labels.score_N,
    }


def _held_out(
    fitted: Fit, part: list[ScoredRegion], other: list[ScoredRegion], precision: float, confidence: float
) -> tuple[Floats, Bools]:
    """Return the scores of the other part's labels, and which of them reach the threshold that is read off this one."""
    own = labels_of(part)
    score_N = predict(fitted.calibrator, labels_of(other).features)
    threshold = find_threshold(fitted.score_N, own.is_right_N, own.num_regions, precision, confidence, own.image_N)
    return score_N, np.zeros(len(score_N), dtype=bool) if threshold.score is None else score_N >= threshold.score


def _direction(
    fitted: Fit,
    side: int,
    parts: tuple[list[ScoredRegion], list[ScoredRegion]],
    precision: float,
    confidence: float,
) -> Direction:
    own, other = labels_of(parts[side]), labels_of(parts[1 - side])
    score_N = predict(fitted.calibrator, other.features)
    thresholds: list[HeldThreshold] = []
    pairs = {name: (signal_N, _signals(other)[name]) for name, signal_N in _signals(own).items()}
    pairs[CALIBRATED] = (fitted.score_N, score_N)
    for name, (own_N, other_N) in pairs.items():
        for sureness in (0.0, confidence):
            threshold = find_threshold(own_N, own.is_right_N, own.num_regions, precision, sureness, own.image_N)
            held = hold(threshold, other_N, other.is_right_N, other.num_regions)
            thresholds.append(HeldThreshold(signal=name, threshold=threshold, held=held))
    return Direction(
        fitted_part=side,
        method=fitted.tried[0].method,
        in_sample=reliability(predict(fitted.calibrator, own.features), own.is_right_N),
        held_out=reliability(score_N, other.is_right_N),
        uncalibrated=reliability(other.score_N, other.is_right_N),
        thresholds=tuple(thresholds),
    )


class _Groups:
    """Measures parts of the held-out labels. score_N, reached_N: of the labels among the regions, in their order."""

    def __init__(
        self, regions: Sequence[ScoredRegion], score_N: Floats, reached_N: Bools, precision: float, confidence: float
    ) -> None:
        self.regions = regions
        self.precision, self.confidence = precision, confidence
        self.labeled = [region for region in regions if region.features is not None]
        self.score_N, self.reached_N = score_N, reached_N
        self.image_N = labels_of(regions).image_N

    def of(self, name: str, group: str) -> Group:
        """Return a supercategory of labels. What was not labeled belongs to none, so its regions are its labels."""
        chosen = np.asarray([region.group == group for region in self.labeled])
        return self._measured(name, chosen, int(chosen.sum()))

    def seen(self, is_seen: bool) -> Group | None:
        """Return the regions whose picture training showed, or did not; None where there are no labels of that kind."""
        chosen = np.asarray([region.is_seen is is_seen for region in self.labeled])
        num_regions = sum(region.is_seen is is_seen for region in self.regions)
        return self._measured("seen" if is_seen else "unseen", chosen, num_regions) if chosen.any() else None

    def _measured(self, name: str, chosen_N: Bools, num_regions: int) -> Group:
        is_right_N = np.asarray([region.is_right for region in self.labeled])[chosen_N]
        reached_N = self.reached_N[chosen_N]
        worth = reliability(self.score_N[chosen_N], is_right_N)
        is_enough = worth.num_labels >= least_labels(self.precision, self.confidence)
        own_N = self.score_N[chosen_N] if is_enough else self.score_N[:0]
        return Group(
            name=name,
            num_regions=num_regions,
            num_labels=worth.num_labels,
            num_right=worth.num_right,
            mean_score=worth.mean_score,
            ece=worth.ece,
            brier=worth.brier,
            held=Held(
                num_labels=int(reached_N.sum()),
                num_right=int(is_right_N[reached_N].sum()),
                coverage=float(reached_N.sum() / num_regions),
            ),
            threshold=find_threshold(
                own_N,
                is_right_N[: len(own_N)],
                num_regions,
                self.precision,
                self.confidence,
                self.image_N[chosen_N][: len(own_N)],
            ),
            is_enough=is_enough,
        )


def _held_to_json(held: Held) -> JsonValue:
    return {**asdict(held), "precision": held.precision}
