"""COCO polygons to runs, by pycocotools.

It crashes on coordinates that are huge or not finite, so they are checked and clipped first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from rlabel.corpus.limits import Limits
from rlabel.corpus.rle import Counts, rle_counts
from rlabel.records import JsonValue

Points = npt.NDArray[np.float64]


class BadPolygons(ValueError):
    """The polygons are beyond a limit; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonRuns:
    """What polygons come to in a picture.

    counts: checked runs of the united parts (see `rle`). note: how many parts were left out, or None. empty_because:
    why no pixel is inside, if none is.
    """

    counts: Counts
    note: str | None
    empty_because: str


def polygon_counts(segmentation: list[JsonValue], height_px: int, width_px: int, limits: Limits) -> PolygonRuns:
    """Return the runs of the union of all usable parts, as pycocotools draws them.

    A part must be at least 3 points as a flat list of finite numbers, x and y in turn; others are left out. One flat
    list is one part.

    Raises BadPolygons beyond the limits on points or outline.
    """
    parts = [segmentation] if segmentation and not isinstance(segmentation[0], list) else segmentation
    if sum(len(part) for part in parts if isinstance(part, list)) > 2 * limits.max_polygon_points:
        raise BadPolygons(f"the polygons have more points than the limit of {limits.max_polygon_points}")
    usable = [points for points in map(_points, parts) if points is not None]
    num_left_out = len(parts) - len(usable)
    note = f"{num_left_out} of {len(parts)} polygon parts left out (not 3 or more points in finite numbers)"
    clipped = [part for part in (_near(points, height_px, width_px) for points in usable) if len(part) >= 3]
    outline_px = sum(float(np.abs(part - np.roll(part, 1, axis=0)).max(axis=1).sum()) for part in clipped)
    if outline_px > limits.max_polygon_outline_px:
        raise BadPolygons(f"the polygons' outline is longer than the limit of {limits.max_polygon_outline_px} pixels")
    if clipped:
        # A list of equal-length lists of length 4 would be read as boxes; these have at least 6 numbers.
        parts_rle = coco_mask.frPyObjects([part.ravel().tolist() for part in clipped], height_px, width_px)
        merged = parts_rle[0] if len(parts_rle) == 1 else coco_mask.merge(parts_rle)
        counts = rle_counts({"size": [height_px, width_px], "counts": merged["counts"]}, height_px, width_px)
    else:
        counts = np.array([height_px * width_px], dtype=np.int64)
    if not parts:
        empty_because = "the polygon list is empty"
    elif not usable:
        empty_because = "no polygon has 3 or more points in finite numbers"
    else:
        empty_because = "the polygons cover no pixel of the picture"
    return PolygonRuns(counts=counts, note=note if num_left_out else None, empty_because=empty_because)


def _points(part: JsonValue) -> Points | None:
    """Return points (n, 2), n >= 3, finite, x then y; None if the part is not that."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return None
    try:
        numbers = np.asarray(part)
    except (ValueError, OverflowError):
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        return None
    if bool in set(map(type, part)):  # numpy takes true among numbers for 1
        return None
    # Beyond this no picture reaches, and differences of larger floats could overflow.
    return np.clip(numbers.astype(np.float64), -1e12, 1e12).reshape(-1, 2)


def _near(points: Points, height_px: int, width_px: int) -> Points:
    """Return the polygon cut to the picture and one picture's size around it, or as it is where it stays within that.

    pycocotools itself drops what lies outside the picture, exactly; the cut only keeps its arithmetic and memory in
    bounds, and the edges that it adds lie outside.
    """
    reach = float(max(height_px, width_px))
    for axis, side in ((0, float(width_px)), (1, float(height_px))):
        for sign, bound in ((1.0, -reach), (-1.0, -(side + reach))):
            distances = sign * points[:, axis] - bound
            if len(points) and float(distances.min()) < 0:
                points = _cut(points, distances, axis, sign * bound)
    return points


def _cut(points: Points, distances: npt.NDArray[np.float64], axis: int, bound: float) -> Points:
    """Return the polygon cut by one half plane, where distances are >= 0 (Sutherland and Hodgman, 1974)."""
    kept: list[tuple[float, float]] = []
    other = 1 - axis
    for index in range(len(points)):
        before, here = points[index - 1], points[index]
        from_bound, to_bound = float(distances[index - 1]), float(distances[index])
        if (from_bound >= 0) != (to_bound >= 0):
            share = from_bound / (from_bound - to_bound)
            crossing = float(before[other]) + share * (float(here[other]) - float(before[other]))
            kept.append((bound, crossing) if axis == 0 else (crossing, bound))
        if to_bound >= 0:
            kept.append((float(here[0]), float(here[1])))
    return np.array(kept, dtype=np.float64).reshape(-1, 2)
