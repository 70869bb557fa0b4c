"""Compares a run with a truth file, region by region. Knows nothing of models and pixels, and writes nothing.

The denominator is the truth's: a region that was labeled wrongly, abstained from, failed on or forgotten is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlabel.errors import InputError
from rlabel.evaluation.average_precision import Detection, average_precision
from rlabel.evaluation.bootstrap import bootstrap_interval95
from rlabel.evaluation.categories import match_categories
from rlabel.evaluation.reading import (
    LABELS,
    NamedCategory,
    Origin,
    RunOutcome,
    Truth,
    TruthRegion,
    read_categories,
    read_outcomes,
    read_provenance,
    read_run_image_ids,
    read_truth,
)
from rlabel.evaluation.records import (
    Accuracy,
    CategoryMatching,
    Confusion,
    DecidedRow,
    Evaluation,
    GroupRow,
    UnmatchedText,
)
from rlabel.storage import Store

NUM_LISTED = 20  # confusions and unmatched texts: what a person reads
# COCO's area ranges in pixels of the mask: pycocotools/cocoeval.py, Params.setDetParams
_SIZES = (("small", 32.0**2), ("medium", 96.0**2), ("large", float("inf")))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A region of the truth with what the run made of it."""

    region: TruthRegion
    outcome: RunOutcome | None
    predicted_id: int | None  # the truth's id of the answered category; None without one
    is_correct: bool

    @property
    def is_labeled(self) -> bool:
        return self.outcome is not None and self.outcome.outcome == "label"


def evaluate_run(run_url: str, truth_url: str, provenance_url: str | None = None) -> Evaluation:
    """Return how well a run's labels agree with a truth file.

    run_url: the run's folder, with labels.json. truth_url: a COCO or LVIS file whose annotation ids are the region ids.
    provenance_url: optional; tells which regions' pictures the training showed.
    Raises InputError for a file that is missing or damaged, a truth of other regions or other categories.
    """
    store = Store.open(run_url)
    run_categories = read_categories(store, LABELS)
    covered = read_run_image_ids(store)
    truth = read_truth(truth_url)
    origins = read_provenance(provenance_url) if provenance_url is not None else None
    outcomes = {(outcome.image_id, outcome.region_id): outcome for outcome in read_outcomes(store)}
    _check_same_regions(outcomes, truth, run_url, truth_url)
    if origins is not None and not any(region.region_id in origins for region in truth.regions):
        raise InputError(
            f"{provenance_url}: none of its annotation ids is in {truth_url}. Name the provenance of the same corpus."
        )
    _check_listed(outcomes.values(), run_categories, store.join(LABELS))
    to_truth_id, method = match_categories(run_categories, truth.categories)

    inside = [region for region in truth.regions if region.image_id in covered]
    judged = [_judge(region, outcomes, to_truth_id) for region in inside if not region.is_crowd]
    detections = [
        Detection(region=j.region, category_id=j.predicted_id, score=j.outcome.score)
        for j in judged
        if j.outcome is not None and j.predicted_id is not None
    ]
    known = {(region.image_id, region.region_id) for region in truth.regions}
    answerable = set(to_truth_id.values())
    names = {category.category_id: category.name for category in truth.categories}
    run_names = {category.category_id: category.name for category in run_categories}
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
        num_not_in_truth=sum(key not in known for key in outcomes),
        num_without_box=sum(j.region.box_xywh is None for j in judged),
        top1=_accuracy(judged),
        when_labeled=_accuracy([j for j in judged if j.is_labeled]),
        macro=_macro(judged),
        top1_seen=among(lambda origin: origin.seen_in_train),
        top1_unseen=among(lambda origin: not origin.seen_in_train),
        top1_unseen_photo=among(lambda origin: not origin.seen_in_train and origin.kind == "photo"),
        top1_unseen_drawing=among(lambda origin: not origin.seen_in_train and origin.kind == "drawing"),
        tied=average_precision(inside, detections, tied=True),
        scored=average_precision(inside, detections, tied=False),
        matching=CategoryMatching(method=method, names_missing=tuple(sorted(names[i] for i in missing))),
        per_supercategory=_per_supercategory(judged, truth.categories),
        per_size=_per_size(judged),
        decided_by=_decided_by(judged),
        confusions=_confusions(judged, names, run_names),
        unmatched_texts=_unmatched_texts(judged, names),
        failures_by_kind=_failures_by_kind(judged),
    )


def _check_same_regions(
    outcomes: dict[tuple[str, str], RunOutcome], truth: Truth, run_url: str, truth_url: str
) -> None:
    keys = {(region.image_id, region.region_id) for region in truth.regions}
    if not outcomes or not keys or not keys.isdisjoint(outcomes):
        return
    ours = ", ".join(f"{region_id} of image {image_id}" for image_id, region_id in list(outcomes)[:3])
    theirs = ", ".join(f"{r.region_id} of image {r.image_id}" for r in truth.regions[:3])
    raise InputError(
        f"{truth_url}: no region of it is in the run {run_url}: the run has regions {ours}; "
        f"the truth has annotations {theirs}. It belongs to another corpus; "
        "name the truth of the corpus that was labeled."
    )


def _check_listed(outcomes: Iterable[RunOutcome], categories: Sequence[NamedCategory], where: str) -> None:
    listed = {category.category_id for category in categories}
    for outcome in outcomes:
        if outcome.category_id is not None and outcome.category_id not in listed:
            raise InputError(
                f"{where}, region {outcome.region_id}: category_id {outcome.category_id} is not among the file's "
                f"{len(listed)} categories. The file was changed after the run; merge the run again."
            )


def _judge(region: TruthRegion, outcomes: dict[tuple[str, str], RunOutcome], to_truth_id: dict[int, int]) -> _Judged:
    outcome = outcomes.get((region.image_id, region.region_id))
    answered = outcome.category_id if outcome is not None else None
    predicted_id = to_truth_id.get(answered) if answered is not None else None
    return _Judged(
        region=region,
        outcome=outcome,
        predicted_id=predicted_id,
        is_correct=predicted_id is not None and predicted_id == region.category_id,
    )


def _accuracy(judged: Sequence[_Judged]) -> Accuracy:
    position: dict[str, int] = {}
    image_R = np.asarray([position.setdefault(j.region.image_id, len(position)) for j in judged], dtype=np.int64)
    is_correct_R = np.asarray([j.is_correct for j in judged], dtype=bool)
    total_I = np.bincount(image_R, minlength=len(position))
    correct_I = np.bincount(image_R[is_correct_R], minlength=len(position))
    interval = bootstrap_interval95(correct_I, total_I)
    low, high = interval if interval is not None else (None, None)
    return Accuracy(num_correct=int(correct_I.sum()), num_regions=len(judged), low95=low, high95=high)


def _macro(judged: Sequence[_Judged]) -> float | None:
    by_category: defaultdict[int, list[bool]] = defaultdict(list)
    for j in judged:
        by_category[j.region.category_id].append(j.is_correct)
    return sum(sum(c) / len(c) for c in by_category.values()) / len(by_category) if by_category else None


def _count(judged: Sequence[_Judged], outcome: str) -> int:
    return sum(j.outcome is not None and j.outcome.outcome == outcome for j in judged)


def _group(name: str, judged: Sequence[_Judged]) -> GroupRow:
    return GroupRow(
        name=name,
        num_regions=len(judged),
        num_labeled=sum(j.is_labeled for j in judged),
        num_correct=sum(j.is_correct for j in judged),
    )


def _per_supercategory(judged: Sequence[_Judged], categories: Sequence[NamedCategory]) -> tuple[GroupRow, ...]:
    group_of = {category.category_id: category.supercategory or "(none)" for category in categories}
    groups: defaultdict[str, list[_Judged]] = defaultdict(list)
    for j in judged:
        groups[group_of[j.region.category_id]].append(j)
    return tuple(_group(name, rows) for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _per_size(judged: Sequence[_Judged]) -> tuple[GroupRow, ...]:
    groups: dict[str, list[_Judged]] = {name: [] for name in (*(name for name, _ in _SIZES), "unknown")}
    for j in judged:
        area_px = j.region.area_px
        name = "unknown" if area_px is None else next(name for name, below_px in _SIZES if area_px < below_px)
        groups[name].append(j)
    return tuple(_group(name, rows) for name, rows in groups.items() if rows or name != "unknown")


def _decided_by(judged: Sequence[_Judged]) -> tuple[DecidedRow, ...]:
    labeled = [(j.outcome.decided_by, j.is_correct) for j in judged if j.outcome is not None and j.is_labeled]
    correct = Counter(step for step, is_correct in labeled if is_correct)
    return tuple(
        DecidedRow(step=step, num_labeled=count, num_correct=correct[step])
        for step, count in _most_common(step for step, _ in labeled)
    )


def _confusions(judged: Sequence[_Judged], names: dict[int, str], run_names: dict[int, str]) -> tuple[Confusion, ...]:
    pairs = Counter(
        (names[j.region.category_id], run_names[j.outcome.category_id])
        for j in judged
        if not j.is_correct and j.outcome is not None and j.outcome.category_id is not None
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:NUM_LISTED]
    return tuple(Confusion(true_name=a, predicted_name=b, num_regions=count) for (a, b), count in ordered)


def _unmatched_texts(judged: Sequence[_Judged], names: dict[int, str]) -> tuple[UnmatchedText, ...]:
    rows: defaultdict[str, list[_Judged]] = defaultdict(list)
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


def _failures_by_kind(judged: Sequence[_Judged]) -> tuple[tuple[str, int], ...]:
    failed = (j.outcome for j in judged if j.outcome is not None and j.outcome.outcome == "failure")
    return tuple(_most_common(outcome.detail for outcome in failed))


def _most_common(words: Iterable[str]) -> list[tuple[str, int]]:
    """Return each word with its count, most frequent first, equal counts by word (Counter goes by order of arrival)."""
    return sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
