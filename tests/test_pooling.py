from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlabel.regiongpt.pooling import pool, split_masks, token_grid

import model_factories as factory  # isort: skip


def one_pixel(height: int, width: int, y: int, x: int) -> np.ndarray:
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[y, x] = True
    return mask_HW


def test_pooling_is_the_mean_weighted_by_the_mask() -> None:
    map_1CHW = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 0.0], [0.0, -10.0]]]])
    mask_11HW = torch.tensor([[[[1.0, 0.5], [0.0, 0.25]]]])
    pooled_11C = pool(map_1CHW, mask_11HW, torch.tensor([0]))
    # (1 * 1 + 0.5 * 2 + 0.25 * 4) / 1.75 and (1 * 10 + 0.25 * -10) / 1.75
    assert pooled_11C.flatten().tolist() == pytest.approx([3 / 1.75, 7.5 / 1.75], rel=1e-6)


def test_each_region_pools_its_own_image_in_any_order() -> None:
    maps_BCHW = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 4) * 10
    pooled_RKC = pool(maps_BCHW, torch.ones(5, 1, 4, 4), torch.tensor([2, 0, 2, 1, 0]))
    assert pooled_RKC[:, 0, 0].tolist() == pytest.approx([20, 0, 20, 10, 0])
    assert pool(maps_BCHW, torch.ones(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)).shape == (0, 1, 2)


@pytest.mark.parametrize("side", [4, 7])
def test_a_mask_of_one_pixel_pools_to_its_places_feature_at_every_position(side: int) -> None:
    height, width = 18, 26
    map_1CGG = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    for y in range(height):
        for x in range(width):
            mask_GG = factory.mask_of(one_pixel(height, width, y, x)).resample(side, side)
            pooled_C = pool(map_1CGG, split_masks(torch.from_numpy(mask_GG)[None], 1), torch.tensor([0]))[0, 0]
            expected_C = torch.zeros(3)
            for i in range(side):  # shares of the pixel's square in each cell, by hand
                down = min((i + 1) * height / side, y + 1) - max(i * height / side, y)
                for j in range(side):
                    along = min((j + 1) * width / side, x + 1) - max(j * width / side, x)
                    expected_C += max(down, 0.0) * max(along, 0.0) * map_1CGG[0, :, i, j]
            torch.testing.assert_close(pooled_C, expected_C, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("refine", [True, False])
def test_no_mask_of_one_pixel_vanishes_in_the_model(refine: bool) -> None:
    made = factory.model("lite", refine=refine, connector="separate", tokens_per_region=2)
    made.region_connector = nn.Identity()  # the tokens are the pooled features themselves
    height, width = 23, 31
    side = 16 if refine else 4
    regions = [
        factory.mask_of(one_pixel(height, width, y, x)).resample(side, side)
        for y in range(height)
        for x in range(width)
    ]
    masks_RGG = torch.from_numpy(np.stack(regions))
    maps_BCGG = torch.ones(1, 16, side, side)
    tokens_RKC = made.encode_regions(maps_BCGG, masks_RGG, torch.zeros(len(regions), dtype=torch.long))
    torch.testing.assert_close(tokens_RKC, torch.ones(height * width, 2, 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (1, 5)), (6, (2, 3))])
def test_parts_are_laid_out_as_near_to_a_square_as_divisors_allow(k: int, grid: tuple[int, int]) -> None:
    assert token_grid(k) == grid


def test_a_position_belongs_to_the_part_in_which_the_middle_of_its_mass_lies() -> None:
    # Of three equal columns the middle one has its middle at half of the mass, where the second part begins.
    assert split_masks(torch.ones(1, 1, 3), 2)[0, :, 0].tolist() == [[1, 0, 0], [0, 1, 1]]


def test_masks_of_half_precision_are_summed_in_full_precision() -> None:
    # In float16 the sum of 300 x 300 cells is infinite, and every weight 0.
    map_1CHW = torch.full((1, 2, 300, 300), 3.0)
    pooled_11C = pool(map_1CHW, torch.ones(1, 1, 300, 300, dtype=torch.float16), torch.tensor([0]))
    torch.testing.assert_close(pooled_11C, torch.full((1, 1, 2), 3.0), atol=1e-3, rtol=0)


def test_four_parts_of_a_full_square_are_its_quarters() -> None:
    parts_4HW = split_masks(torch.ones(1, 4, 4), 4)[0]
    for part, (rows, columns) in zip(
        parts_4HW, [((0, 2), (0, 2)), ((0, 2), (2, 4)), ((2, 4), (0, 2)), ((2, 4), (2, 4))], strict=True
    ):
        quarter = torch.zeros(4, 4)
        quarter[rows[0] : rows[1], columns[0] : columns[1]] = 1
        assert torch.equal(part, quarter)


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 6), seed=st.integers(0, 10_000), density=st.floats(0.02, 1.0))
def test_no_part_is_empty_and_parts_that_are_not_the_whole_are_disjoint(k: int, seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask_HW = torch.rand(7, 9, generator=generator) * (torch.rand(7, 9, generator=generator) < density)
    mask_HW[3, 5] = 0.001
    parts_KHW = split_masks(mask_HW[None], k)[0]
    assert parts_KHW.shape[0] == k and bool((parts_KHW.sum((1, 2)) > 0).all())
    proper = [part for part in parts_KHW if not torch.equal(part, mask_HW)] or [mask_HW]
    torch.testing.assert_close(sum(proper[1:], proper[0]), mask_HW)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [1.0, 1e-3, 2e-8])  # float16 knows nothing between 0 and 6e-8
def test_low_precision_maps_pool_as_float32_maps_do(dtype: torch.dtype, share: float) -> None:
    map_1CGG = torch.rand(1, 4, 96, 96, generator=torch.Generator().manual_seed(0)) + 1
    mask_1GG = torch.full((1, 96, 96), share)
    mask_1GG[:, :, 60:] = 0
    map_1CGG[..., 60:] += 10
    low = pool(map_1CGG.to(dtype), split_masks(mask_1GG, 1), torch.tensor([0]))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float()[0, 0], map_1CGG[0, :, :, :60].mean((1, 2)), rtol=0.01, atol=0)


def test_a_region_hidden_by_augmentation_pools_the_whole_crop() -> None:
    pooled = pool(torch.arange(4.0).view(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), None)
    assert pooled.item() == pytest.approx(1.5)
