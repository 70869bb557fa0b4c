"""The uncertainty of an average precision, by resampling images.

Detections are matched once, image by image, by pycocotools: a match never depends on other images. A resample only says how
often each image counts, and AP is summed up again from the weighted matches as COCO does it.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlabel.evaluation.bootstrap import NUM_RESAMPLES, image_weights, percentiles95
from rlabel.records import JsonValue

_RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools/cocoeval.py, Params.setDetParams


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryMatches:
    """One category's detections, best score first, equal scores in the order of the images.

    image_D: int64, index of each detection's image. is_true_TD, is_ignored_TD: bool, by COCO's ten IoU thresholds: matched to
    a region; matched to a crowd. truth_I: int64, how many regions (no crowds) each image has.
    """

    image_D: NDArray[np.int64]
    is_true_TD: NDArray[np.bool_]
    is_ignored_TD: NDArray[np.bool_]
    truth_I: NDArray[np.int64]


def match_detections(
    dataset: dict[str, list[JsonValue]], results: list[JsonValue], max_detections: int
) -> list[CategoryMatches]:
    """Return the matches of every category. dataset: COCO images, annotations, categories; results: COCO box results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        image_ids = truth.getImgIds()
        found: defaultdict[int, list[tuple[int, dict[str, NDArray[np.float64]]]]] = defaultdict(list)
        for index, image_id in enumerate(sorted(image_ids)):
            # only the categories that the image has: most of a large vocabulary is nowhere in it
            rows = [*truth.imgToAnns[image_id], *evaluator.cocoDt.imgToAnns[image_id]]
            if not rows:
                continue
            evaluator.params.imgIds = [image_id]
            evaluator.params.catIds = sorted({row["category_id"] for row in rows})
            evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluator.params.maxDets = [max_detections]
            evaluator.evaluate()
            for one in evaluator.evalImgs:
                if one is not None:
                    found[one["category_id"]].append((index, one))
    return [_category(rows, len(image_ids)) for _, rows in sorted(found.items())]


def _category(rows: list[tuple[int, dict[str, NDArray[np.float64]]]], num_images: int) -> CategoryMatches:
    truth_I = np.zeros(num_images, dtype=np.int64)
    for index, one in rows:
        truth_I[index] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
    order_D = np.argsort(-np.concatenate([np.asarray(one["dtScores"]) for _, one in rows]), kind="stable")
    image_D = np.concatenate([np.full(len(one["dtScores"]), index) for index, one in rows])
    matched_TD = np.concatenate([one["dtMatches"] for _, one in rows], axis=1).astype(bool)
    ignored_TD = np.concatenate([one["dtIgnore"] for _, one in rows], axis=1).astype(bool)
    return CategoryMatches(
        image_D=image_D[order_D].astype(np.int64),
        is_true_TD=(matched_TD & ~ignored_TD)[:, order_D],
        is_ignored_TD=ignored_TD[:, order_D],
        truth_I=truth_I,
    )


def weighted_ap(categories: list[CategoryMatches], weight_SI: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64 (resamples,), the AP of each, NaN where no image with a region was drawn.

    weight_SI: int64 (resamples, images), how often each image counts; all 1 gives the plain AP. A category that a resample has
    no region of is not in that resample's mean, as COCO has it.
    """
    total_S = np.zeros(len(weight_SI))
    num_categories_S = np.zeros(len(weight_SI))
    for category in categories:
        truth_S = weight_SI @ category.truth_I
        num_categories_S += truth_S > 0
        if category.image_D.size and category.truth_I.any():
            total_S += np.where(truth_S > 0, _category_ap(category, weight_SI, np.maximum(truth_S, 1)), 0.0)
    with np.errstate(invalid="ignore"):
        return total_S / num_categories_S


def _category_ap(
    category: CategoryMatches, weight_SI: NDArray[np.int64], truth_S: NDArray[np.int64]
) -> NDArray[np.float64]:
    weight_SD = weight_SI[:, category.image_D]
    # labels sit on the truth's own boxes, so most thresholds match alike: each way of matching is summed once
    both_TD = np.concatenate([category.is_true_TD, category.is_ignored_TD], axis=1)
    ways, counts = np.unique(both_TD, axis=0, return_counts=True)
    num_detections = category.image_D.size
    ap_S = np.zeros(len(weight_SI))
    for way, count in zip(ways, counts, strict=True):
        is_true_D, is_ignored_D = way[:num_detections], way[num_detections:]
        true_SD = np.cumsum(weight_SD * is_true_D, axis=1)
        shown_SD = np.cumsum(weight_SD * ~is_ignored_D, axis=1)
        precision_SD = true_SD / np.maximum(shown_SD, 1)
        best_SD = np.maximum.accumulate(precision_SD[:, ::-1], axis=1)[:, ::-1]
        # of the 101 recalls, how many this detection is the first to reach
        reached_SD = np.searchsorted(_RECALLS, true_SD / truth_S[:, None], side="right")
        ap_S += count * (best_SD * np.diff(reached_SD, axis=1, prepend=0)).sum(1) / len(_RECALLS)
    return ap_S / len(both_TD)


def ap_interval95(categories: list[CategoryMatches], num_resamples: int = NUM_RESAMPLES) -> tuple[float, float] | None:
    """Return the interval of the AP; None where there is nothing to resample."""
    if not categories:
        return None
    parts = [
        weighted_ap(categories, weight_SI) for weight_SI in image_weights(len(categories[0].truth_I), num_resamples)
    ]
    return percentiles95(np.concatenate(parts))
