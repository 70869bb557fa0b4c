"""Reads from a run what is to be drawn: a few images with every outcome of their regions. Flat memory for any run."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from rlabel.evaluation.categories import match_categories
from rlabel.evaluation.reading import (
    ABSTAINED,
    FAILURES,
    LABELS,
    id_to_text,
    read_categories,
    read_lines,
    stream_rows,
)
from rlabel.records import JsonObject, JsonValue
from rlabel.storage import Store, split_url

OutcomeKind = Literal["label", "abstention", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRegion:
    """A region to draw.

    words: the label's name, the abstention's answer or the failure's cause. score: of labels, in [0, 1].
    true_name: the truth's category, or what people said; None without either. true_from: what is written before it.
    is_correct: of labels with a truth, else None.
    segmentation, box_xywh: verbatim as the file has them; None where neither the run nor the truth knows the outline.
    """

    outcome: OutcomeKind
    words: str
    score: float | None
    true_name: str | None
    is_correct: bool | None
    segmentation: JsonValue
    box_xywh: JsonValue
    true_from: str = "is"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage:
    """An image of a run with its regions. position: in the run's file. file_name: relative to the image root."""

    position: int
    file_name: str
    regions: tuple[DrawnRegion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrueRegion:
    name: str
    category_id: int
    segmentation: JsonValue
    box_xywh: JsonValue


def read_drawn_images(run_url: str, num_images: int, truth_url: str | None = None) -> list[DrawnImage]:
    """Return up to num_images images of a run, ordered by the hash of their id: always the same ones, nobody's choice.

    Those without regions are left out, unless all are.
    Raises InputError for files that cannot be read.
    """
    store = Store.open(run_url)
    chosen = _chosen_rows(store, num_images)
    truth, to_truth_id = _read_truth(store, truth_url, set(chosen)) if truth_url is not None else ({}, {})
    names = {category.category_id: category.name for category in read_categories(store, LABELS)}
    regions: defaultdict[str, list[DrawnRegion]] = defaultdict(list)

    def add(
        image: JsonValue,
        region_id: JsonValue,
        outcome: OutcomeKind,
        words: str,
        row: JsonObject,
        score: float | None = None,
        category_id: int | None = None,
    ) -> None:
        image_id = id_to_text(image)
        if image_id not in chosen:
            return
        true = truth.get((image_id, id_to_text(region_id) or ""))
        # abstentions carry only a box and failures nothing; the truth knows the same region's outline
        segmentation, box_xywh = row.get("segmentation"), row.get("bbox")
        if segmentation is None and true is not None:
            segmentation, box_xywh = true.segmentation, true.box_xywh
        regions[image_id].append(
            DrawnRegion(
                outcome=outcome,
                words=words,
                score=score,
                true_name=true.name if true is not None else None,
                is_correct=None
                if true is None or category_id is None
                else to_truth_id.get(category_id) == true.category_id,
                segmentation=segmentation,
                box_xywh=box_xywh,
            )
        )

    for row in stream_rows(store, LABELS, "annotations"):
        attributes, category_id, score = row.get("attributes"), row.get("category_id"), row.get("score")
        if isinstance(attributes, dict) and isinstance(category_id, int):
            value = float(score) if isinstance(score, int | float) else None
            name = names.get(category_id, str(category_id))
            add(row.get("image_id"), attributes.get("region_id"), "label", name, row, value, category_id)
    for row in read_lines(store, ABSTAINED):
        add(row.get("image_id"), row.get("region_id"), "abstention", str(row.get("text", "")), row)
    for row in read_lines(store, FAILURES):
        add(row.get("image_id"), row.get("region_id"), "failure", str(row.get("kind", "")), row)

    images = [
        DrawnImage(position=position, file_name=name, regions=tuple(regions[image_id]))
        for image_id, (position, name) in chosen.items()
    ]
    return [image for image in images if image.regions] or images


def _chosen_rows(store: Store, num_images: int) -> dict[str, tuple[int, str]]:
    """Return {image id: (position, file name)} of the num_images images whose ids hash lowest, lowest first."""

    found = (
        (hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest(), position, image_id, name)
        for position, row in enumerate(stream_rows(store, LABELS, "images"))
        if (image_id := id_to_text(row.get("id"))) is not None and isinstance(name := row.get("file_name"), str)
    )
    return {image_id: (position, name) for _, position, image_id, name in heapq.nsmallest(num_images, found)}


def _read_truth(
    run: Store, truth_url: str, image_ids: set[str]
) -> tuple[dict[tuple[str, str], _TrueRegion], dict[int, int]]:
    store, name = split_url(truth_url)
    categories = read_categories(store, name)
    names = {category.category_id: category.name for category in categories}
    to_truth_id, _ = match_categories(read_categories(run, LABELS), categories)
    truth: dict[tuple[str, str], _TrueRegion] = {}
    for row in stream_rows(store, name, "annotations"):
        image_id, region_id = id_to_text(row.get("image_id")), id_to_text(row.get("id"))
        category_id = row.get("category_id")
        if image_id in image_ids and region_id is not None and isinstance(category_id, int) and category_id in names:
            truth[image_id, region_id] = _TrueRegion(
                name=names[category_id],
                category_id=category_id,
                segmentation=row.get("segmentation"),
                box_xywh=row.get("bbox"),
            )
    return truth, to_truth_id
