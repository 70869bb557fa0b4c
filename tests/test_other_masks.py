"""Masks as careless annotators draw them: judged by morphology done pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import model_factories
from rlabel.training.other_masks import box_mask, moved_edge, other_mask
from rlabel.training.recipe import Augment

masks = arrays.arrays(bool, st.tuples(st.integers(3, 20), st.integers(3, 20))).filter(lambda mask: bool(mask.any()))


def filtered(mask_HW: NDArray[np.bool_], reach: int, grow: bool) -> NDArray[np.bool_]:
    """Grow or shrink as PIL's rank filters do; beyond the picture lies the same as at its border."""
    padded = np.pad(mask_HW, reach, mode="constant" if grow else "edge")
    kind = ImageFilter.MaxFilter if grow else ImageFilter.MinFilter
    moved = Image.fromarray(padded.astype(np.uint8) * 255).filter(kind(2 * reach + 1))
    return np.asarray(moved)[reach:-reach, reach:-reach] > 0


@given(masks, st.integers(1, 6))
def test_a_grown_mask_is_that_of_a_maximum_filter(mask_HW: NDArray[np.bool_], reach: int) -> None:
    grown = moved_edge(model_factories.mask_of(mask_HW), reach)
    expected = filtered(mask_HW, reach, grow=True)
    assert np.array_equal(grown.mask_HW, expected)
    assert grown.area_px == expected.sum()
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    assert grown.box_xywh == (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)


@given(masks, st.integers(1, 6))
def test_a_shrunk_mask_lies_inside_and_keeps_some_of_itself(mask_HW: NDArray[np.bool_], reach: int) -> None:
    shrunk = moved_edge(model_factories.mask_of(mask_HW), -reach)
    assert not (shrunk.mask_HW & ~mask_HW).any()
    assert shrunk.area_px == shrunk.mask_HW.sum() >= 0.1 * mask_HW.sum()


def test_a_large_mask_shrinks_as_a_minimum_filter_does() -> None:
    mask_HW = np.zeros((60, 80), bool)
    mask_HW[10:50, 20:70] = True
    mask_HW[10:20, 20:30] = False
    shrunk = moved_edge(model_factories.mask_of(mask_HW), -3)
    assert np.array_equal(shrunk.mask_HW, filtered(mask_HW, 3, grow=False))


def test_a_mask_at_the_border_does_not_shrink_there() -> None:
    mask_HW = np.zeros((40, 40), bool)
    mask_HW[:30, :30] = True
    assert np.array_equal(np.argwhere(moved_edge(model_factories.mask_of(mask_HW), -4).mask_HW).max(0), [25, 25])
    assert moved_edge(model_factories.mask_of(mask_HW), -4).mask_HW[0, 0]


def test_a_single_pixel_never_vanishes() -> None:
    region = model_factories.box_mask(20, 20, 5, 6, 1, 1)
    assert moved_edge(region, -3) is region


def test_a_box_fills_the_box_of_the_region() -> None:
    mask = np.zeros((12, 12), bool)
    mask[3, 2:7] = mask[3:9, 4] = True
    region = model_factories.mask_of(mask)
    expected = np.zeros((12, 12), bool)
    expected[3:9, 2:7] = True
    assert np.array_equal(box_mask(region).mask_HW, expected)
    assert box_mask(region).box_xywh == region.box_xywh
    assert np.array_equal(region.mask_HW, mask)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_a_box_a_little_off_stays_in_the_picture_and_near_the_box(seed: int, width: int, height: int) -> None:
    region = model_factories.box_mask(40, 50, 3, 4, width, height)
    off = box_mask(region, np.random.default_rng(seed))
    x, y, w, h = off.box_xywh
    assert x >= 0 and y >= 0 and x + w <= 50 and y + h <= 40 and w >= 1 and h >= 1
    assert off.crop_HW.all() and off.crop_HW.shape == (h, w)
    assert abs(x - 3) <= 0.3 * width + 1 and abs(y - 4) <= 0.3 * height + 1


def test_probabilities_are_of_regions_and_off_changes_nothing() -> None:
    region = replace(model_factories.box_mask(100, 100, 20, 20, 60, 60), source="rle")
    random = np.random.default_rng(0)
    assert other_mask(region, Augment(), random) is region
    drawn = [other_mask(region, Augment(box=0.25, edge=0.5), random) for _ in range(2000)]
    boxes = sum(one.source == "box" for one in drawn)
    moved = sum(one.source == "rle" and one.area_px != 3600 for one in drawn)
    assert 420 <= boxes <= 580  # 500 expected, 4 deviations of 19.4
    assert 660 <= moved <= 840  # 750 expected, 4 deviations of 21.7
