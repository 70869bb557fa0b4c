"""LVIS's federated AP of labels put on the truth's own boxes.

LVIS (Gupta, Dollár and Girshick 2019, arXiv 1908.03195, section 2): of an image it is only known which categories are in it and
which few are surely not (neg_category_ids); of some of those in it not every region is outlined (not_exhaustive_category_ids).
A label of any other category is ignored, and of the latter ones a label without a region. The evaluator is faster-coco-eval.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from rlabel.evaluation.average_precision import Detection
from rlabel.evaluation.reading import NamedCategory, TruthImage, TruthRegion
from rlabel.evaluation.records import LvisPrecision
from rlabel.records import JsonValue

MAX_LABELS = 300  # a picture, as LVIS has it: lvis-api, lvis/eval.py, Params


def is_lvis(images: Sequence[TruthImage], categories: Sequence[NamedCategory]) -> bool:
    """Return whether a truth says what LVIS says: of images which categories were checked, of categories how frequent they are."""
    return any(image.is_federated for image in images) and any(category.frequency for category in categories)


def lvis_precision(
    regions: Sequence[TruthRegion],
    detections: Sequence[Detection],
    images: Sequence[TruthImage],
    categories: Sequence[NamedCategory],
) -> LvisPrecision:
    """Return LVIS's AP of the detections against the regions; categories without a frequency count as frequent.

    images: those of the truth that the run covers. Regions without a box are left out, and so are their detections; crowds too, which
    LVIS does not have.
    """
    import numpy as np
    from faster_coco_eval import COCO, COCOeval_faster

    boxed = [region for region in regions if region.box_xywh is not None and not region.is_crowd]
    shown = [detection for detection in detections if detection.region.box_xywh is not None]
    index = {image.image_id: i for i, image in enumerate(images, start=1)}
    present = {(region.image_id, region.category_id) for region in boxed}
    negative = {(image.image_id, category_id) for image in images for category_id in image.neg_category_ids}
    counted = [d for d in shown if (key := (d.region.image_id, d.category_id)) in present or key in negative]
    num_ignored = len(shown) - len(counted)
    nothing = LvisPrecision(
        ap=None, ap_rare=None, ap_common=None, ap_frequent=None, num_labels=len(shown), num_ignored=num_ignored
    )
    if not boxed:
        return nothing
    frequency = {category.category_id: category.frequency or "f" for category in categories}
    truth: list[JsonValue] = [
        {
            "id": position,
            "image_id": index[region.image_id],
            "category_id": region.category_id,
            "bbox": list(region.box_xywh or ()),
            "area": region.area_px,
            "iscrowd": 0,
        }
        for position, region in enumerate(boxed, start=1)
    ]
    results: list[JsonValue] = [
        {
            "image_id": index[d.region.image_id],
            "category_id": d.category_id,
            "bbox": list(d.region.box_xywh or ()),
            "score": d.score,
        }
        for d in counted
    ]
    rows: list[JsonValue] = [
        {
            "id": index[image.image_id],
            "neg_category_ids": list(image.neg_category_ids),
            "not_exhaustive_category_ids": list(image.not_exhaustive_category_ids),
        }
        for image in images
    ]
    listed: list[JsonValue] = [{"id": i, "name": str(i), "frequency": f} for i, f in sorted(frequency.items())]
    if not results:  # the evaluator takes no empty results
        groups = {f: any(frequency[region.category_id] == f for region in boxed) for f in "rcf"}
        rare, common, frequent = (0.0 if groups[f] else None for f in "rcf")
        return LvisPrecision(
            ap=0.0,
            ap_rare=rare,
            ap_common=common,
            ap_frequent=frequent,
            num_labels=len(shown),
            num_ignored=num_ignored,
        )
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO({"images": rows, "annotations": truth, "categories": listed})
        evaluator = COCOeval_faster(
            reference, reference.loadRes(results), iouType="bbox", print_function=_ignore, lvis_style=True
        )
        evaluator.params.maxDets = [MAX_LABELS]
        evaluator.evaluate()
        evaluator.accumulate()
    precision_TRK = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    group_K = np.asarray([frequency[i] for i in evaluator.params.catIds])

    def mean(part: np.ndarray) -> float | None:
        measured = part[part > -1]
        return float(measured.mean()) if measured.size else None

    rare, common, frequent = (mean(precision_TRK[:, :, group_K == f]) for f in "rcf")
    return LvisPrecision(
        ap=mean(precision_TRK),
        ap_rare=rare,
        ap_common=common,
        ap_frequent=frequent,
        num_labels=len(shown),
        num_ignored=num_ignored,
    )


def _ignore(*words: object) -> None:
    """The evaluator's progress lines; stdout is for results."""
