"""Pixels of the zoom path: a square window around a region, cut, turned and scaled in one go. numpy and PIL; no torch.

Labeling and training use this one function: a `View` other than the plain one is training's augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rlabel.corpus.masks import RegionMask

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


def zoom_crop(
    pixels_HWC: NDArray[np.uint8],
    region: RegionMask,
    size_px: int,
    context: float,
    view: View = PLAIN,
) -> NDArray[np.uint8]:
    """Return crop_SS4: uint8 (size, size, 4), red, green, blue and the mask (0 to 255), of a square window around the region.

    context: margin on each side as a share of the box's longer side. What lies outside the picture is mid-grey and outside the mask.
    """
    x, y, width, height = region.box_xywh
    side = max(width, height, 1.0) * (1.0 + 2.0 * context)
    side = max(side, MIN_WINDOW_PX) * view.scale
    middle_x = x + width / 2 + view.shift_x * side
    middle_y = y + height / 2 + view.shift_y * side
    angle = math.radians(view.angle_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = side / 2 * (abs(cos) + abs(sin)) * max(view.stretch, 1.0 / view.stretch) + 2
    left, top = max(int(middle_x - reach), 0), max(int(middle_y - reach), 0)
    right = min(math.ceil(middle_x + reach), pixels_HWC.shape[1])
    bottom = min(math.ceil(middle_y + reach), pixels_HWC.shape[0])
    source_HW4 = np.zeros((bottom - top, right - left, 4), np.uint8)
    source_HW4[..., :3] = pixels_HWC[top:bottom, left:right]
    _paint_mask(source_HW4[..., 3], region, left, top)
    # Four plain channels: PIL would multiply the colours of RGBA by alpha while resampling and so blacken what lies outside the mask.
    source = Image.frombytes("CMYK", source_HW4.shape[1::-1], source_HW4.tobytes())
    step = side / size_px  # source pixels a crop pixel
    shrink_x = shrink_y = 1.0
    if step > 1.0:  # average first: the affine step below samples points and would alias
        small = (max(round(source.width / step), 1), max(round(source.height / step), 1))
        shrink_x, shrink_y = source.width / small[0], source.height / small[1]
        source = source.resize(small, Image.Resampling.BILINEAR)
    mirror = -1.0 if view.mirrored else 1.0
    a, b = mirror * cos * step * view.stretch, -sin * step / view.stretch
    d, e = mirror * sin * step * view.stretch, cos * step / view.stretch
    half = size_px / 2
    c = middle_x - left - a * half - b * half
    f = middle_y - top - d * half - e * half
    matrix = (a / shrink_x, b / shrink_x, c / shrink_x, d / shrink_y, e / shrink_y, f / shrink_y)
    crop = source.transform(
        (size_px, size_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127, 0)
    )
    crop_SS4 = np.asarray(crop)
    if not crop_SS4[
        ..., 3
    ].any():  # a few scattered pixels of a large box, averaged away: better all of it than nothing
        crop_SS4 = crop_SS4.copy()
        crop_SS4[..., 3] = 255
    return crop_SS4


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
