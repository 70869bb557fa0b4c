"""COCO box AP of labels put on the truth's own boxes: how well the scores order right and wrong labels.

RegionGPT, section 4: one detection a labeled region, its ground-truth box with the answered category, all with score
1.0. Tied scores make AP depend on the order of the annotations, and honest ones raise it without changing a label, so
both are computed. The evaluator is faster-coco-eval.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlabel.evaluation.precision_interval import ap_interval95, match_detections
from rlabel.evaluation.reading import TruthRegion
from rlabel.evaluation.records import AveragePrecision
from rlabel.records import JsonValue

_IOU_050 = 0  # positions in COCO's ten thresholds 0.50, 0.55 ... 0.95
_IOU_075 = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A labeled region of the truth, with the truth's id of its answered category and its score in [0, 1]."""

    region: TruthRegion
    category_id: int
    score: float


def average_precision(regions: Sequence[TruthRegion], detections: Sequence[Detection], tied: bool) -> AveragePrecision:
    """Return AP of the detections against the regions. tied: every detection gets score 1.0, in the given order.

    regions: with the crowds, which the evaluator ignores as COCO does; those without a box are left out, and so are
    their detections. No regions gives None, no detections 0.
    """
    boxed = [region for region in regions if region.box_xywh is not None]
    if not any(not region.is_crowd for region in boxed):
        return AveragePrecision(ap=None, ap50=None, ap75=None)
    shown = [detection for detection in detections if detection.region.box_xywh is not None]
    if not shown:
        return AveragePrecision(ap=0.0, ap50=0.0, ap75=0.0)

    # imported late: it brings matplotlib along
    import numpy as np
    from faster_coco_eval import COCO, COCOeval_faster

    image_index = {image_id: i for i, image_id in enumerate(dict.fromkeys(r.image_id for r in boxed), start=1)}
    images: list[JsonValue] = [{"id": i} for i in image_index.values()]
    categories: list[JsonValue] = [
        {"id": i, "name": str(i)} for i in sorted({r.category_id for r in boxed} | {d.category_id for d in shown})
    ]
    truth: list[JsonValue] = [
        {
            "id": position,  # from 1: evaluators take a match with annotation 0 for no match
            "image_id": image_index[region.image_id],
            "category_id": region.category_id,
            "bbox": list(region.box_xywh or ()),
            "area": region.area_px,
            "iscrowd": int(region.is_crowd),
        }
        for position, region in enumerate(boxed, start=1)
    ]
    results: list[JsonValue] = [
        {
            "image_id": image_index[detection.region.image_id],
            "category_id": detection.category_id,
            "bbox": list(detection.region.box_xywh or ()),
            "score": 1.0 if tied else detection.score,
        }
        for detection in shown
    ]
    # COCO looks at the 100 best detections of a category in an image; every region here is to be judged
    most = max(Counter((d.region.image_id, d.category_id) for d in shown).values())
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO({"images": images, "annotations": truth, "categories": categories})
        evaluator = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox", print_function=_ignore)
        evaluator.params.maxDets = [1, 10, max(100, most)]
        evaluator.evaluate()
        evaluator.accumulate()
    # (thresholds, recalls, categories, area ranges, maxDets); -1 where a category has no truth
    precision_TRK = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]

    dataset = {"images": images, "annotations": truth, "categories": categories}
    matches = match_detections(dataset, results, max(100, most))

    def mean(part: np.ndarray) -> float | None:
        measured = part[part > -1]
        return float(measured.mean()) if measured.size else None

    return AveragePrecision(
        ap=mean(precision_TRK),
        ap50=mean(precision_TRK[_IOU_050]),
        ap75=mean(precision_TRK[_IOU_075]),
        interval95=ap_interval95(matches),
    )


def _ignore(*words: object) -> None:
    """The evaluator's progress lines; stdout is for results."""
