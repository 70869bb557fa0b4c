"""Pixels of the zoom path: a square window around a region, cut, turned and scaled in one go, on the CPU.

Labeling and training use this one function: a `View` other than the plain one is training's augmentation. Of a large
picture a window is cut from the smallest scale that holds all that the crop can show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from rlabel.corpus.masks import RegionMask
from rlabel.corpus.picture import LargePicture, scale_for

# Of a large picture: at least so many pixels of the scale that a crop is cut from to each of the crop's.
_CROP_KEEPS = 1.0
# What lies outside the picture: mid-grey, and outside the mask.
_OUTSIDE = (127, 127, 127, 0)
# Below this window a region is a handful of pixels; a wider look says more than a blown-up blur.
MIN_WINDOW_PX = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How the window is laid: turned by angle_deg, mirrored, its side and middle changed (in shares of the side)."""

    angle_deg: float = 0.0
    mirrored: bool = False
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    stretch: float = 1.0


PLAIN = View()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """What a crop shows, before it is turned: a square of `side` around a middle, in pixels of what it is cut from."""

    middle_x: float
    middle_y: float
    side: float

    def at(self, scale: int) -> _Window:
        return _Window(middle_x=self.middle_x / scale, middle_y=self.middle_y / scale, side=self.side / scale)

    def bounds(self, view: View, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of what a turned window may touch of a picture of height x width."""
        angle = math.radians(view.angle_deg)
        reach = self.side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
        reach = reach * max(view.stretch, 1.0 / view.stretch) + 2
        left, top = max(int(self.middle_x - reach), 0), max(int(self.middle_y - reach), 0)
        right = min(math.ceil(self.middle_x + reach), width)
        return left, top, right, min(math.ceil(self.middle_y + reach), height)


def zoom_crop(
    picture: NDArray[np.uint8] | LargePicture,
    region: RegionMask,
    size_px: int,
    context: float,
    view: View = PLAIN,
) -> NDArray[np.uint8]:
    """Return crop_SS4: uint8 (size, size, 4), red, green, blue and the mask (0 to 255), of a square window around the region.

    picture: all its pixels, uint8 (H, W, 3), RGB, upright; or a large one.
    context: margin on each side as a share of the box's longer side. What lies outside the picture is mid-grey and outside the mask.
    """
    x, y, width, height = region.box_xywh
    side = max(width, height, 1.0) * (1.0 + 2.0 * context)
    side = max(side, MIN_WINDOW_PX) * view.scale
    window = _Window(
        middle_x=x + width / 2 + view.shift_x * side, middle_y=y + height / 2 + view.shift_y * side, side=side
    )
    if isinstance(picture, LargePicture):
        crop_SS4 = _crop_of_large(picture, region, size_px, window, view)
    else:
        left, top, right, bottom = window.bounds(view, *picture.shape[:2])
        source_HW4 = np.zeros((bottom - top, right - left, 4), np.uint8)
        source_HW4[..., :3] = picture[top:bottom, left:right]
        _paint_mask(source_HW4[..., 3], region, left, top)
        crop_SS4 = _turned(source_HW4, left, top, window, size_px, view)
    if not crop_SS4[..., 3].any():
        # A few scattered pixels of a large box, averaged away: better all of it than nothing.
        crop_SS4 = crop_SS4.copy()
        crop_SS4[..., 3] = 255
    return crop_SS4


def _turned(
    source_HW4: NDArray[np.uint8], left: int, top: int, window: _Window, size_px: int, view: View
) -> NDArray[np.uint8]:
    """Return the crop of a window out of a part of the picture whose corner lies at (left, top)."""
    # Four plain channels: PIL would multiply the colours of RGBA by alpha while resampling and so blacken what lies outside the mask.
    source = Image.frombytes("CMYK", source_HW4.shape[1::-1], source_HW4.tobytes())
    step = window.side / size_px  # source pixels a crop pixel
    shrink_x = shrink_y = 1.0
    if step > 1.0:  # average first: the affine step below samples points and would alias
        small = (max(round(source.width / step), 1), max(round(source.height / step), 1))
        shrink_x, shrink_y = source.width / small[0], source.height / small[1]
        source = source.resize(small, Image.Resampling.BILINEAR)
    angle = math.radians(view.angle_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    mirror = -1.0 if view.mirrored else 1.0
    a, b = mirror * cos * step * view.stretch, -sin * step / view.stretch
    d, e = mirror * sin * step * view.stretch, cos * step / view.stretch
    half = size_px / 2
    c = window.middle_x - left - a * half - b * half
    f = window.middle_y - top - d * half - e * half
    matrix = (a / shrink_x, b / shrink_x, c / shrink_x, d / shrink_y, e / shrink_y, f / shrink_y)
    crop = source.transform(
        (size_px, size_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_OUTSIDE
    )
    return np.asarray(crop)


def _crop_of_large(
    picture: LargePicture, region: RegionMask, size_px: int, window: _Window, view: View
) -> NDArray[np.uint8]:
    """Return the crop of a window out of the smallest scale of a large picture that holds what it can show."""
    scale = scale_for(window.side / size_px, _CROP_KEEPS)
    level, window = picture.level(scale), window.at(scale)
    step = window.side / size_px
    # The picture's own sides, not the level's: those are rounded up.
    columns = _Cells.of(window.middle_x - window.side / 2, step, size_px, picture.width_px / scale)
    rows = _Cells.of(window.middle_y - window.side / 2, step, size_px, picture.height_px / scale)
    if view != PLAIN or columns is None or rows is None:
        left, top, right, bottom = window.bounds(view, level.height, level.width)
        source_HW4 = np.empty((bottom - top, right - left, 4), np.uint8)
        source_HW4[..., :3] = np.asarray(level.crop((left, top, right, bottom)))
        source_HW4[..., 3] = region.runs.shares(left, top, right, bottom, scale)
        return _turned(source_HW4, left, top, window, size_px, view)
    # Colours and mask in one resampling, three times as fast as Pillow's two, to the same bytes by whatever instructions
    # a CPU has: torch averages bytes with whole numbers, as Pillow does. It can begin only at a whole pixel; some cells
    # before the first one make up for that, to within half a cell.
    source_HW4 = _with_mask(level, region, scale, columns, rows)
    pixels_14HW = torch.from_numpy(source_HW4)[None].permute(0, 3, 1, 2)
    small_14HW = F.interpolate(pixels_14HW, scale_factor=1.0 / step, mode="bilinear", antialias=True)
    small_HW4 = small_14HW[0].permute(1, 2, 0).numpy()
    shown_HW4 = small_HW4[rows.skipped : rows.skipped + rows.count, columns.skipped : columns.skipped + columns.count]
    if shown_HW4.shape[:2] == (size_px, size_px):
        return shown_HW4
    crop_SS4 = np.empty((size_px, size_px, 4), np.uint8)
    crop_SS4[:] = _OUTSIDE
    crop_SS4[rows.first : rows.first + rows.count, columns.first : columns.first + columns.count] = shown_HW4
    return crop_SS4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """The rows or columns of a crop whose middle lies in the picture: `count` from `first` on.

    They are made of num_pixels of a level from `start` on, which may reach beyond it, but never by more than a few cells: a crop is a square, and of a
    picture that is all but a line most of it lies outside. Before them are `skipped` cells.
    """

    first: int
    count: int
    start: int
    num_pixels: int
    skipped: int

    @classmethod
    def of(cls, begin: float, step: float, size_px: int, length: float) -> _Cells | None:
        """begin: where the crop begins, `step` pixels a cell. length: of the picture. Returns None where there is no cell."""
        first = max(math.ceil(-begin / step - 0.5), 0)
        count = min(math.ceil((length - begin) / step - 0.5), size_px) - first
        if count <= 0:
            return None
        begin += first * step
        start = round(begin) if step >= 1.0 else math.floor(begin)
        skipped = 0 if step >= 1.0 else round((begin - start) / step)
        # One cell more than is wanted, since torch rounds their number down.
        num_pixels = math.ceil((count + skipped + 1) * step) + 1
        return cls(first=first, count=count, start=start, num_pixels=num_pixels, skipped=skipped)


def _with_mask(level: Image.Image, region: RegionMask, scale: int, columns: _Cells, rows: _Cells) -> NDArray[np.uint8]:
    """Return the pixels that some cells are made of, with the mask: uint8 (H, W, 4). Beyond its edge the picture goes on as it ends."""
    x0, x1 = max(columns.start, 0), min(columns.start + columns.num_pixels, level.width)
    y0, y1 = max(rows.start, 0), min(rows.start + rows.num_pixels, level.height)
    before_x, after_x, before_y, after_y = x0 - columns.start, x1 - columns.start, y0 - rows.start, y1 - rows.start
    source_HW4 = np.empty((rows.num_pixels, columns.num_pixels, 4), np.uint8)
    inside_HW4 = source_HW4[before_y:after_y, before_x:after_x]
    inside_HW4[...] = np.frombuffer(level.crop((x0, y0, x1, y1)).tobytes("raw", "RGBX"), np.uint8).reshape(
        inside_HW4.shape
    )
    inside_HW4[..., 3] = region.runs.shares(x0, y0, x1, y1, scale)
    source_HW4[before_y:after_y, :before_x] = inside_HW4[:, :1]
    source_HW4[before_y:after_y, after_x:] = inside_HW4[:, -1:]
    source_HW4[:before_y] = source_HW4[before_y]
    source_HW4[after_y:] = source_HW4[after_y - 1]
    return source_HW4


def _paint_mask(out_HW: NDArray[np.uint8], region: RegionMask, left: int, top: int) -> None:
    """Write 255 where the region is, into a window of the picture whose corner is (left, top)."""
    height, width = region.crop_HW.shape
    y0, x0 = max(region.top_px, top), max(region.left_px, left)
    y1, x1 = min(region.top_px + height, top + out_HW.shape[0]), min(region.left_px + width, left + out_HW.shape[1])
    if y1 > y0 and x1 > x0:
        inside_HW = region.crop_HW[y0 - region.top_px : y1 - region.top_px, x0 - region.left_px : x1 - region.left_px]
        out_HW[y0 - top : y1 - top, x0 - left : x1 - left] = inside_HW.view(np.uint8) * 255


def resize_square(pixels_HWC: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Return the whole picture as uint8 (size, size, 3): squeezed, never cut, so that every mask keeps its place on the feature map."""
    return np.asarray(Image.fromarray(pixels_HWC).resize((size_px, size_px), Image.Resampling.BILINEAR))
