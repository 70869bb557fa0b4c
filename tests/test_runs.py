"""Masks as pieces of columns, judged by bitmaps and by pycocotools."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from rlabel.corpus import picture
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask, area_resample, mask_to_rle, rasterise
from rlabel.corpus.rle import rle_counts
from rlabel.corpus.runs import Runs, runs_of_bitmap, runs_of_box, runs_of_counts

LIMITS = Limits()
HEIGHT, WIDTH = 3000, 4000

masks = arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))).filter(lambda mask: mask.any())


def circle(x: float, y: float, radius: float, num_points: int = 60) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).ravel().tolist()


def same(one: Runs, other: Runs) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("x_N", "top_N", "bottom_N"))


@given(masks)
@settings(deadline=None)
def test_a_mask_its_runs_and_its_counts_are_one(mask):
    counts = rle_counts(mask_to_rle(mask), *mask.shape)
    runs = runs_of_counts(counts, mask.shape[0])
    assert same(runs, runs_of_bitmap(mask, 0, 0))
    assert (runs.bitmap(0, 0, mask.shape[1], mask.shape[0]) == mask).all()
    assert runs.counts(*mask.shape).tolist() == counts.tolist()
    assert runs.area_px == mask.sum()
    left, top, right, bottom = runs.box_xyxy
    assert [left, top, right - left, bottom - top] == coco_mask.toBbox(mask_to_rle(mask)).tolist()


@given(masks, st.sampled_from([1, 2, 3, 4, 8, 11]), st.data())
@settings(deadline=None)
def test_any_window_at_any_scale_holds_the_mean_of_each_cell(mask, scale, data):
    cells = [-(-side // scale) for side in mask.shape]
    top, left = (data.draw(st.integers(0, side - 1)) for side in cells)
    bottom, right = data.draw(st.integers(top + 1, cells[0])), data.draw(st.integers(left + 1, cells[1]))
    padded = np.zeros((cells[0] * scale, cells[1] * scale))
    padded[: mask.shape[0], : mask.shape[1]] = mask
    means = padded.reshape(cells[0], scale, cells[1], scale).mean(axis=(1, 3))[top:bottom, left:right]
    found = runs_of_bitmap(mask, 0, 0).shares(left, top, right, bottom, scale)
    assert found.dtype == np.uint8 and (found == np.floor(means * 255 + 0.5)).all()


@given(masks, st.data())
@settings(deadline=None)
def test_cells_of_the_picture_hold_what_the_area_average_of_the_bitmap_is(mask, data):
    rows, columns = data.draw(st.integers(1, mask.shape[0])), data.draw(st.integers(1, mask.shape[1]))
    found = runs_of_bitmap(mask, 0, 0).cell_shares(*mask.shape, rows, columns)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert found == pytest.approx(area_resample(mask, rows, columns), abs=2e-6)
    assert ((found > 0) == (area_resample(mask.astype(np.float64), rows, columns) > 1e-7)).all()


def test_empty_runs_within_counts_change_nothing():
    counts = np.array([3, 2, 0, 4, 1, 0, 2, 3, 0, 0, 9], dtype=np.int64)  # the mask: 6 pixels from 3 on, 3 from 12 on
    runs = runs_of_counts(counts, 6)
    assert runs.counts(6, 4).tolist() == [3, 6, 3, 3, 9]
    assert runs.x_N.tolist() == [0, 1, 2] and runs.top_N.tolist() == [3, 0, 0] and runs.bottom_N.tolist() == [6, 3, 3]


@pytest.mark.parametrize("kind", ["polygons", "compressed", "uncompressed", "box"])
def test_a_region_of_a_large_picture_is_kept_small_and_exact(kind):
    parts = [circle(1800, 1400, 900), circle(900, 2950, 300)]
    by_coco = coco_mask.merge(coco_mask.frPyObjects(parts, HEIGHT, WIDTH))
    text = {"size": [HEIGHT, WIDTH], "counts": by_coco["counts"].decode()}
    counts = rle_counts(text, HEIGHT, WIDTH).tolist()
    given_as = {"polygons": parts, "compressed": text, "uncompressed": {**text, "counts": counts}, "box": None}[kind]
    tracemalloc.start()
    try:
        drawn = rasterise(given_as, (12.25, 30.5, 3000.0, 2000.0), HEIGHT, WIDTH, LIMITS)
        cells = drawn.resample(56, 56)
        window = drawn.runs.shares(100, 0, 420, 320, 8)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000  # one bitmap of the picture has 12,000,000
    assert isinstance(drawn.inside, Runs) and drawn.inside.num_bytes < 40_000
    if kind == "box":
        assert drawn.box_xywh == (12.25, 30.5, 3000.0, 2000.0) and drawn.area_px == 3000 * 2000
    else:
        assert drawn.area_px == coco_mask.area(by_coco) and list(drawn.box_xywh) == coco_mask.toBbox(by_coco).tolist()
        assert drawn.to_rle() == text
        assert (drawn.mask_HW == coco_mask.decode(by_coco)).all()
    assert cells.sum() * HEIGHT * WIDTH / 56**2 == pytest.approx(drawn.area_px, rel=1e-5)
    assert window.shape == (320, 320) and 0 < (window == 255).mean() < 1


def test_a_mask_of_scattered_pixels_is_kept_as_the_smaller_bitmap(monkeypatch):
    checkered = np.indices((60, 80)).sum(0) % 2 == 0
    monkeypatch.setattr(picture, "LARGE_PX", 1000)
    drawn = rasterise(mask_to_rle(checkered), None, 60, 80, LIMITS)
    assert isinstance(drawn.inside, np.ndarray) and (drawn.crop_HW == checkered).all()
    assert drawn.to_rle() == mask_to_rle(checkered) and drawn.area_px == checkered.sum()
    assert same(drawn.runs, runs_of_bitmap(checkered, 0, 0))


@given(masks, st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None)
def test_what_a_region_is_does_not_hang_on_how_it_is_kept(mask, left, top):
    height, width = mask.shape[0] + top + 3, mask.shape[1] + left + 2
    whole = np.zeros((height, width), np.bool_)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    small = rasterise(mask_to_rle(whole), None, height, width, LIMITS)
    large = RegionMask(
        inside=small.runs, left_px=small.left_px, top_px=small.top_px, height_px=height, width_px=width,
        box_xywh=small.box_xywh, area_px=small.area_px, source="rle",
    )  # fmt: skip
    assert (large.crop_HW == small.crop_HW).all() and large.crop_shape == small.crop_shape == small.crop_HW.shape
    assert (large.mask_HW == whole).all() and large.to_rle() == small.to_rle() == mask_to_rle(whole)


def test_a_box_is_one_piece_a_column():
    runs = runs_of_box(3, 5, 6, 9)
    assert same(runs, runs_of_bitmap(np.ones((4, 3), np.bool_), 3, 5))
