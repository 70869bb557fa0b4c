"""Masks, judged by pycocotools (for well-formed input) and by hand arithmetic."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import (
    BadRegion,
    RegionMask,
    area_resample,
    area_resample_window,
    mask_to_rle,
    rasterise,
    rle_to_mask,
)
from rlabel.corpus.rle import BadRle, rle_counts
from rlabel.corpus.runs import Runs
from rlabel.records import JsonValue

LIMITS = Limits()
H, W = 12, 20
BOX = (3.0, 2.0, 5.0, 4.0)

masks = arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def draw(segmentation: JsonValue, box: tuple[float, float, float, float] | None = None) -> RegionMask:
    return rasterise(segmentation, box, H, W, LIMITS)


def by_pycocotools(polygons: list[list[float]], height: int = H, width: int = W) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed counts, the slow way: one step a pixel, down the columns."""
    runs, current = [0], False
    for value in mask.T.ravel():
        if bool(value) != current:
            runs.append(0)
            current = bool(value)
        runs[-1] += 1
    return runs


@given(masks)
@settings(deadline=None)
def test_a_mask_comes_back_from_its_rle_unchanged(mask):
    rle = mask_to_rle(mask)
    json.dumps(rle)
    assert (rle_to_mask(rle, *mask.shape) == mask).all()
    assert (coco_mask.decode(rle) == mask).all()


@given(masks)
@settings(deadline=None)
def test_uncompressed_counts_give_the_same_mask_as_compressed_ones(mask):
    rle: JsonValue = {"size": list(mask.shape), "counts": runs_of(mask)}
    assert (rle_to_mask(rle, *mask.shape) == mask).all()


@given(masks.filter(lambda mask: mask.any()))
@settings(deadline=None)
def test_the_box_is_tight_and_the_area_counts_pixels(mask):
    drawn = rasterise(mask_to_rle(mask), None, *mask.shape, LIMITS)
    assert (drawn.mask_HW == mask).all()
    assert drawn.area_px == mask.sum() and drawn.source == "rle"
    assert drawn.box_xywh == tuple(coco_mask.toBbox(mask_to_rle(mask)))


def test_counts_as_bytes_are_read_as_pycocotools_gives_them():
    mask = np.eye(7, dtype=bool)
    raw = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert (rle_to_mask(raw, 7, 7) == mask).all()


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-4, W + 4), st.floats(-4, H + 4)), min_size=3, max_size=8), min_size=1, max_size=3
    )
)
@settings(deadline=None)
def test_polygons_near_the_picture_are_drawn_as_pycocotools_draws_them(polygons):
    flat = [[number for point in polygon for number in point] for polygon in polygons]
    expected = by_pycocotools(flat)
    if expected.any():
        drawn = draw(flat)  # type: ignore[arg-type]
        assert (drawn.mask_HW == expected).all() and drawn.source == "polygons" and drawn.note is None
    else:
        with pytest.raises(BadRegion, match="no pixel"):
            draw(flat)  # type: ignore[arg-type]


def test_overlapping_parts_are_united_not_summed():
    square: list[JsonValue] = [2, 2, 8, 2, 8, 8, 2, 8]
    assert draw([square, square]).area_px == 36


def test_a_part_of_two_points_is_left_out_with_a_note():
    drawn = draw([[2, 2, 8, 2, 8, 8, 2, 8], [1, 1, 5, 5]])
    assert drawn.area_px == 36 and drawn.note is not None and "1 of 2" in drawn.note


def test_a_single_flat_list_of_numbers_is_one_polygon():
    assert draw([2, 2, 8, 2, 8, 8, 2, 8]).area_px == 36


@pytest.mark.parametrize("far", [1e3, 1e7, 1e9, 1e18, 1e308])
def test_a_polygon_that_reaches_far_outside_is_cut_at_the_picture(far):
    # The half plane left of x = 5 and, by symmetry about the picture's middle row, its full height.
    drawn = draw([[-far, -far, 5, -far, 5, far, -far, far]])
    expected = np.zeros((H, W), dtype=bool)
    expected[:, :5] = True
    assert (drawn.mask_HW == expected).all()


def test_a_slanted_edge_to_far_away_keeps_its_slope():
    # y = x from the origin to (1e9, 1e9): within the picture the same as a short triangle with that slope.
    near = by_pycocotools([[0, 0, 40, 40, 0, 40]])
    assert (draw([[0, 0, 1e9, 1e9, 0, 1e9]]).mask_HW == near).all()


@pytest.mark.parametrize(
    "part",
    [
        [1, 1, 5, 5],
        [1, 1, 5, 5, 9],
        [1, 1, 5, math.nan, 9, 9],
        [1, 1, 5, math.inf, 9, 9],
        [1, 1, 5, None, 9, 9],
        [1, 1, 5, 10**30, 9, 9],
        [1, 1, 5, "5", 9, 9],
        [True, False, True, True, False, True],
        [1, 1, 5, True, 9, 9],
        [[1, 1], [5, 5], [9, 1]],
        {"x": 1},
        "polygon",
        None,
        [],
    ],
)
def test_a_part_that_is_no_polygon_falls_back_to_the_box_or_fails(part):
    drawn = draw([part], BOX)
    assert drawn.source == "box" and drawn.box_xywh == BOX and drawn.area_px == 20 and drawn.note is not None
    with pytest.raises(BadRegion):
        draw([part])


def test_an_empty_polygon_list_falls_back_to_the_box():
    assert draw([], BOX).source == "box"


def test_a_flat_polygon_of_no_area_falls_back_to_the_box():
    drawn = draw([[2, 2, 8, 2, 5, 2]], BOX)
    assert drawn.source == "box" and "no pixel" in str(drawn.note)


def test_an_all_zero_rle_fails_unless_there_is_a_good_box():
    empty = mask_to_rle(np.zeros((H, W), dtype=bool))
    with pytest.raises(BadRegion, match="no pixel"):
        draw(empty, (0.0, 0.0, 0.0, 0.0))
    assert draw(empty, BOX).area_px == 20


def test_a_mask_of_another_size_is_an_error_with_both_sizes_even_beside_a_good_box():
    with pytest.raises(BadRegion, match=r"10 x 6 .* 20 x 12"):
        draw(mask_to_rle(np.ones((6, 10), dtype=bool)), BOX)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([H, W], [100]),
        ([H, W], [H * W + 1]),
        ([H, W], [-5, H * W + 5]),
        ([H, W], [10, 10**30]),
        ([H, W], [2**63, 0]),
        ([H, W], ["100", 140]),
        ([H, W], [100.5, 139.5]),
        ([H, W], [math.nan]),
        ([H, W], [[240]]),
        ([H, W], [0] * 1000),
        ([H, W], ""),
        ([H, W], "\x00\x01"),
        ([H, W], "ééé"),
        ([H, W], "oooooooooooo"),
        ([H, W], "o"),
        ([H, W], "1" * 50),
        ([H, W], None),
        ([H, W], {}),
        ([0, 0], []),
        ([H], [240]),
        ([float(H), float(W)], [240]),
        ([True, W], [240]),
        (None, [240]),
        ([100_000, 100_000], [10_000_000_000]),
    ],
)
def test_hostile_runs_are_refused_before_any_c_code_sees_them(size, counts, monkeypatch):
    for name in ("decode", "merge", "toBbox", "area", "frPyObjects"):
        monkeypatch.setattr(coco_mask, name, lambda *_: pytest.fail("C code was reached"))
    with pytest.raises(BadRle):
        rle_to_mask({"size": size, "counts": counts}, H, W)
    with pytest.raises(BadRegion):
        draw({"size": size, "counts": counts}, BOX)


def as_text(numbers: list[int], characters: int | None = None) -> str:
    """Return numbers in the encoding of compressed counts, each in 5 bits a character, in so many characters if told."""
    text = ""
    for number in numbers:
        left = characters or 99
        while True:
            code, number, left = number & 31, number >> 5, left - 1
            is_last = left == 0 or (characters is None and number == (-1 if code & 16 else 0))
            text += chr(48 + code + (0 if is_last else 32))
            if is_last:
                break
    return text


def test_runs_whose_sum_wraps_round_to_the_number_of_pixels_are_refused():
    """Each number is one that the encoding allows, and no run is negative; 64 bits hold their sum as 90,000."""
    side, missing = 300, 2**64 + 300 * 300
    chains: list[list[int]] = []
    for _ in range(2):  # odd and even runs: differences to the run two before, so that early ones count often
        chain = []
        for times in range(60_000, 0, -1):
            chain.append(min(2**34 - 1, missing // times))
            missing -= chain[-1] * times
        chains.append(chain)
    assert missing == 0
    differences = [0, *(number for pair in zip(*chains, strict=True) for number in pair)]
    rle: JsonValue = {"size": [side, side], "counts": as_text(differences)}
    with np.errstate(over="ignore"), pytest.raises(BadRle, match="sum to"):
        rle_counts(rle, side, side)


def test_numbers_and_lists_beyond_what_a_picture_needs_are_refused_as_such():
    assert rle_counts({"size": [H, W], "counts": as_text([H * W], 7)}, H, W).tolist() == [H * W]
    for counts, words in (
        (as_text([H * W], 8), "number that is too large"),
        ([0] * (2 * H * W + 2) + [H * W], "longer than the picture allows"),
        ("0" * (7 * (2 * H * W + 2)) + as_text([H * W]), "longer than the picture allows"),
    ):
        with pytest.raises(BadRle, match=words):
            rle_counts({"size": [H, W], "counts": counts}, H, W)


@pytest.mark.parametrize(
    ("number", "words"), [(2**41, "number that is too large"), (-(2**41), "negative"), (-(2**63), "negative")]
)
def test_a_run_in_a_list_that_no_picture_can_have_is_refused_as_what_it_is(number, words):
    with pytest.raises(BadRle, match=words):
        rle_counts({"size": [H, W], "counts": [number, 5]}, H, W)


@pytest.mark.parametrize(("x", "width", "column"), [(3.6, 0.3, 3), (3.1, 0.2, 3), (W - 0.3, 0.3, W - 1), (0.0, 0.1, 0)])
def test_a_box_without_a_pixels_centre_fills_the_pixel_it_begins_in(x, width, column):
    drawn = draw(None, (x, 2.0, width, 4.0))
    assert np.argwhere(drawn.mask_HW).tolist() == [[row, column] for row in range(2, 6)]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2.5, 1.0, 9.0, 3.0, 4.0, 8.5], [1, 1]],
        {"size": [H, W], "counts": [0, 2, 0, 3, H * W - 5]},
        {"size": [H, W], "counts": [H * W]},  # without a pixel: the box
        None,
    ],
)
def test_a_mask_kept_as_runs_is_the_one_kept_as_a_bitmap(segmentation):
    bitmap = draw(segmentation, BOX)
    runs = rasterise(segmentation, BOX, H, W, LIMITS, as_runs=True)
    assert isinstance(runs.inside, Runs) and not isinstance(bitmap.inside, Runs)
    assert (runs.mask_HW == bitmap.mask_HW).all() and runs.mask_HW.any()
    for name in ("left_px", "top_px", "box_xywh", "area_px", "source", "note", "crop_shape"):
        assert getattr(runs, name) == getattr(bitmap, name), name


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=60))
@settings(deadline=None)
def test_any_text_is_either_refused_or_decoded_as_pycocotools_does(text):
    rle: JsonValue = {"size": [H, W], "counts": text}
    try:
        mask = rle_to_mask(rle, H, W)
    except BadRle:
        return
    assert (coco_mask.decode(rle) == mask).all()


@pytest.mark.parametrize("segmentation", ["polygon", 5, True, {"counts": "1"}, {"size": [H, W]}, {}])
def test_a_segmentation_of_no_known_form_is_an_error(segmentation):
    with pytest.raises(BadRegion):
        draw(segmentation, BOX)


@pytest.mark.parametrize(
    ("box", "expected", "area"),
    [
        ((3, 2, 5, 4), (3, 2, 5, 4), 20),
        ((-4, -4, 6, 6), (0, 0, 2, 2), 4),
        ((15, 8, 1e308, 1e308), (15, 8, 5, 4), 20),
        ((3.2, 2.2, 0.1, 0.1), (3.2, 2.2, 0.1, 0.1), 1),
        ((19.9, 11.9, 5, 5), (19.9, 11.9, 0.1, 0.1), 1),
        ((3.4, 2.6, 2, 2), (3.4, 2.6, 2, 2), 4),
    ],
)
def test_a_box_alone_is_clipped_and_covers_at_least_a_pixel(box, expected, area):
    drawn = draw(None, box)
    assert drawn.box_xywh == pytest.approx(expected)
    assert drawn.area_px == drawn.mask_HW.sum() == area and drawn.source == "box"


@pytest.mark.parametrize(
    "box", [None, (25, 2, 5, 4), (3, 20, 5, 4), (-9, 2, 5, 4), (3, 2, 0, 4), (3, 2, -5, 4), (3, 2, math.nan, 4)]
)
def test_a_box_that_holds_nothing_of_the_picture_is_an_error(box):
    with pytest.raises(BadRegion, match="box"):
        draw(None, box)


def test_polygons_beyond_the_limits_are_refused():
    limits = Limits(max_polygon_points=10, max_polygon_outline_px=100)
    circle: list[JsonValue] = [number for k in range(11) for number in (10 + 3 * math.cos(k), 6 + 3 * math.sin(k))]
    with pytest.raises(BadRegion, match="more points than the limit of 10"):
        rasterise([circle], None, H, W, limits)
    zigzag: list[JsonValue] = [0, 0, 20, 1, 0, 2, 20, 3, 0, 4, 20, 5, 0, 6, 20, 7]
    with pytest.raises(BadRegion, match="outline is longer than the limit of 100"):
        rasterise([zigzag], None, H, W, limits)


def test_one_pixel_at_every_position_survives_resampling_with_its_whole_weight():
    height, width = 7, 9
    for y in range(height):
        for x in range(width):
            mask = np.zeros((height, width), dtype=bool)
            mask[y, x] = True
            drawn = rasterise(mask_to_rle(mask), None, height, width, LIMITS)
            for out_height, out_width in ((1, 1), (2, 3), (4, 4), (7, 9), (16, 16)):
                cells = drawn.resample(out_height, out_width)
                assert cells.max() > 0
                weight = cells.sum() * (height * width) / (out_height * out_width)
                assert weight == pytest.approx(1.0, rel=1e-5)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.floats(0, 1, width=32)),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_resampling_keeps_the_mean(mask, out_height, out_width):
    cells = area_resample(mask, out_height, out_width)
    assert cells.shape == (out_height, out_width) and cells.dtype == np.float32
    assert cells.mean(dtype=np.float64) == pytest.approx(mask.mean(dtype=np.float64), abs=1e-5)


def test_cells_hold_the_covered_share_by_hand():
    mask = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 1]], dtype=bool)
    # Cells of 1.5 x 1.5 pixels; the middle row and column are shared half and half. Upper left: pixel (0, 0) alone.
    expected = np.array([[1.0, 0.5], [0.5, 2.0]]) / 2.25
    assert area_resample(mask, 2, 2) == pytest.approx(expected, abs=1e-6)


def test_a_window_that_reaches_outside_counts_the_outside_as_zero():
    mask = np.ones((4, 4), dtype=bool)
    cells = area_resample_window(mask, (-2.0, -2.0, 6.0, 6.0), 4, 4)
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1
    assert cells == pytest.approx(expected)
    assert area_resample_window(mask, (3.0, 3.0, 5.0, 5.0), 1, 1)[0, 0] == pytest.approx(0.25)
    assert not area_resample_window(mask, (10.0, 10.0, 12.0, 12.0), 2, 2).any()


def test_a_region_resamples_like_its_whole_mask():
    drawn = draw([[2, 1, 17, 3, 9, 11]])
    window = (-3.0, 2.5, 14.25, 19.0)
    assert drawn.resample(5, 4) == pytest.approx(area_resample(drawn.mask_HW, 5, 4), abs=1e-6)
    assert drawn.resample_window(window, 3, 5) == pytest.approx(
        area_resample_window(drawn.mask_HW, window, 3, 5), abs=1e-6
    )


def test_an_empty_window_is_an_error():
    with pytest.raises(ValueError, match="nothing to fill"):
        area_resample_window(np.ones((4, 4), dtype=bool), (2.0, 2.0, 2.0, 4.0), 4, 4)
