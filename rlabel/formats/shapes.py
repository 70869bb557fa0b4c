"""A label's shape as a layout can hold it, and how much of it is lost: measured, not guessed."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, RegionMask, rasterise
from rlabel.corpus.polygons import BadPolygons, polygon_counts
from rlabel.corpus.rle import BadRle, Counts, counts_to_mask, counts_to_rle, rle_counts
from rlabel.formats.found import Notes
from rlabel.formats.outlines import Loop, joined, outlines, simplified, without_holes
from rlabel.formats.shown import ShownLabel, ShownPicture
from rlabel.records import JsonObject, JsonValue

_MEASURED_ALL, _MEASURED_EVERY = 2000, 50


class Shapes:
    """Draws labels and turns masks into polygons. notes: what it could not do.

    tolerance_px: how far an outline may leave its mask's edge, for fewer points; 0 keeps every mask exactly.
    """

    def __init__(self, notes: Notes, tolerance_px: float) -> None:
        self.notes, self.tolerance_px = notes, tolerance_px
        self.limits = Limits()
        self.num_polygons = 0
        self._ious: list[float] = []

    def mask(self, picture: ShownPicture, label: ShownLabel) -> RegionMask | None:
        """Return a label's mask, kept as runs; None, noted, where it cannot be drawn."""
        if picture.width_px is None or picture.height_px is None:
            self.notes.say("masks left out, since the size of their picture is nowhere stated", _where(picture, label))
            return None
        try:
            return rasterise(
                label.segmentation, label.box_xywh, picture.height_px, picture.width_px, self.limits, as_runs=True
            )
        except BadRegion as bad:
            self.notes.say("masks left out, since they cannot be drawn", f"{_where(picture, label)}: {bad}")
            return None

    def rle(self, picture: ShownPicture, label: ShownLabel) -> JsonObject | None:
        """Return the compressed RLE of a label's mask; None, noted, where it cannot be drawn. The mask's own `to_rle`, without drawing it."""
        counts = self._plain_counts(picture, label)
        if counts is not None and picture.height_px is not None and picture.width_px is not None:
            return counts_to_rle(counts, picture.height_px, picture.width_px)
        mask = self.mask(picture, label)
        return None if mask is None else mask.to_rle()

    def _plain_counts(self, picture: ShownPicture, label: ShownLabel) -> Counts | None:
        """Return the runs of a segmentation that needs no second look; None for any other, which `mask` judges."""
        height, width, shape = picture.height_px, picture.width_px, label.segmentation
        if height is None or width is None or height * width > self.limits.max_pixels:
            return None
        try:
            if isinstance(shape, dict):
                counts = rle_counts(shape, height, width)
            elif isinstance(shape, list):
                counts = polygon_counts(shape, height, width, self.limits).counts
            else:
                return None
        except (BadRle, BadPolygons):
            return None
        # An empty run other than the first joins its neighbours: `mask` does that by drawing.
        return counts if len(counts) > 1 and bool(counts[1:].all()) else None

    def polygons(self, label: ShownLabel, mask: RegionMask) -> list[Loop]:
        """Return a label's pieces as polygons in picture pixels, holes cut open, piece by piece.

        A label that is one polygon inside its picture already keeps its own points.
        """
        own = _own_polygon(label, mask)
        return [own] if own is not None and not self.tolerance_px else self._traced(mask, outlines(mask.runs))

    def plain_polygon(self, label: ShownLabel, mask: RegionMask) -> Loop | None:
        """Return the polygon of a label that is one piece without a hole, which every layout's can hold; None for any other."""
        own = _own_polygon(label, mask)
        if own is not None and not self.tolerance_px:
            return own
        pieces = outlines(mask.runs)
        if len(pieces) > 1 or (pieces[0][1] and own is None):
            return None
        return self._traced(mask, pieces)[0]

    def _traced(self, mask: RegionMask, pieces: list[tuple[Loop, list[Loop]]]) -> list[Loop]:
        loops = []
        for outer, holes in pieces:
            thinner = [simplified(hole, self.tolerance_px) for hole in holes]
            loops.append(without_holes(simplified(outer, self.tolerance_px), thinner))
        self.num_polygons += 1
        if self.tolerance_px > 0 and (self.num_polygons <= _MEASURED_ALL or self.num_polygons % _MEASURED_EVERY == 0):
            self._ious.append(_iou(loops, mask))
        return [loop + (mask.left_px, mask.top_px) for loop in loops]

    def polygon(self, label: ShownLabel, mask: RegionMask) -> Loop:
        """Return a label as one polygon, pieces joined by lines of no width."""
        return joined(self.polygons(label, mask))

    def loss(self) -> JsonObject | None:
        """Return what simplifying cost: how many polygons, over how many the IoU was measured, its mean and its least."""
        if not self._ious:
            return None
        return {
            "what": f"masks written as polygons within {self.tolerance_px:g} pixels",
            "count": self.num_polygons,
            "measured": len(self._ious),
            "mean_iou": round(float(np.mean(self._ious)), 4),
            "least_iou": round(min(self._ious), 4),
        }


def _own_polygon(label: ShownLabel, mask: RegionMask) -> Loop | None:
    """Return the points of a label that is one polygon of the file, inside its picture; None for any other."""
    parts = label.segmentation
    if (
        mask.source != "polygons"
        or mask.note
        or not isinstance(parts, list)
        or len(parts) != 1
        or not isinstance(parts[0], list)
    ):
        return None
    loop = np.asarray(parts[0], dtype=np.float64).reshape(-1, 2)
    is_inside = loop.min() >= 0 and loop[:, 0].max() <= mask.width_px and loop[:, 1].max() <= mask.height_px
    return loop if is_inside else None


def flat(loop: Loop) -> list[JsonValue]:
    """Return a polygon as x, y, x, y ..., whole numbers without a point."""
    whole = whole_numbers(loop)
    if whole is not None:
        return list(whole)
    return [int(value) if value == int(value) else round(float(value), 3) for value in loop.ravel().tolist()]


def whole_numbers(loop: Loop) -> list[int] | None:
    """Return the x, y, x, y ... of a polygon of whole pixels, as a traced one is; None of any other, or with a minus zero."""
    numbers = loop.ravel()
    whole = numbers.astype(np.int64)
    return whole.tolist() if (whole == numbers).all() and not np.signbit(numbers).any() else None


def safe_stem(picture: ShownPicture, used: set[str], notes: Notes) -> str | None:
    """Return a picture's path without its ending, for files named after it; None, noted, where it has none that is safe and its own."""
    name = picture.file_name
    path = PurePosixPath((name or "").replace("\\", "/"))
    is_safe = (
        name is not None and "\0" not in name and "://" not in name and ":" not in path.parts[0]
        if path.parts
        else False
    )
    if not is_safe or path.is_absolute() or ".." in path.parts or not path.name:
        notes.say("pictures left out, since they have no file name inside a folder", str(name)[:80])
        return None
    stem = path.with_suffix("").as_posix()
    if stem.lower() in used:
        notes.say("pictures left out, since another one has their name but for its ending", name)
        return None
    used.add(stem.lower())
    return stem


def _iou(loops: list[Loop], mask: RegionMask) -> float:
    height, width = mask.crop_shape
    counts = polygon_counts([flat(loop) for loop in loops], height, width, Limits()).counts
    drawn_hw, mask_hw = counts_to_mask(counts, height, width), mask.crop_HW
    return float((drawn_hw & mask_hw).sum() / (drawn_hw | mask_hw).sum())


def _where(picture: ShownPicture, label: ShownLabel) -> str:
    return f"{picture.file_name}, annotation {label.annotation_id}"
