"""Chooses which regions of an image are related, where nobody names the pairs: each one and those nearest to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from rlabel.corpus.rle import BadRle, rle_counts
from rlabel.records import JsonValue, Region


def nearest_pairs(regions: Sequence[Region], most: int) -> list[tuple[int, int]]:
    """Return at most `most` pairs (subject, object) of regions, by their place: every region with its nearest, then with its second, ...

    Distances are those of the boxes' centres; of equal ones the earlier region is nearer. A pair is there once, whichever way round;
    regions that say nothing usable of where they are come into no pair.
    """
    centres = [(i, centre) for i, region in enumerate(regions) if (centre := _centre(region)) is not None]
    if len(centres) < 2:
        return []
    index = [i for i, _ in centres]
    centres_N2 = np.array([centre for _, centre in centres], dtype=np.float64)
    # Half of a round's pairs may be there already, so no more regions than this are ever asked.
    first = range(min(len(centres), 2 * most + 2))
    order: dict[int, npt.NDArray[np.intp]] = {}
    pairs: dict[tuple[int, int], None] = {}
    for rank in range(len(centres) - 1):
        for i in first:
            if i not in order:
                distance_N = np.square(centres_N2 - centres_N2[i]).sum(1)
                distance_N[i] = -1.0
                order[i] = np.argsort(distance_N, kind="stable")[1 : most + 2]
            if rank < len(order[i]):
                j = int(order[i][rank])
                if (j, i) not in pairs:
                    pairs[(i, j)] = None
            if len(pairs) >= most:
                break
        if len(pairs) >= most:
            break
    return [(index[i], index[j]) for i, j in islice(pairs, most)]


def _centre(region: Region) -> tuple[float, float] | None:
    """Return the centre (x, y) of a region's box in pixels, from its segmentation where it has no box; None where it has neither."""
    box = _box(region)
    if box is None:
        return None
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    # Squares of distances must stay finite.
    return (x, y) if max(abs(x), abs(y)) < 1e100 else None


def _box(region: Region) -> tuple[float, float, float, float] | None:
    if region.box_xywh is not None and min(region.box_xywh[2:]) > 0:
        return region.box_xywh
    if isinstance(region.segmentation, dict):
        return _rle_box(region.segmentation)
    points = _points(region.segmentation)
    if not points:
        return None
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _points(polygons: JsonValue) -> list[float]:
    """Return x, y, x, y, ... of all polygons; [] where something else than finite numbers is among them."""
    points: list[float] = []
    for polygon in polygons if isinstance(polygons, list) else []:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return []
        for value in polygon:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return []
            try:
                points.append(float(value))
            except OverflowError:
                return []
    return points if all(math.isfinite(value) for value in points) else []


def _rle_box(rle: dict[str, JsonValue]) -> tuple[float, float, float, float] | None:
    """Return the box of an RLE from its runs alone, which go down the columns; no mask is drawn."""
    size = rle.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in size):
        return None
    height, width = (int(side) for side in size if isinstance(side, int))
    try:
        runs = rle_counts(rle, height, width)
    except BadRle:
        return None
    ends = np.cumsum(runs)
    inside = (np.arange(runs.size) % 2 == 1) & (runs > 0)
    if not inside.any():
        return None
    begin, last = (ends - runs)[inside], ends[inside] - 1
    left, right = int(begin.min()) // height, int(last.max()) // height
    top, bottom = int((begin % height).min()), int((last % height).max())
    if (begin // height != last // height).any():  # a run that goes on in the next column touches bottom and top
        top, bottom = 0, height - 1
    return left, top, right - left + 1, bottom - top + 1
