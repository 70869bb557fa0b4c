"""From what a corpus file says of a region to its mask in the picture's pixels, checked before any C code sees it.

The mask of a region of a large picture (see `picture`) is kept as runs and drawn, at the scale that is needed, when it is
needed. An empty segmentation says nothing, so a good box takes its place, with a note. A segmentation that contradicts the
picture (another
size, runs that do not add up) makes the whole row doubtful, so it is an error: a shifted mask would be worse than none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import is_large
from rlabel.corpus.polygons import BadPolygons, polygon_counts
from rlabel.corpus.resample import area_resample, area_resample_window
from rlabel.corpus.rle import BadRle, Counts, MaskHW, counts_to_rle, mask_to_rle, rle_counts, rle_to_mask
from rlabel.corpus.runs import Runs, runs_of_bitmap, runs_of_box, runs_of_counts
from rlabel.records import JsonValue

__all__ = [
    "BadRegion",
    "RegionMask",
    "area_resample",
    "area_resample_window",
    "mask_to_rle",
    "rasterise",
    "rle_to_mask",
]

BoxXywh = tuple[float, float, float, float]
Source = Literal["polygons", "rle", "box"]


class BadRegion(Exception):
    """This region cannot be used; the message is the cause, in words for a person, without the region's id."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegionMask:
    """A region's mask, kept as the part of the picture that it fills: a picture may have thousands of regions.

    inside: its bitmap, bool (h, w), C order, the first and last row and column of which each hold a True; or its runs,
    from the picture's own corner. `crop_HW` and `runs` are the one made of the other.
    left_px, top_px: where the crop lies in the upright picture of height_px x width_px.
    box_xywh: floats, tight around the mask, or for source "box" the box clipped to the picture.
    area_px: number of True pixels. note: what was done instead of taking the row literally, else None.
    """

    inside: MaskHW | Runs
    left_px: int
    top_px: int
    height_px: int
    width_px: int
    box_xywh: BoxXywh
    area_px: float
    source: Source
    note: str | None = None

    @property
    def crop_HW(self) -> MaskHW:
        """The part of the picture that the mask fills: bool (h, w), True inside. Of runs, a new array at each use."""
        if not isinstance(self.inside, Runs):
            return self.inside
        return self.inside.bitmap(*self.inside.box_xyxy)

    @property
    def crop_shape(self) -> tuple[int, int]:
        """h, w of `crop_HW`, without drawing it."""
        if not isinstance(self.inside, Runs):
            return self.inside.shape[0], self.inside.shape[1]
        left, top, right, bottom = self.inside.box_xyxy
        return bottom - top, right - left

    @property
    def runs(self) -> Runs:
        """The mask as the pieces of its columns."""
        if isinstance(self.inside, Runs):
            return self.inside
        return runs_of_bitmap(self.inside, self.left_px, self.top_px)

    @property
    def mask_HW(self) -> MaskHW:
        """The whole mask: bool (height_px, width_px), True inside, upright picture pixels; a new array at each use."""
        mask_HW = np.zeros((self.height_px, self.width_px), dtype=np.bool_)
        height, width = self.crop_shape
        mask_HW[self.top_px : self.top_px + height, self.left_px : self.left_px + width] = self.crop_HW
        return mask_HW

    def to_rle(self) -> dict[str, JsonValue]:
        """Return what `mask_to_rle` returns of the whole mask, which is not drawn for it."""
        return counts_to_rle(self.runs.counts(self.height_px, self.width_px), self.height_px, self.width_px)

    def resample(self, out_height: int, out_width: int) -> npt.NDArray[np.float32]:
        """Return the share of each of the picture's cells that is inside. float32 (out_height, out_width), [0, 1]."""
        fits = out_height <= self.height_px and out_width <= self.width_px
        if fits and is_large(self.height_px, self.width_px):
            return self.runs.cell_shares(self.height_px, self.width_px, out_height, out_width)
        return self.resample_window((0.0, 0.0, float(self.width_px), float(self.height_px)), out_height, out_width)

    def resample_window(
        self, window_xyxy: tuple[float, float, float, float], out_height: int, out_width: int
    ) -> npt.NDArray[np.float32]:
        """Return the same for a window of the picture, in its pixels, which may reach outside (outside counts as 0)."""
        x0, y0, x1, y1 = window_xyxy
        moved = (x0 - self.left_px, y0 - self.top_px, x1 - self.left_px, y1 - self.top_px)
        return area_resample_window(self.crop_HW, moved, out_height, out_width)


def rasterise(
    segmentation: JsonValue,
    box_xywh: BoxXywh | None,
    height_px: int,
    width_px: int,
    limits: Limits,
    *,
    as_runs: bool = False,
) -> RegionMask:
    """Return the mask of a region in a picture of the given upright size.

    segmentation: COCO polygons (parts are united, as pycocotools does), compressed or uncompressed RLE, or None.
    box_xywh: used where there is no segmentation, or one without any pixel. as_runs: keep runs, for a caller that wants no
    bitmap; of a large picture they are kept anyway, where they are smaller.

    Raises BadRegion when the row contradicts itself or the picture, or nothing of it lies in the picture.
    """
    if height_px < 1 or width_px < 1 or height_px * width_px > limits.max_pixels:
        raise BadRegion(f"a picture of {width_px} x {height_px} pixels is beyond the limit of {limits.max_pixels}")
    if segmentation is None:
        return _from_box(box_xywh, height_px, width_px, None, as_runs)
    try:
        if isinstance(segmentation, dict):
            source: Source = "rle"
            counts, note = rle_counts(segmentation, height_px, width_px), None
            empty_because = "the mask covers no pixel"
        elif isinstance(segmentation, list):
            source = "polygons"
            outcome = polygon_counts(segmentation, height_px, width_px, limits)
            counts, note, empty_because = outcome.counts, outcome.note, outcome.empty_because
        else:
            raise BadRegion(f"segmentation must be polygons, an RLE or null, got a {type(segmentation).__name__}")
    except (BadRle, BadPolygons) as error:
        raise BadRegion(str(error)) from error
    if not int(counts[1::2].sum()):
        return _from_box(box_xywh, height_px, width_px, empty_because, as_runs)
    return _from_counts(counts, height_px, width_px, source, note, as_runs)


def _from_counts(
    counts: Counts, height_px: int, width_px: int, source: Source, note: str | None, as_runs: bool
) -> RegionMask:
    """Return the mask of checked runs that hold a True, spreading out only the columns that do."""
    if as_runs or is_large(height_px, width_px):
        runs = runs_of_counts(counts, height_px)
        left, top, right, bottom = runs.box_xyxy
        # A mask of scattered pixels is the smaller as a bitmap.
        is_small = as_runs or runs.num_bytes < (bottom - top) * (right - left)
        return _region_mask(
            runs if is_small else runs.bitmap(left, top, right, bottom),
            (left, top, right, bottom),
            (height_px, width_px),
            source,
            note,
        )
    ends = np.cumsum(counts)
    starts = ends - counts
    filled = np.flatnonzero(counts[1::2]) * 2 + 1
    left, right = int(starts[filled[0]]) // height_px, (int(ends[filled[-1]]) - 1) // height_px + 1
    first, last = left * height_px, right * height_px
    runs = np.clip(ends, first, last) - np.clip(starts, first, last)
    inside = np.zeros(counts.size, dtype=np.bool_)
    inside[1::2] = True
    columns_WH = np.repeat(inside, runs).reshape(right - left, height_px)
    rows = np.flatnonzero(columns_WH.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    crop_HW = np.ascontiguousarray(columns_WH[:, top:bottom].T)
    return _region_mask(crop_HW, (left, top, right, bottom), (height_px, width_px), source, note)


def _region_mask(
    inside: MaskHW | Runs,
    box_xyxy: tuple[int, int, int, int],
    size_px: tuple[int, int],
    source: Source,
    note: str | None,
) -> RegionMask:
    left, top, right, bottom = box_xyxy
    return RegionMask(
        inside=inside,
        left_px=left,
        top_px=top,
        height_px=size_px[0],
        width_px=size_px[1],
        box_xywh=(float(left), float(top), float(right - left), float(bottom - top)),
        area_px=float(inside.area_px if isinstance(inside, Runs) else inside.sum()),
        source=source,
        note=note,
    )


def _from_box(
    box_xywh: BoxXywh | None, height_px: int, width_px: int, instead_of: str | None, as_runs: bool
) -> RegionMask:
    """Return the mask of a box clipped to the picture: the pixels whose centre it holds, at least one a side."""
    prefix = f"{instead_of}, and " if instead_of else ""
    if box_xywh is None:
        raise BadRegion(f"{prefix}the row has no usable box{'' if instead_of else ' and no segmentation'}")
    if len(box_xywh) != 4 or not all(math.isfinite(side) for side in box_xywh):
        raise BadRegion(f"{prefix}the box is not four finite numbers")
    x, y, width, height = (float(side) for side in box_xywh)
    if width <= 0 or height <= 0:
        raise BadRegion(f"{prefix}the box {list(box_xywh)} has no positive width and height")
    x0, x1 = max(x, 0.0), min(x + width, float(width_px))
    y0, y1 = max(y, 0.0), min(y + height, float(height_px))
    if x1 <= x0 or y1 <= y0:
        raise BadRegion(f"{prefix}the box {list(box_xywh)} lies outside the picture of {width_px} x {height_px} pixels")
    left, right = _covered(x0, x1)
    top, bottom = _covered(y0, y1)
    notes = [f"{instead_of}; the box is used"] if instead_of else []
    if (x0, y0, x1, y1) != (x, y, x + width, y + height):
        notes.append("the box is clipped to the picture")
    as_runs = as_runs or is_large(height_px, width_px)
    return RegionMask(
        inside=runs_of_box(left, top, right, bottom) if as_runs else np.ones((bottom - top, right - left), np.bool_),
        left_px=left,
        top_px=top,
        height_px=height_px,
        width_px=width_px,
        box_xywh=(x0, y0, x1 - x0, y1 - y0),
        area_px=float((bottom - top) * (right - left)),
        source="box",
        note="; ".join(notes) or None,
    )


def _covered(start: float, stop: float) -> tuple[int, int]:
    """Return the first pixel and the one after the last whose centres lie in [start, stop), 0 <= start < stop; never none."""
    first, after = math.ceil(start - 0.5), math.ceil(stop - 0.5)
    return (first, after) if after > first else (int(start), int(start) + 1)
