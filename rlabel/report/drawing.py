"""Draws one picture with its regions: outlines in the colour of what became of them, and a tag with the name and score.

Knows nothing of runs and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rlabel.corpus.limits import WIDEST
from rlabel.corpus.masks import BadRegion, RegionMask, rasterise
from rlabel.records import JsonValue
from rlabel.report.reading import DrawnRegion

Color = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom outside

# Dark enough for white text on them (contrast 4.5 and more), and told apart by words too, not by colour alone.
RIGHT: Color = (11, 122, 59)
WRONG: Color = (190, 24, 33)
ABSTAINED: Color = (92, 99, 112)
FAILED: Color = (166, 74, 4)
# Labels without a truth: neighbours get different colours, which say nothing else.
_UNJUDGED: tuple[Color, ...] = (
    (29, 78, 216),
    (126, 34, 206),
    (15, 110, 104),
    (172, 22, 88),
    (120, 72, 18),
    (67, 56, 152),
)
_HALO: Color = (255, 255, 255)

_MAX_UPSCALE = 4.0
_AROUND = 1.7  # a window's side to its region's longer one
_LEAST_WINDOW_PX = 96
_TAG_FONT_PX = 16
_TAG_PAD_PX = 4
_MAX_TAG_CHARACTERS = 26
_MAX_TAGS = 100  # of one picture; more would hide it
_TAG_WEIGHT = 10  # hiding another tag is worse than hiding a part of a region


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A region in the drawn picture's pixels. mask_HW: bool, the whole picture."""

    mask_HW: npt.NDArray[np.bool_]
    is_box: bool
    box: _Rectangle


def color_of(region: DrawnRegion, position: int) -> Color:
    """Return the colour of a region; position is its place among its image's regions."""
    if region.outcome == "abstention":
        return ABSTAINED
    if region.outcome == "failure":
        return FAILED
    if region.is_correct is None:
        return _UNJUDGED[position % len(_UNJUDGED)]
    return RIGHT if region.is_correct else WRONG


def tag_lines(region: DrawnRegion) -> list[str]:
    """Return the words of a region's tag: what it was called, and what it is where that is another thing."""
    if region.outcome == "label":
        score = "" if region.score is None else f" {region.score:.2f}"
        lines = [_cut(region.words, _MAX_TAG_CHARACTERS - len(score)) + score]
    elif region.outcome == "abstention":
        lines = [f"“{_cut(region.words, _MAX_TAG_CHARACTERS - 2)}”"]
    else:
        lines = [_cut(f"failed: {region.words}", _MAX_TAG_CHARACTERS)]
    if region.true_name is not None and region.is_correct is not True:
        lines.append(_cut(f"{region.true_from}: {region.true_name}", _MAX_TAG_CHARACTERS))
    return lines


def load_font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font: no font file is needed on any machine."""
    return ImageFont.load_default(size_px)


def draw_regions(
    pixels_HWC: npt.NDArray[np.uint8],
    regions: Sequence[DrawnRegion],
    max_width_px: int,
    max_height_px: int,
    *,
    window_xyxy: _Rectangle | None = None,
    with_tags: bool = True,
) -> Image.Image:
    """Return the picture scaled to fit, with outlines and tags. pixels_HWC: uint8 RGB, upright.

    window_xyxy: the part of the picture that is drawn, in its pixels, inside it; None draws all.
    Regions whose outline is unknown or unusable, or outside the window, are not drawn; the caller's caption counts them.
    """
    height_px, width_px = pixels_HWC.shape[:2]
    window = window_xyxy or (0, 0, width_px, height_px)
    left, top, right, bottom = window
    scale = min(max_width_px / (right - left), max_height_px / (bottom - top), _MAX_UPSCALE)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    part = Image.fromarray(np.ascontiguousarray(pixels_HWC[top:bottom, left:right]))
    canvas = np.array(part.resize(size, Image.Resampling.LANCZOS))
    shapes = [_shape(region, height_px, width_px, window, size) for region in regions]
    for position, (region, shape) in enumerate(zip(regions, shapes, strict=True)):
        if shape is not None and not shape.is_box:
            _outline(canvas, shape, color_of(region, position))
    picture = Image.fromarray(canvas)
    brush = ImageDraw.Draw(picture)
    for position, (region, shape) in enumerate(zip(regions, shapes, strict=True)):
        if shape is not None and shape.is_box:
            x0, y0, x1, y1 = shape.box
            brush.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_HALO, width=4)
            brush.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color_of(region, position), width=2)
    if with_tags:
        _draw_tags(
            brush, size, [(r, p, s.box) for p, (r, s) in enumerate(zip(regions, shapes, strict=True)) if s is not None]
        )
    return picture


def window_around(box: JsonValue, height_px: int, width_px: int) -> tuple[int, int, int, int] | None:
    """Return a square around a box, moved into the picture and cut to it; None (the whole picture) for a box that is none or outside."""
    sides = [float(v) for v in box if isinstance(v, int | float)] if isinstance(box, list) else []
    if len(sides) != 4 or not all(abs(side) < 1e9 for side in sides):  # NaN neither
        return None
    left, top, width, height = sides
    if width <= 0 or height <= 0 or left >= width_px or top >= height_px or left + width <= 0 or top + height <= 0:
        return None
    side = max(_AROUND * max(width, height), _LEAST_WINDOW_PX)

    def span(middle: float, length_px: int) -> tuple[int, int]:
        own = min(round(side), length_px)
        start = min(max(round(middle - side / 2), 0), length_px - own)
        return start, start + own

    (x0, x1), (y0, y1) = span(left + width / 2, width_px), span(top + height / 2, height_px)
    return x0, y0, x1, y1


def _shape(
    region: DrawnRegion, height_px: int, width_px: int, window: _Rectangle, size: tuple[int, int]
) -> _Shape | None:
    try:
        mask = rasterise(region.segmentation, _box_or_none(region.box_xywh), height_px, width_px, WIDEST)
    except BadRegion:
        return None
    share_HW = mask.resample_window((window[0], window[1], window[2], window[3]), size[1], size[0])
    if not share_HW.any():
        return None
    # a region thinner than half a drawn pixel must not vanish
    mask_HW = share_HW >= min(0.5, float(share_HW.max()) / 2)
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _Shape(mask_HW=mask_HW, is_box=_is_box(mask), box=box)


def _is_box(mask: RegionMask) -> bool:
    return mask.source == "box"


def _box_or_none(value: JsonValue) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    sides = [float(v) for v in value if isinstance(v, int | float) and math.isfinite(v)]
    return (sides[0], sides[1], sides[2], sides[3]) if len(sides) == 4 else None


def _outline(canvas_HWC: npt.NDArray[np.uint8], shape: _Shape, color: Color) -> None:
    """Draw the edge inside the mask in the colour and a thin light halo around it: seen on dark and light pictures."""
    left, top, right, bottom = shape.box
    # the box and two pixels around it: a picture may have thousands of small regions
    near = (slice(max(0, top - 2), bottom + 2), slice(max(0, left - 2), right + 2))
    part_HWC, mask_HW = canvas_HWC[near], shape.mask_HW[near]
    inner_HW = _shrink(_shrink(mask_HW))
    halo_HW = ~_shrink(~mask_HW) & ~mask_HW
    part_HWC[halo_HW] = (0.35 * part_HWC[halo_HW] + 0.65 * np.array(_HALO)).astype(np.uint8)
    part_HWC[mask_HW & ~inner_HW] = color


def _shrink(mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the mask without the pixels that touch its outside; the picture's edge does not count as outside."""
    inner_HW = mask_HW.copy()
    inner_HW[1:] &= mask_HW[:-1]
    inner_HW[:-1] &= mask_HW[1:]
    inner_HW[:, 1:] &= mask_HW[:, :-1]
    inner_HW[:, :-1] &= mask_HW[:, 1:]
    return inner_HW


def _draw_tags(
    brush: ImageDraw.ImageDraw, size: tuple[int, int], tagged: Sequence[tuple[DrawnRegion, int, _Rectangle]]
) -> None:
    font = load_font(_TAG_FONT_PX)
    line_px = _TAG_FONT_PX + 3
    placed: list[_Rectangle] = []
    boxes_R4 = np.array([box for _, _, box in tagged]).reshape(-1, 4)
    # small regions first: they have the fewest places where a tag still points at them
    by_area = sorted(tagged, key=lambda t: (t[2][2] - t[2][0]) * (t[2][3] - t[2][1]))
    for region, position, box in by_area[-_MAX_TAGS:]:
        lines = tag_lines(region)
        width = math.ceil(max(brush.textlength(line, font=font) for line in lines)) + 2 * _TAG_PAD_PX
        height = line_px * len(lines) + 2 * _TAG_PAD_PX - 3
        spot = _best_spot(box, width, height, size, placed, boxes_R4)
        placed.append(spot)
        color = color_of(region, position)
        brush.rounded_rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), 3, fill=color, outline=_HALO)
        for row, line in enumerate(lines):
            brush.text((spot[0] + _TAG_PAD_PX, spot[1] + _TAG_PAD_PX - 1 + row * line_px), line, fill=_HALO, font=font)


def _best_spot(
    box: _Rectangle,
    width: int,
    height: int,
    size: tuple[int, int],
    placed: Sequence[_Rectangle],
    boxes_R4: npt.NDArray[np.int64],
) -> _Rectangle:
    """Return the place for a tag at a region's box that hides the least of other tags and of regions."""
    left, top, right, bottom = box
    middle_x, middle_y = (left + right - width) // 2, (top + bottom - height) // 2
    corners = [
        *((left, top - height), (left, top), (left, bottom), (left, bottom - height)),
        *(
            (right - width, top - height),
            (right - width, bottom),
            (right - width, top),
            (right - width, bottom - height),
        ),
        *((middle_x, middle_y), (right, top), (left - width, top), (right, middle_y), (left - width, middle_y)),
        *((middle_x, top - height), (middle_x, bottom), (right, bottom), (left - width, bottom)),
    ]
    inside = [(max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))) for x, y in corners]
    spots = [(x, y, x + width, y + height) for x, y in inside]
    spots_S4 = np.array(spots)
    hidden_px_S = _overlaps(spots_S4, boxes_R4)
    if placed:
        hidden_px_S += _TAG_WEIGHT * _overlaps(spots_S4, np.array(placed))
    return spots[int(hidden_px_S.argmin())]


def _overlaps(spots_S4: npt.NDArray[np.int64], others_R4: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many pixels of each spot lie in the others, counted for each of them."""
    wide_SR = np.minimum(spots_S4[:, None, 2], others_R4[:, 2]) - np.maximum(spots_S4[:, None, 0], others_R4[:, 0])
    high_SR = np.minimum(spots_S4[:, None, 3], others_R4[:, 3]) - np.maximum(spots_S4[:, None, 1], others_R4[:, 1])
    overlaps_S: npt.NDArray[np.int64] = (wide_SR.clip(0) * high_SR.clip(0)).sum(axis=1)
    return overlaps_S


def _cut(text: str, num_characters: int) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= num_characters else shown[: num_characters - 1] + "…"
