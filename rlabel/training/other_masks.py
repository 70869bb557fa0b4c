"""Masks as careless annotators and other tools draw them: boxes, boxes a little off, masks too large or too small. For training; numpy only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rlabel.corpus.masks import RegionMask
from rlabel.training.recipe import Augment

# By how much a mask grows or shrinks, as a share of its longer side; and what must be left of it.
_REACH = (0.01, 0.3)
_LEAST_LEFT = 0.1
# How often a box is a little off, and by how much each of its sides (standard deviation, share of the side).
_OFTEN_OFF, _OFF = 0.5, 0.05


def other_mask(region: RegionMask, augment: Augment, random: Generator) -> RegionMask:
    """Return the region, or with the recipe's probabilities its box, a box a little off, or its mask grown or shrunk. It never vanishes."""
    draw = random.random()
    if draw < augment.box:
        return box_mask(region, random if random.random() < _OFTEN_OFF else None)
    if draw < augment.box + (1 - augment.box) * augment.edge:
        low, high = (math.log(share) for share in _REACH)
        reach_px = round(math.exp(random.uniform(low, high)) * max(region.crop_shape))
        return moved_edge(region, reach_px if random.random() < 0.5 else -reach_px)
    return region


def box_mask(region: RegionMask, random: Generator | None = None) -> RegionMask:
    """Return the region's box as a filled mask; with a generator, its sides are moved a little."""
    height, width = region.crop_shape
    left, top, right, bottom = region.left_px, region.top_px, region.left_px + width, region.top_px + height
    if random is not None:
        moves = random.normal(0.0, _OFF, 4) * (width, height, width, height)
        left, right = _span(left + moves[0], right + moves[2], region.width_px)
        top, bottom = _span(top + moves[1], bottom + moves[3], region.height_px)
    return replace(
        region,
        inside=np.ones((bottom - top, right - left), np.bool_),
        left_px=left,
        top_px=top,
        box_xywh=(float(left), float(top), float(right - left), float(bottom - top)),
        area_px=float((bottom - top) * (right - left)),
        source="box",
    )


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Return whole numbers near low and high within 0 and limit, at least one apart."""
    first = min(max(round(low), 0), limit - 1)
    return first, min(max(round(high), first + 1), limit)


def moved_edge(region: RegionMask, reach_px: int) -> RegionMask:
    """Return the region grown by a square of reach_px to each side within the picture, or shrunk for a negative one.

    Where less than a tenth would be left, it shrinks by less.
    """
    height, width = region.crop_shape
    reach = abs(reach_px)
    # Nothing lies outside the picture, but a mask at its border does not shrink there: what it shows goes on behind it.
    around = [
        (min(reach, region.top_px), min(reach, region.height_px - region.top_px - height)),
        (min(reach, region.left_px), min(reach, region.width_px - region.left_px - width)),
    ]
    if reach_px < 0:
        while reach and _spread(~np.pad(region.crop_HW, around), reach).mean() > 1 - _LEAST_LEFT * _share(
            region, around
        ):
            reach //= 2
    if not reach:
        return region
    padded_HW = np.pad(region.crop_HW, around)
    changed_HW = _spread(padded_HW, reach) if reach_px > 0 else ~_spread(~padded_HW, reach)
    rows, columns = np.flatnonzero(changed_HW.any(1)), np.flatnonzero(changed_HW.any(0))
    top, left = int(rows[0]), int(columns[0])
    crop_HW = np.ascontiguousarray(changed_HW[top : rows[-1] + 1, left : columns[-1] + 1])
    left, top = left + region.left_px - around[1][0], top + region.top_px - around[0][0]
    return replace(
        region,
        inside=crop_HW,
        left_px=left,
        top_px=top,
        box_xywh=(float(left), float(top), float(crop_HW.shape[1]), float(crop_HW.shape[0])),
        area_px=float(crop_HW.sum()),
    )


def _share(region: RegionMask, around: list[tuple[int, int]]) -> float:
    """Return how much of the padded crop the region fills."""
    height, width = region.crop_shape
    return float(region.crop_HW.sum()) / ((height + sum(around[0])) * (width + sum(around[1])))


def _spread(inside_HW: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return where a True lies within reach in rows and columns; beyond the edge nothing does."""
    for axis in (0, 1):
        padding = [(reach + 1, reach) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.pad(inside_HW, padding).cumsum(axis, dtype=np.int32)
        length = inside_HW.shape[axis]
        ahead = sums.take(range(2 * reach + 1, 2 * reach + 1 + length), axis)
        inside_HW = ahead > sums.take(range(length), axis)
    return inside_HW
