"""The proposer that needs no model: regions that stand out from what lies around them. numpy, scipy and Pillow alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from rlabel.corpus.picture import PixelsHWC
from rlabel.proposing.found import Found, mask_found
from rlabel.proposing.hierarchy import Patches, chosen, colours, find_patches, join
from rlabel.proposing.ranking import likeness
from rlabel.proposing.settings import EMBEDDED
from rlabel.records import ImageRecord

# Longest side of the picture that is looked at; smoothing and spacing of its patches, pixels; and what they are joined by.
_SIDE_PX = 320
_SIGMA_PX = 0.8
_SPACING_PX = 5
_WAYS = ("edge", "colour", "both")
# Boxes that are compared, masks that are drawn, and the IoU above which one of two boxes is left out before that.
_MOST_COMPARED, _MOST_DRAWN, _SAME_IOU = 1500, 300, 0.8
_SMALLEST_PX = 12  # of the small picture: what is below cannot be outlined


class EmbeddedProposer:
    """Proposes the regions of three hierarchies of patches, ranked by how much they look like a thing."""

    name = EMBEDDED

    def propose(self, picture_HWC: PixelsHWC, record: ImageRecord) -> list[Found]:
        """Return at most 300 regions, masks at the scale of the small picture."""
        height, width = picture_HWC.shape[:2]
        scale = min(1.0, _SIDE_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(picture_HWC).resize(size, Image.Resampling.BOX))
        patches = find_patches(colours(small), _SIGMA_PX, _SPACING_PX)
        hierarchies = [join(patches, way) for way in _WAYS]
        places: dict[int, int] = {}
        votes: Counter[int] = Counter()
        place = 0
        for nodes in hierarchies:
            for key, size_px in zip(nodes.patches, nodes.sizes_M.tolist(), strict=True):
                if _SMALLEST_PX <= size_px < size[0] * size[1]:
                    places.setdefault(key, place)
                    votes[key] += 1
                place += 1
        if not places:
            return []
        nodes = chosen(hierarchies, list(places.values()))
        votes_M = np.asarray([votes[key] for key in nodes.patches], dtype=np.int64)
        scores_M = likeness(nodes, votes_M, size[0] * size[1])
        # Equal scores are settled by what the regions are made of.
        best = sorted(zip((-scores_M).tolist(), nodes.patches, range(len(scores_M)), strict=True))[:_MOST_COMPARED]
        found = []
        for number in _distinct([n for _, _, n in best], nodes.boxes_M4):
            box = nodes.boxes_M4[number].tolist()
            inside_hw = mask_of(nodes.patches[number], box, patches)
            rle = scaled_rle(inside_hw, height, width, (box[0], box[1]), (size[0], size[1]))
            one = mask_found(rle, float(scores_M[number]))
            if one is not None:
                found.append(one)
        return found


def _distinct(best: list[int], boxes_M4: npt.NDArray[np.int64]) -> list[int]:
    """Return the best of those that are all but the same box: drawing a mask costs more than comparing boxes."""
    left_N, top_N, right_N, bottom_N = boxes_M4[best].T
    areas_N = (right_N - left_N) * (bottom_N - top_N)
    is_out = np.zeros(len(best), dtype=np.bool_)
    chosen_ones: list[int] = []
    for place, number in enumerate(best):
        if is_out[place]:
            continue
        chosen_ones.append(number)
        if len(chosen_ones) == _MOST_DRAWN:
            break
        # Against those that are chosen alone: of all pairs that is a tenth.
        across_N = np.minimum(right_N, right_N[place]) - np.maximum(left_N, left_N[place])
        down_N = np.minimum(bottom_N, bottom_N[place]) - np.maximum(top_N, top_N[place])
        shared_N = np.maximum(across_N, 0) * np.maximum(down_N, 0)
        is_out |= shared_N > _SAME_IOU * (areas_N + areas_N[place] - shared_N)
    return chosen_ones


def mask_of(key: int, box_xyxy: list[int], patches: Patches) -> npt.NDArray[np.bool_]:
    """Return a region of the small picture inside its box: bool (h, w) of the box. key: its patches, one bit each."""
    count = len(patches.sizes_N)
    data = np.frombuffer(key.to_bytes((count + 7) // 8, "little"), dtype=np.uint8)
    inside: npt.NDArray[np.bool_] = np.unpackbits(data, bitorder="little")[:count].astype(np.bool_)
    left, top, right, bottom = box_xyxy
    return inside[patches.labels_HW[top:bottom, left:right]]


def scaled_rle(
    inside_hw: npt.NDArray[np.bool_],
    height_px: int,
    width_px: int,
    corner_xy: tuple[int, int] = (0, 0),
    small_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the RLE, in pycocotools' form, of a small mask drawn on a picture of another size, each pixel the nearest small one.

    corner_xy: of the part of the small picture that inside_hw is; small_size: width and height of all of it, those of inside_hw if left out.
    In time and memory of the outline, not of the picture: runs are scaled, no mask of full size is made.
    """
    part_h, part_w = inside_hw.shape
    small_w, small_h = (part_w, part_h) if small_size is None else small_size
    left, top = corner_xy
    row_starts = np.ceil(np.arange(top, top + part_h + 1) * height_px / small_h - 0.5).astype(np.int64)
    if top == 0:
        row_starts[0] = 0
    if top + part_h == small_h:
        row_starts[-1] = height_px
    columns = np.minimum(((np.arange(width_px) + 0.5) * small_w / width_px).astype(np.int64), small_w - 1) - left
    first, end = np.searchsorted(columns, [0, part_w])
    columns = columns[first:end]
    padded = np.zeros((part_w, part_h + 2), dtype=np.int8)
    padded[:, 1:-1] = inside_hw.T
    of_column, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
    per_column = np.bincount(of_column, minlength=part_w)
    starts = np.concatenate(([0], np.cumsum(per_column)))
    lengths = per_column[columns]
    # The changes of the small column that each column shows, one after the other.
    places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    changes = row_starts[rows[np.repeat(starts[columns], lengths) + places]]
    changes = changes + np.repeat(np.arange(first, end, dtype=np.int64) * height_px, lengths)
    # Two changes at one place are none: of a small row that no large one shows, of a region that goes on from a column's end to the next.
    begins = np.flatnonzero(np.diff(changes, prepend=-1))
    changes = changes[begins][np.diff(begins, append=len(changes)) % 2 == 1]
    counts = np.diff(np.concatenate(([0], changes, [height_px * width_px])))
    if len(changes) and changes[-1] == height_px * width_px:
        counts = counts[:-1]
    rle: dict[str, Any] = coco_mask.frPyObjects(
        {"size": [height_px, width_px], "counts": counts.tolist()}, height_px, width_px
    )
    return rle
