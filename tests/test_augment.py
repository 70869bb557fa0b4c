"""Augmentation: off is identity, on is decided by the seed, and no change but an occluder's touches the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import model_factories
from rlabel.regiongpt.pixels import PLAIN, zoom_crop
from rlabel.training.augment import change_pixels, draw_view
from rlabel.training.recipe import Augment

EVERYTHING = Augment(geometry=1, mirror=0.5, colour=1, grey=1, blur=1, outline=1, cutout=1, box=1, edge=1)
COLOURS = ("colour", "grey", "blur", "outline")


def crops(count: int = 6, size: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 4, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def changed(augment: Augment, seed: int = 1, size: int = 24) -> Tensor:
    return change_pixels(crops(size=size), augment, torch.Generator().manual_seed(seed))


def test_augmentation_that_is_off_gives_the_same_bytes() -> None:
    assert torch.equal(changed(Augment()), crops())
    assert draw_view(Augment(), np.random.default_rng(0)) == PLAIN


@pytest.mark.parametrize("name", [*COLOURS, "cutout"])
def test_each_change_of_pixels_changes_pixels_and_is_decided_by_the_seed(name: str) -> None:
    augment = Augment.model_validate({name: 1})
    once = changed(augment, seed=1)
    assert once.dtype == torch.uint8
    assert once.shape == crops().shape
    assert not torch.equal(once[:, :3], crops()[:, :3])
    assert torch.equal(once, changed(augment, seed=1))
    if name in ("colour", "cutout"):  # the others have nothing to draw when they always happen
        assert not torch.equal(once, changed(augment, seed=2))


@pytest.mark.parametrize("name", COLOURS)
def test_colour_changes_leave_the_mask_alone(name: str) -> None:
    assert torch.equal(changed(Augment.model_validate({name: 1}))[:, 3], crops()[:, 3])


def test_an_occluder_hides_a_rectangle_of_the_mask_and_nothing_else_of_it() -> None:
    before, after = crops()[:, 3], changed(Augment(cutout=1))[:, 3]
    for old, new in zip(before, after, strict=True):
        rows, columns = (new != old).nonzero().T
        assert len(rows)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        assert (new[top:bottom, left:right] == 0).all()
        # 15 to 45 % of 24 pixels
        assert 3 <= bottom - top <= 11
        assert 3 <= right - left <= 11


def test_grey_gives_three_equal_channels() -> None:
    after = changed(Augment(grey=1))
    assert torch.equal(after[:, 0], after[:, 1])
    assert torch.equal(after[:, 0], after[:, 2])


def test_grey_pixels_keep_their_hue_when_colours_turn() -> None:
    grey = crops()[:, :1].expand(-1, 3, -1, -1)
    after = change_pixels(torch.cat([grey, crops()[:, 3:]], 1), Augment(colour=1), torch.Generator().manual_seed(3))
    assert (after[:, 0].int() - after[:, 1].int()).abs().max() <= 1


@pytest.mark.parametrize("size", [1 + 16, 24, 32])
def test_all_changes_at_once_keep_shape_and_type(size: int) -> None:
    after = changed(EVERYTHING, size=size)
    assert after.dtype == torch.uint8
    assert after.shape == (6, 4, size, size)


@given(st.integers(0, 2**31))
def test_views_stay_within_their_bounds(seed: int) -> None:
    view = draw_view(EVERYTHING, np.random.default_rng(seed))
    assert abs(view.angle_deg) <= 25
    assert 0.8 <= view.scale <= 1.3
    assert abs(view.shift_x) <= 0.08
    assert abs(view.shift_y) <= 0.08
    assert 0.86 <= view.stretch <= 1.163
    assert view == draw_view(EVERYTHING, np.random.default_rng(seed))


@given(st.integers(0, 2**31))
def test_colours_and_mask_are_laid_the_same_way(seed: int) -> None:
    """A white region on black: red must be where the mask is, however the window is laid."""
    picture = np.zeros((90, 90, 3), np.uint8)
    picture[35:50, 38:62] = 255
    region = model_factories.box_mask(90, 90, 38, 35, 24, 15)
    crop = zoom_crop(picture, region, 32, 0.1, draw_view(EVERYTHING, np.random.default_rng(seed)))
    assert crop[..., 3].max() > 200
    assert np.abs(crop[..., 0].astype(int) - crop[..., 3]).max() <= 1


def test_probabilities_are_of_regions() -> None:
    random = np.random.default_rng(0)
    mirrored = sum(draw_view(Augment(mirror=0.5), random).mirrored for _ in range(2000))
    assert 910 <= mirrored <= 1090  # 1000 expected, 4 deviations of 22.4
