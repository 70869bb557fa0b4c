"""Compares a run with a truth file, region by region. Knows nothing of models and pixels, and writes nothing.

The denominator is the truth's: a region that was labeled wrongly, abstained from, failed on or forgotten is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlabel.evaluation.average_precision import Detection, average_precision
from rlabel.evaluation.bootstrap import bootstrap_interval95, image_indices, macro_interval95
from rlabel.evaluation.judging import Judged, judge_run, read_origins
from rlabel.evaluation.lvis_precision import is_lvis, lvis_precision
from rlabel.evaluation.reading import NamedCategory, Origin, read_truth
from rlabel.evaluation.records import (
    Accuracy,
    CategoryMatching,
    CategoryRow,
    Confusion,
    DecidedRow,
    Evaluation,
    GroupRow,
    RiskPoint,
    ScoreWorth,
    UnmatchedText,
)
from rlabel.evaluation.reliability import reliability, risk_coverage

NUM_LISTED = 20  # confusions and unmatched texts: what a person reads
_NUM_POINTS = 100  # of the risk-coverage curve
# COCO's area ranges in pixels of the mask: pycocotools/cocoeval.py, Params.setDetParams
_SIZES = (("small", 32.0**2), ("medium", 96.0**2), ("large", float("inf")))


def evaluate_run(run_url: str, truth_url: str, provenance_url: str | None = None) -> Evaluation:
    """Return how well a run's labels agree with a truth file.

    run_url: the run's folder, with labels.json. truth_url: a COCO or LVIS file whose annotation ids are the region ids.
    provenance_url: optional; tells which regions' pictures the training showed.
    Raises InputError for a file that is missing or damaged, a truth of other regions or other categories.
    """
    truth = read_truth(truth_url)
    run = judge_run(run_url, truth, truth_url)
    origins = read_origins(provenance_url, truth, truth_url)
    covered, inside, judged = run.covered, run.inside, run.judged
    detections = [
        Detection(region=j.region, category_id=j.predicted_id, score=j.outcome.score)
        for j in judged
        if j.outcome is not None and j.predicted_id is not None
    ]
    images = [image for image in truth.images if image.image_id in covered]
    known = {(region.image_id, region.region_id) for region in truth.regions}
    answerable = set(run.to_truth_id.values())
    names = {category.category_id: category.name for category in truth.categories}
    run_names = {category.category_id: category.name for category in run.categories}
    missing = {j.region.category_id for j in judged} - answerable
    outside = [region for region in truth.regions if region.image_id not in covered]

    def among(chosen: Callable[[Origin], bool]) -> Accuracy | None:
        if origins is None:
            return None
        return _accuracy([j for j in judged if (o := origins.get(j.region.region_id)) is not None and chosen(o)])

    return Evaluation(
        num_images=len(covered.intersection(truth.image_ids)),
        num_regions=len(judged),
        num_labeled=sum(j.is_labeled for j in judged),
        num_abstained=_count(judged, "abstention"),
        num_failed=_count(judged, "failure"),
        num_missing=sum(j.outcome is None for j in judged),
        num_crowd=len(inside) - len(judged),
        num_images_left_out=len(set(truth.image_ids) - covered),
        num_regions_left_out=sum(not region.is_crowd for region in outside),
        num_ambiguous=truth.num_ambiguous,
        num_not_in_truth=sum(key not in known for key in run.outcomes),
        num_without_box=sum(j.region.box_xywh is None for j in judged),
        top1=_accuracy(judged),
        when_labeled=_accuracy([j for j in judged if j.is_labeled]),
        coverage_interval95=_interval(judged, lambda j: j.is_labeled),
        macro=_macro(judged),
        macro_interval95=macro_interval95(
            [j.region.image_id for j in judged], [j.region.category_id for j in judged], [j.is_correct for j in judged]
        ),
        top1_seen=among(lambda origin: origin.seen_in_train),
        top1_unseen=among(lambda origin: not origin.seen_in_train),
        top1_unseen_photo=among(lambda origin: not origin.seen_in_train and origin.kind == "photo"),
        top1_unseen_drawing=among(lambda origin: not origin.seen_in_train and origin.kind == "drawing"),
        tied=average_precision(inside, detections, tied=True),
        scored=average_precision(inside, detections, tied=False),
        matching=CategoryMatching(method=run.method, names_missing=tuple(sorted(names[i] for i in missing))),
        per_supercategory=_per_supercategory(judged, truth.categories),
        per_size=_per_size(judged),
        decided_by=_decided_by(judged),
        confusions=_confusions(judged, names, run_names),
        unmatched_texts=_unmatched_texts(judged, names),
        failures_by_kind=_failures_by_kind(judged),
        per_category=_per_category(judged, truth.categories),
        scores=_scores(judged),
        lvis=lvis_precision(inside, detections, images, truth.categories)
        if is_lvis(images, truth.categories)
        else None,
    )


def _accuracy(judged: Sequence[Judged]) -> Accuracy:
    low, high = _interval(judged, lambda j: j.is_correct) or (None, None)
    return Accuracy(num_correct=sum(j.is_correct for j in judged), num_regions=len(judged), low95=low, high95=high)


def _interval(judged: Sequence[Judged], counts: Callable[[Judged], bool]) -> tuple[float, float] | None:
    image_R, num_images = image_indices([j.region.image_id for j in judged])
    counted_R = np.asarray([counts(j) for j in judged], dtype=bool)
    return bootstrap_interval95(
        np.bincount(image_R[counted_R], minlength=num_images), np.bincount(image_R, minlength=num_images)
    )


def _macro(judged: Sequence[Judged]) -> float | None:
    by_category: defaultdict[int, list[bool]] = defaultdict(list)
    for j in judged:
        by_category[j.region.category_id].append(j.is_correct)
    return sum(sum(c) / len(c) for c in by_category.values()) / len(by_category) if by_category else None


def _count(judged: Sequence[Judged], outcome: str) -> int:
    return sum(j.outcome is not None and j.outcome.outcome == outcome for j in judged)


def _group(name: str, judged: Sequence[Judged]) -> GroupRow:
    return GroupRow(
        name=name,
        num_regions=len(judged),
        num_labeled=sum(j.is_labeled for j in judged),
        num_correct=sum(j.is_correct for j in judged),
    )


def _per_supercategory(judged: Sequence[Judged], categories: Sequence[NamedCategory]) -> tuple[GroupRow, ...]:
    group_of = {category.category_id: category.supercategory or "(none)" for category in categories}
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for j in judged:
        groups[group_of[j.region.category_id]].append(j)
    return tuple(_group(name, rows) for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _per_category(judged: Sequence[Judged], categories: Sequence[NamedCategory]) -> tuple[CategoryRow, ...]:
    groups: defaultdict[int, list[Judged]] = defaultdict(list)
    for j in judged:
        groups[j.region.category_id].append(j)
    said = Counter(j.predicted_id for j in judged if j.predicted_id is not None)
    rows = [
        CategoryRow(
            name=category.name,
            supercategory=category.supercategory or "(none)",
            num_regions=len(groups[category.category_id]),
            num_labeled=sum(j.is_labeled for j in groups[category.category_id]),
            num_correct=sum(j.is_correct for j in groups[category.category_id]),
            num_said=said[category.category_id],
        )
        for category in categories
        if category.category_id in groups or said[category.category_id]
    ]
    return tuple(sorted(rows, key=lambda row: row.name))


def _scores(judged: Sequence[Judged]) -> ScoreWorth | None:
    """Return what the labels' scores are worth; scores that are no probabilities count as the nearest one."""
    labeled = [(j.outcome.score, j.is_correct) for j in judged if j.outcome is not None and j.is_labeled]
    if not labeled:
        return None
    score_N = np.clip(np.nan_to_num(np.asarray([score for score, _ in labeled], dtype=np.float64)), 0.0, 1.0)
    is_right_N = np.asarray([is_correct for _, is_correct in labeled], dtype=bool)
    risk_N = risk_coverage(score_N, is_right_N)
    num_points = min(_NUM_POINTS, len(risk_N))
    kept = [-(-len(risk_N) * place // num_points) for place in range(1, num_points + 1)]
    return ScoreWorth(
        reliability=reliability(score_N, is_right_N),
        curve=tuple(RiskPoint(num_labels=n, coverage=n / len(risk_N), risk=float(risk_N[n - 1])) for n in kept),
    )


def _per_size(judged: Sequence[Judged]) -> tuple[GroupRow, ...]:
    groups: dict[str, list[Judged]] = {name: [] for name in (*(name for name, _ in _SIZES), "unknown")}
    for j in judged:
        area_px = j.region.area_px
        name = "unknown" if area_px is None else next(name for name, below_px in _SIZES if area_px < below_px)
        groups[name].append(j)
    return tuple(_group(name, rows) for name, rows in groups.items() if rows or name != "unknown")


def _decided_by(judged: Sequence[Judged]) -> tuple[DecidedRow, ...]:
    labeled = [(j.outcome.decided_by, j.is_correct) for j in judged if j.outcome is not None and j.is_labeled]
    correct = Counter(step for step, is_correct in labeled if is_correct)
    return tuple(
        DecidedRow(step=step, num_labeled=count, num_correct=correct[step])
        for step, count in _most_common(step for step, _ in labeled)
    )


def _confusions(judged: Sequence[Judged], names: dict[int, str], run_names: dict[int, str]) -> tuple[Confusion, ...]:
    pairs = Counter(
        (names[j.region.category_id], run_names[j.outcome.category_id])
        for j in judged
        if not j.is_correct and j.outcome is not None and j.outcome.category_id is not None
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:NUM_LISTED]
    return tuple(Confusion(true_name=a, predicted_name=b, num_regions=count) for (a, b), count in ordered)


def _unmatched_texts(judged: Sequence[Judged], names: dict[int, str]) -> tuple[UnmatchedText, ...]:
    rows: defaultdict[str, list[Judged]] = defaultdict(list)
    for j in judged:
        if j.outcome is not None and j.outcome.outcome == "abstention":
            rows[j.outcome.text].append(j)
    listed: list[UnmatchedText] = []
    for text, group in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))[:NUM_LISTED]:
        nearest = _most_common(j.outcome.nearest_name for j in group if j.outcome and j.outcome.nearest_name)
        true = _most_common(names[j.region.category_id] for j in group)
        listed.append(
            UnmatchedText(
                text=text, num_regions=len(group), nearest_name=nearest[0][0] if nearest else None, true_name=true[0][0]
            )
        )
    return tuple(listed)


def _failures_by_kind(judged: Sequence[Judged]) -> tuple[tuple[str, int], ...]:
    failed = (j.outcome for j in judged if j.outcome is not None and j.outcome.outcome == "failure")
    return tuple(_most_common(outcome.detail for outcome in failed))


def _most_common(words: Iterable[str]) -> list[tuple[str, int]]:
    """Return each word with its count, most frequent first, equal counts by word (Counter goes by order of arrival)."""
    return sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
