"""Reads a run's committed records beside a truth file: of each region, the features of its label and whether the label is right.

Regions are judged as `rlabel evaluate` judges them; the features are of the shards, which hold all that a score may be made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlabel.errors import InputError, RunError, UsageError
from rlabel.evaluation.judging import RegionKey, judge_run, read_origins
from rlabel.evaluation.reading import id_to_text, read_truth
from rlabel.evaluation.reliability import Bools, Floats
from rlabel.records import JsonObject, Label
from rlabel.run.directory import RunDirectory
from rlabel.storage import Store
from rlabel.vocabulary.calibration import Features, features_of, raw_score

MIN_LABELS = 50
NO_GROUP = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRegion:
    """A region of the truth, and what a run made of it.

    features, score: of its label, uncalibrated; None where it has none (an abstention, a failure, nothing at all).
    group: the supercategory of the category that it was labeled with, which is known on new pictures too.
    is_seen: whether training showed its picture; source: of the object's picture, which several images may show. None where no provenance says so.
    """

    image_id: str
    region_id: str
    features: Features | None = None
    score: float | None = None
    is_right: bool = False
    group: str = NO_GROUP
    is_seen: bool | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRun:
    """The truth's regions of the images that a run covers. settings, categories: of its manifest. run_id: its fingerprint."""

    regions: tuple[ScoredRegion, ...]
    settings: JsonObject
    categories: tuple[JsonObject, ...]
    run_id: str


def read_scored_run(run_url: str, truth_url: str, provenance_url: str | None = None) -> ScoredRun:
    """Return every region of the truth (no crowds) in the images of a run, judged, sorted by its ids: a file's order decides nothing.

    Raises InputError for a file that is missing or damaged, a truth of other regions or categories, a score that is no number; UsageError where there
    is no run, or one without its surer or less sure labels; RunError where it is damaged, not finished, or of another task.
    """
    run = RunDirectory.open(Store.open(run_url))
    manifest = run.manifest
    if manifest.task != "classify":
        raise RunError(
            f"{run_url}: expected a run of --task classify, whose labels have categories, got {manifest.task}."
        )
    if manifest.settings.get("min_score") is not None:
        raise UsageError(
            f"{run_url}: its labels with a score below {manifest.settings['min_score']} are left out (--min-score or --precision). "
            "Calibrate on a run that has them all."
        )
    missing = manifest.plan.num_shards - len(run.committed())
    if missing:
        raise RunError(
            f"{run_url}: {missing} of {manifest.plan.num_shards} shards are missing. Finish it: run the same label command again."
        )
    truth = read_truth(truth_url)
    origins = read_origins(provenance_url, truth, truth_url)
    judged = judge_run(run_url, truth, truth_url)
    group_of = {category.category_id: category.supercategory or NO_GROUP for category in judged.categories}
    labels = read_labels(run)
    regions: list[ScoredRegion] = []
    for one in judged.judged:
        key = (one.region.image_id, one.region.region_id)
        origin = origins.get(one.region.region_id) if origins is not None else None
        score, features = labels.get(key, (None, None)) if one.is_labeled else (None, None)
        labeled_as = one.outcome.category_id if one.outcome is not None else None
        regions.append(
            ScoredRegion(
                image_id=key[0],
                region_id=key[1],
                features=features,
                score=score,
                is_right=features is not None and one.is_correct,
                group=NO_GROUP if labeled_as is None else group_of.get(labeled_as, NO_GROUP),
                is_seen=None if origin is None else origin.seen_in_train,
                source=None if origin is None else origin.source,
            )
        )
    regions.sort(key=lambda one: (one.image_id, one.region_id))
    return ScoredRun(
        regions=tuple(regions), settings=manifest.settings, categories=manifest.categories, run_id=run.fingerprint
    )


def read_labels(run: RunDirectory) -> dict[RegionKey, tuple[float, Features]]:
    """Return the uncalibrated score and the features of each label, from the shards. Outlines are not kept."""
    labels: dict[RegionKey, tuple[float, Features]] = {}
    for result in run.results():
        for outcome in result.outcomes:
            if not isinstance(outcome, Label):
                continue
            image_id, region_id = id_to_text(outcome.image_id), id_to_text(outcome.region.region_id)
            if image_id is None or region_id is None:
                continue  # no truth can match it
            score = raw_score(outcome)
            if not 0 <= score <= 1:  # NaN neither
                raise InputError(
                    f"{run.store.join('')}, region {region_id}: expected a score from 0 to 1, got {score}. Label again."
                )
            labels[image_id, region_id] = (score, features_of(outcome))
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels among judged regions, as columns. image_N: int64, the same for labels of one image; num_regions: with those without a label."""

    features: tuple[Features, ...]
    score_N: Floats
    is_right_N: Bools
    image_N: NDArray[np.int64]
    num_regions: int


def labels_of(regions: Sequence[ScoredRegion]) -> Labels:
    """Return the labels of these regions, in their order."""
    labeled = [region for region in regions if region.features is not None]
    number: dict[str, int] = {}
    return Labels(
        features=tuple(region.features or {} for region in labeled),
        score_N=np.asarray([region.score for region in labeled], dtype=np.float64),
        is_right_N=np.asarray([region.is_right for region in labeled], dtype=bool),
        image_N=np.asarray([number.setdefault(r.image_id, len(number)) for r in labeled], dtype=np.int64),
        num_regions=len(regions),
    )


def check_enough(labels: Labels, what: str, least: int = MIN_LABELS) -> None:
    """Raise InputError unless there are enough labels to fit on, right ones and wrong ones, of several images."""
    num, num_right = len(labels.score_N), int(labels.is_right_N.sum())
    if num < least:
        raise InputError(
            f"{what}: {num} of its {labels.num_regions} regions are labeled, expected at least {least}. "
            "Label more pictures of which the truth is known."
        )
    if num_right in (0, num):
        raise InputError(
            f"{what}: all {num} labels are {'right' if num_right else 'wrong'}; right and wrong ones are needed to tell them apart. "
            "Check that the truth belongs to this run, or label more pictures."
        )
    if len(set(labels.image_N.tolist())) < 5:
        raise InputError(f"{what}: its labels are of fewer than 5 images. Label more pictures.")


def first_part(image_ids: Iterable[str], seed: int, fraction: float) -> frozenset[str]:
    """Return the images of the first of two parts, that share of them (rounded): those whose hash is least. Their order decides nothing."""
    in_order = sorted(
        set(image_ids), key=lambda one: hashlib.sha256(f"{seed}\0{one}".encode("utf-8", "surrogatepass")).digest()
    )
    return frozenset(in_order[: round(fraction * len(in_order))])
