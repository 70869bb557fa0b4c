"""Reads every region of a run for the gallery: what became of it, its outline, and how doubtful it is. One shard in memory at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from rlabel.evaluation.categories import match_categories
from rlabel.evaluation.reading import NamedCategory, id_to_text, read_truth
from rlabel.records import Abstention, Failure, JsonValue, Label
from rlabel.report.reading import OutcomeKind
from rlabel.run.directory import RunDirectory

# What the most doubtful comes by: nobody knows what an abstention is; there is nothing to see of most failures.
_RANK = {"abstention": 0, "label": 1, "failure": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A region of the gallery.

    position: among all regions of the run, in its order. key: unique within the run. file_name: None where the image has none.
    category_id: of labels. score: of labels, of abstentions that of the text, both in [0, 1]; 0.0 of failures. margin: of snapping.
    step: that decided, or the kind of a failure. text: the model's answer. note: an abstention's nearest name, a failure's reason.
    true_name, is_correct: known with a truth only. segmentation, box_xywh: as the run has them, unchecked.
    """

    position: int
    key: str
    file_name: str | None
    outcome: OutcomeKind
    category_id: int | None
    score: float
    margin: float
    step: str
    text: str
    note: str
    true_name: str | None
    is_correct: bool | None
    segmentation: JsonValue
    box_xywh: JsonValue

    @property
    def doubt(self) -> tuple[int, float, float, int]:
        """What items are sorted by, the most doubtful first: abstentions, then labels by score and margin, then failures."""
        return (_RANK[self.outcome], self.score, self.margin, self.position)


class Truths:
    """The true category of regions, compared as `rlabel evaluate` compares them. Holds ids and no outlines."""

    def __init__(self, truth_url: str, run_categories: tuple[NamedCategory, ...]) -> None:
        """Raises InputError when the truth cannot be read."""
        truth = read_truth(truth_url)
        self._names = {category.category_id: category.name for category in truth.categories}
        self._to_truth_id, _ = match_categories(run_categories, truth.categories)
        self._category = {(region.image_id, region.region_id): region.category_id for region in truth.regions}

    def of(self, image_id: JsonValue, region_id: JsonValue) -> int | None:
        return self._category.get((id_to_text(image_id) or "", id_to_text(region_id) or ""))

    def name(self, category_id: int) -> str:
        return self._names[category_id]

    def agrees(self, category_id: int, true_id: int) -> bool:
        return self._to_truth_id.get(category_id) == true_id


def read_items(run: RunDirectory, truths: Truths | None = None) -> Iterator[Item]:
    """Yield the regions of a run's committed shards, in order. Raises RunError for a damaged shard."""
    position = 0
    for result in run.results():
        names = {
            image_id: name
            for row in result.images
            if (image_id := id_to_text(row.get("id"))) is not None and isinstance(name := row.get("file_name"), str)
        }
        for outcome in result.outcomes:
            if isinstance(outcome, Label | Abstention | Failure):
                yield _item(position, outcome, names.get(id_to_text(outcome.image_id) or ""), truths)
                position += 1


def _item(position: int, outcome: Label | Abstention | Failure, file_name: str | None, truths: Truths | None) -> Item:
    region = outcome.region
    true_id = None if truths is None else truths.of(outcome.image_id, region.region_id)
    category_id, is_correct = None, None
    kind: OutcomeKind = "failure"
    score, margin, step, text, note = 0.0, 0.0, "", "", ""
    box_xywh: JsonValue = None if region.box_xywh is None else list(region.box_xywh)
    if isinstance(outcome, Failure):
        step, note = outcome.kind, outcome.reason
    else:
        margin, text, box_xywh = outcome.snap.margin, outcome.text, list(outcome.box_xywh)
        if isinstance(outcome, Label):
            kind, category_id, score, step = "label", outcome.category_id, outcome.score, outcome.snap.decided_by or ""
            if truths is not None and true_id is not None:
                is_correct = truths.agrees(category_id, true_id)
        else:
            kind, score, note = "abstention", outcome.text_score, outcome.snap.nearest_name or ""
    return Item(
        position=position,
        key=region.key,
        file_name=file_name,
        outcome=kind,
        category_id=category_id,
        score=score,
        margin=margin,
        step=step,
        text=text,
        note=note,
        true_name=None if truths is None or true_id is None else truths.name(true_id),
        is_correct=is_correct,
        segmentation=region.segmentation,
        box_xywh=box_xywh,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which regions the gallery has.

    num_regions: of the run. shown, drawn: positions of those listed, and of those with a thumbnail; None where that is all.
    """

    num_regions: int
    shown: frozenset[int] | None
    drawn: frozenset[int] | None


def choose_doubtful(run: RunDirectory, max_regions: int, max_thumbs: int | None) -> Choice:
    """Return the max_regions most doubtful regions to list, and of these the max_thumbs most doubtful to draw (None: all of them)."""
    num_regions = run.manifest.plan.num_regions
    num_shown = min(num_regions, max_regions)
    num_drawn = num_shown if max_thumbs is None else min(num_shown, max_thumbs)
    num_ordered = num_shown if num_shown < num_regions else num_drawn if 0 < num_drawn < num_regions else 0
    doubts = heapq.nsmallest(num_ordered, (item.doubt for item in read_items(run))) if num_ordered else []
    return Choice(
        num_regions=num_regions,
        shown=None if num_shown == num_regions else frozenset(doubt[-1] for doubt in doubts),
        drawn=None if num_drawn == num_regions else frozenset(doubt[-1] for doubt in doubts[:num_drawn]),
    )
