"""The proposer that needs no model: regions that stand out from what lies around them. numpy, scipy and Pillow alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from rlabel.corpus.picture import PixelsHWC
from rlabel.proposing.found import Found, apart, mask_found
from rlabel.proposing.hierarchy import Node, Patches, colours, find_patches, join
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
        nodes: dict[int, Node] = {}
        votes: Counter[int] = Counter()
        for way in _WAYS:
            for node in join(patches, way):
                if _SMALLEST_PX <= node.size_px < size[0] * size[1]:
                    nodes.setdefault(node.patches, node)
                    votes[node.patches] += 1
        scored = [(likeness(node, votes[key], size[0] * size[1]), key) for key, node in nodes.items()]
        scored.sort(key=lambda item: (-item[0], item[1]))
        del scored[_MOST_COMPARED:]
        found = []
        for value, key in _distinct(scored, nodes):
            one = mask_found(scaled_rle(mask_of(nodes[key], patches), height, width), value)
            if one is not None:
                found.append(one)
        return found


def _distinct(scored: list[tuple[float, int]], nodes: dict[int, Node]) -> list[tuple[float, int]]:
    """Return the best of those that are all but the same box: drawing a mask costs more than comparing boxes."""
    if not scored:
        return []
    corners_N4 = np.asarray([nodes[key].box_xyxy for _, key in scored], dtype=np.float64)
    boxes_N4 = np.concatenate([corners_N4[:, :2], corners_N4[:, 2:] - corners_N4[:, :2]], axis=1)
    overlaps_NN = np.asarray(coco_mask.iou(boxes_N4, boxes_N4, [0] * len(scored)))
    return [scored[place] for place in apart(overlaps_NN, _SAME_IOU, _MOST_DRAWN)]


def mask_of(node: Node, patches: Patches) -> npt.NDArray[np.bool_]:
    """Return a region of the small picture, bool (h, w)."""
    count = len(patches.sizes_N)
    data = np.frombuffer(node.patches.to_bytes((count + 7) // 8, "little"), dtype=np.uint8)
    inside: npt.NDArray[np.bool_] = np.unpackbits(data, bitorder="little")[:count].astype(np.bool_)
    return inside[patches.labels_HW]


def scaled_rle(small_hw: npt.NDArray[np.bool_], height_px: int, width_px: int) -> dict[str, Any]:
    """Return the RLE, in pycocotools' form, of a small mask drawn on a picture of another size, each pixel the nearest small one.

    In time and memory of the outline, not of the picture: runs are scaled, no mask of full size is made.
    """
    small_h, small_w = small_hw.shape
    row_starts = np.ceil(np.arange(small_h + 1) * height_px / small_h - 0.5).astype(np.int64)
    row_starts[0], row_starts[-1] = 0, height_px
    columns = np.minimum(((np.arange(width_px) + 0.5) * small_w / width_px).astype(np.int64), small_w - 1)
    padded = np.zeros((small_w, small_h + 2), dtype=np.int8)
    padded[:, 1:-1] = small_hw.T
    of_column, rows = np.nonzero(np.diff(padded, axis=1))
    per_column = np.bincount(of_column, minlength=small_w)
    starts = np.concatenate(([0], np.cumsum(per_column)))
    lengths = per_column[columns]
    # The changes of the small column that each column shows, one after the other.
    places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    changes = row_starts[rows[np.repeat(starts[columns], lengths) + places]]
    changes = changes + np.repeat(np.arange(width_px, dtype=np.int64) * height_px, lengths)
    # Two changes at one place are none: of a small row that no large one shows, of a region that goes on from a column's end to the next.
    changes, times = np.unique(changes, return_counts=True)
    changes = changes[times % 2 == 1]
    counts = np.diff(np.concatenate(([0], changes, [height_px * width_px])))
    if len(changes) and changes[-1] == height_px * width_px:
        counts = counts[:-1]
    rle: dict[str, Any] = coco_mask.frPyObjects(
        {"size": [height_px, width_px], "counts": counts.tolist()}, height_px, width_px
    )
    return rle
