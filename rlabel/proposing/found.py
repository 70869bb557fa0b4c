"""What a proposer finds in one picture, and which of it is kept. Knows nothing of files, models or runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from rlabel.corpus.masks import BoxXywh
from rlabel.corpus.picture import PixelsHWC
from rlabel.corpus.rle import rle_counts
from rlabel.records import ImageRecord, JsonObject

# Their overlaps are held as one matrix of float64: 32 MB.
MOST_COMPARED = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One proposed region. box_xywh: upright image pixels, inside the picture. rle: compressed, of the whole picture, or None for a box alone.

    score in [0, 1]: how sure the proposer is, comparable only with its own. area_px: of the mask, or of the box.
    """

    box_xywh: BoxXywh
    area_px: float
    score: float
    rle: JsonObject | None = None


class Proposer(Protocol):
    """Finds regions in pictures. name: what regions.json calls it."""

    name: str

    def propose(self, picture_HWC: PixelsHWC, record: ImageRecord) -> list[Found]:
        """Return the regions of one upright picture, uint8 (H, W, 3), RGB, in any order. record: its row, for prompts of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Which regions are kept. Shares are of the picture's area. nms_iou: of two that overlap more, the lower score goes; 1 keeps both."""

    min_share: float = 0.0005
    max_share: float = 0.6
    min_score: float = 0.0
    nms_iou: float = 0.6
    max_per_image: int = 100


# Of what a person asked for by prompts, nothing is judged.
ALL = Keeping(min_share=0.0, max_share=1.0, nms_iou=1.0, max_per_image=MOST_COMPARED)


def box_found(box_xyxy: Sequence[float], score: float, height_px: int, width_px: int) -> Found | None:
    """Return a box clipped to the picture, None where nothing of it is left or a number is not finite."""
    if not all(math.isfinite(number) for number in (*box_xyxy, score)):
        return None
    x0, y0, x1, y1 = box_xyxy
    left, right = round(max(x0, 0.0), 2), round(min(x1, width_px), 2)
    top, bottom = round(max(y0, 0.0), 2), round(min(y1, height_px), 2)
    if right <= left or bottom <= top:
        return None
    width, height = round(right - left, 2), round(bottom - top, 2)
    return Found(box_xywh=(left, top, width, height), area_px=round(width * height, 2), score=_rounded(score))


def mask_found(rle: dict[str, Any], score: float) -> Found | None:
    """Return a mask that pycocotools encoded (its counts are bytes), None where it is empty or its score no number."""
    area = int(coco_mask.area(rle))
    if not area or not math.isfinite(score):
        return None
    x, y, width, height = (float(side) for side in coco_mask.toBbox(rle))
    counts = rle["counts"].decode("ascii")
    size = [int(rle["size"][0]), int(rle["size"][1])]
    return Found(
        box_xywh=(x, y, width, height),
        area_px=float(area),
        score=_rounded(score),
        rle={"size": [*size], "counts": counts},
    )


def kept(found: Sequence[Found], keeping: Keeping, height_px: int, width_px: int) -> list[Found]:
    """Return what is kept of a picture's regions, best first.

    Overlap is that of masks where all have one, else that of boxes. Regions of one score stay in the order they came in, so the result is
    the same everywhere.

    Raises BadRle for a mask that is not one of this picture: a bug of a proposer.
    """
    whole_px = float(height_px * width_px)
    fitting = [
        one
        for one in found
        if keeping.min_share * whole_px <= one.area_px <= keeping.max_share * whole_px
        and one.score >= keeping.min_score
    ]
    best = sorted(fitting, key=lambda one: -one.score)[:MOST_COMPARED]
    if keeping.nms_iou < 1.0 and len(best) > 1:
        overlaps_NN = _overlaps(best, height_px, width_px)
        best = [best[place] for place in apart(overlaps_NN, keeping.nms_iou, keeping.max_per_image)]
    return best[: keeping.max_per_image]


def apart(overlaps_NN: npt.NDArray[np.float64], most_iou: float, most: int) -> list[int]:
    """Return the places, best first, of those whose IoU with each better one that is chosen is at most most_iou; at most so many.

    overlaps_NN: float64 (n, n), IoU of every two, the best first.
    """
    chosen: list[int] = []
    is_out = np.zeros(len(overlaps_NN), dtype=np.bool_)
    for place in range(len(overlaps_NN)):
        if not is_out[place]:
            chosen.append(place)
            is_out |= overlaps_NN[place] > most_iou
            if len(chosen) == most:
                break
    return chosen


def _overlaps(found: Sequence[Found], height_px: int, width_px: int) -> npt.NDArray[np.float64]:
    """Return the IoU of every two: float64 (n, n), in [0, 1]."""
    not_crowds = [0] * len(found)
    shapes: list[Any] = [one.rle for one in found]
    if any(shape is None for shape in shapes):
        boxes_N4 = np.asarray([one.box_xywh for one in found], dtype=np.float64)
        return np.asarray(coco_mask.iou(boxes_N4, boxes_N4, not_crowds))
    for shape in shapes:
        rle_counts(shape, height_px, width_px)  # pycocotools reads masks that do not fill the picture beyond their end
    return np.asarray(coco_mask.iou(shapes, shapes, not_crowds))


def _rounded(score: float) -> float:
    return round(min(max(float(score), 0.0), 1.0), 6)
