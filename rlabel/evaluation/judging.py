"""Lays a run beside a truth file, region by region: what each region of the truth became, and whether that is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlabel.errors import InputError
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
)
from rlabel.evaluation.run_files import run_with_answers
from rlabel.storage import Store

RegionKey = tuple[str, str]  # image id, region id


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A region of the truth with what the run made of it.

    outcome: None where the run has none. predicted_id: the truth's id of the answered category; None without one.
    """

    region: TruthRegion
    outcome: RunOutcome | None
    predicted_id: int | None
    is_correct: bool

    @property
    def is_labeled(self) -> bool:
        return self.outcome is not None and self.outcome.outcome == "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRun:
    """A run judged by a truth.

    covered: ids of the images that the run covers. outcomes: all of the run's, also those the truth does not have.
    inside: the truth's regions of covered images, with the crowds; judged: those without them, in file order.
    to_truth_id: the truth's category id for each category of the run that has one; method: how it was found.
    """

    categories: tuple[NamedCategory, ...]
    covered: frozenset[str]
    outcomes: Mapping[RegionKey, RunOutcome]
    inside: tuple[TruthRegion, ...]
    judged: tuple[Judged, ...]
    to_truth_id: Mapping[int, int]
    method: str


def judge_run(run_url: str, truth: Truth, truth_url: str) -> JudgedRun:
    """Return a run beside a truth. truth_url: for messages.

    Raises InputError for a run that is missing or damaged, or a truth of other regions or other categories.
    """
    store = run_with_answers(run_url, LABELS)
    categories = read_categories(store, LABELS)
    covered = read_run_image_ids(store)
    outcomes = outcomes_by_key(store, categories)
    _check_same_regions(outcomes, truth, run_url, truth_url)
    to_truth_id, method = match_categories(categories, truth.categories)
    inside = tuple(region for region in truth.regions if region.image_id in covered)
    return JudgedRun(
        categories=categories,
        covered=covered,
        outcomes=outcomes,
        inside=inside,
        judged=tuple(_judge(region, outcomes, to_truth_id) for region in inside if not region.is_crowd),
        to_truth_id=to_truth_id,
        method=method,
    )


def outcomes_by_key(store: Store, categories: Sequence[NamedCategory]) -> dict[RegionKey, RunOutcome]:
    """Return a run's outcomes by image and region id. Raises InputError when a label's category is not listed."""
    outcomes = {(outcome.image_id, outcome.region_id): outcome for outcome in read_outcomes(store)}
    _check_listed(outcomes.values(), categories, store.join(LABELS))
    return outcomes


def read_origins(provenance_url: str | None, truth: Truth, truth_url: str) -> dict[str, Origin] | None:
    """Return the origin of each region by its id, None without a file. Raises InputError for one of another truth."""
    if provenance_url is None:
        return None
    origins = read_provenance(provenance_url)
    if not any(region.region_id in origins for region in truth.regions):
        raise InputError(
            f"{provenance_url}: none of its annotation ids is in {truth_url}. Name the provenance of the same corpus."
        )
    return origins


def _check_same_regions(outcomes: Mapping[RegionKey, RunOutcome], truth: Truth, run_url: str, truth_url: str) -> None:
    keys = {(region.image_id, region.region_id) for region in truth.regions}
    if not outcomes or not keys.isdisjoint(outcomes):
        return
    if not keys:
        raise InputError(
            f"{truth_url}: expected annotations, each with an id of its own, got none. Name the truth of the corpus that was labeled."
        )
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


def _judge(region: TruthRegion, outcomes: Mapping[RegionKey, RunOutcome], to_truth_id: Mapping[int, int]) -> Judged:
    outcome = outcomes.get((region.image_id, region.region_id))
    answered = outcome.category_id if outcome is not None else None
    predicted_id = to_truth_id.get(answered) if answered is not None else None
    return Judged(
        region=region,
        outcome=outcome,
        predicted_id=predicted_id,
        is_correct=predicted_id is not None and predicted_id == region.category_id,
    )
