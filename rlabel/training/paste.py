"""Copy-paste: regions cut out of one training picture and laid onto another, which both sees them in new places and hides parts behind them.

After Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (arXiv 2012.07177):
objects at random places and scales, masks of what they cover cut, regions that are mostly covered dropped. Knows nothing of
corpora; numpy and Pillow only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from rlabel.corpus.images import PixelsHWC
from rlabel.corpus.masks import RegionMask
from rlabel.corpus.rle import MaskHW

# By how much a region is scaled, beside what the two pictures' sizes ask for; and its longer side, as a share of the picture's shorter one.
_SCALES = (0.5, 1.5)
_LONGER_SIDE = (0.08, 0.6)
# A region is dropped when more of it than this is hidden.
_MOST_HIDDEN = 0.5
# Masks smaller than this to a side are not worth cutting out.
_LEAST_SIDE_PX = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """A region and the picture that it is cut from. pixels_HWC: uint8 (H, W, 3), upright, of the mask's size."""

    pixels_HWC: PixelsHWC
    mask: RegionMask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pasted:
    """A picture with regions laid onto it. pixels_HWC: uint8 (H, W, 3), a new array.

    masks: of the picture's own regions, in their order, less what is covered; None where mostly covered. laid: the masks of
    the cuts, in their order; None where nothing was laid, or the next ones cover most of it. No two cuts share a pixel.
    """

    pixels_HWC: PixelsHWC
    masks: tuple[RegionMask | None, ...]
    laid: tuple[RegionMask | None, ...]


def is_worth_cutting(mask: RegionMask) -> bool:
    """Return whether a mask has an outline of its own, so that no background comes along, and is not tiny."""
    return mask.source != "box" and min(mask.crop_shape) >= _LEAST_SIDE_PX


def paste(pixels_HWC: PixelsHWC, masks: Sequence[RegionMask], cuts: Sequence[Cut], random: Generator) -> Pasted:
    """Return the picture with the cuts laid onto it one after the other, scaled, at drawn places wholly within it.

    Pixels outside the laid masks stay as they are. The same generator state gives the same picture.
    """
    pixels_HWC = pixels_HWC.copy()
    laid: list[RegionMask | None] = []
    for cut in cuts:
        mask = _lay(pixels_HWC, cut, random)
        if mask is not None:
            masks = [one and _less(one, mask) for one in masks]  # type: ignore[misc]
            laid = [one and _less(one, mask) for one in laid]
        laid.append(mask)
    return Pasted(pixels_HWC=pixels_HWC, masks=tuple(masks), laid=tuple(laid))


def _lay(pixels_HWC: PixelsHWC, cut: Cut, random: Generator) -> RegionMask | None:
    """Lay a cut onto the picture, in place; return its mask there, or None where it would have no pixel."""
    height_px, width_px = pixels_HWC.shape[:2]
    height, width = cut.mask.crop_shape
    scale = math.exp(random.uniform(math.log(_SCALES[0]), math.log(_SCALES[1])))
    share = scale * max(height, width) / max(cut.mask.height_px, cut.mask.width_px)
    longer_px = share * max(height_px, width_px)
    shorter_side = min(height_px, width_px)
    longer_px = min(max(longer_px, _LONGER_SIDE[0] * shorter_side), _LONGER_SIDE[1] * shorter_side)
    factor = longer_px / max(height, width)
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    left, top = int(random.integers(width_px - width + 1)), int(random.integers(height_px - height + 1))
    window = np.s_[cut.mask.top_px :, cut.mask.left_px :]
    rows, columns = cut.mask.crop_shape
    colours = cut.pixels_HWC[window][:rows, :columns]
    alpha = cut.mask.crop_HW[..., None].astype(np.uint8) * 255
    # Pillow weighs colours by their opacity here, so that nothing of the background gets into the edges.
    resized = Image.fromarray(np.concatenate([colours, alpha], 2)).resize((width, height), Image.Resampling.BILINEAR)
    drawn_HW4 = np.asarray(resized)
    inside_HW = drawn_HW4[..., 3] >= 128
    pixels_HWC[top : top + height, left : left + width][inside_HW] = drawn_HW4[..., :3][inside_HW]
    return _tight(inside_HW, left, top, replace(cut.mask, height_px=height_px, width_px=width_px))


def _less(mask: RegionMask, cover: RegionMask) -> RegionMask | None:
    """Return a mask less what another covers; None where most of it is covered, itself where nothing is."""
    height, width = mask.crop_shape
    top, left = cover.top_px - mask.top_px, cover.left_px - mask.left_px
    rows, columns = cover.crop_shape
    y0, y1, x0, x1 = max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width)
    if y0 >= y1 or x0 >= x1:
        return mask
    seen_HW = mask.crop_HW.copy()
    seen_HW[y0:y1, x0:x1] &= ~cover.crop_HW[y0 - top : y1 - top, x0 - left : x1 - left]
    num_seen, num_before = int(seen_HW.sum()), int(mask.crop_HW.sum())
    if num_seen == num_before:
        return mask
    if num_seen < (1 - _MOST_HIDDEN) * num_before:
        return None
    return _tight(seen_HW, mask.left_px, mask.top_px, mask)


def _tight(inside_HW: MaskHW, left_px: int, top_px: int, like: RegionMask) -> RegionMask | None:
    """Return the mask of what is inside in a picture of the size of `like`; None without a pixel."""
    rows, columns = np.flatnonzero(inside_HW.any(1)), np.flatnonzero(inside_HW.any(0))
    if not len(rows):
        return None
    crop_HW = np.ascontiguousarray(inside_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    left, top = left_px + int(columns[0]), top_px + int(rows[0])
    return replace(
        like,
        inside=crop_HW,
        left_px=left,
        top_px=top,
        box_xywh=(float(left), float(top), float(crop_HW.shape[1]), float(crop_HW.shape[0])),
        area_px=float(crop_HW.sum()),
        source="rle",
        note=None,
    )
