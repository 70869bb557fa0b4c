"""Mask pooling: soft, antialiased masks weigh feature maps into region features. Pure functions on tensors.

Legend: R regions, B images, C channels, H x W cells of a feature map, K tokens a region.
"""

from __future__ import annotations

import torch
from torch import Tensor

# RegionGPT's public relative adds 1e-8 to the denominator; masks here never pool to nothing, so it only guards float rounding.
EPSILON = 1e-8


def token_grid(tokens_per_region: int) -> tuple[int, int]:
    """Return (rows, columns) with rows * columns = K, as near to a square as the divisors of K allow."""
    rows = max(r for r in range(1, int(tokens_per_region**0.5) + 1) if tokens_per_region % r == 0)
    return rows, tokens_per_region // rows


def split_masks(masks_RHW: Tensor, tokens_per_region: int) -> Tensor:
    """Return masks_RKHW: each mask cut into a grid of K parts of about equal mass; a part that is empty is the whole mask.

    masks_RHW: float in [0, 1], the covered share of each cell.
    """
    rows, columns = token_grid(tokens_per_region)
    if tokens_per_region == 1:
        return masks_RHW[:, None]
    row_part_RH = _mass_part(masks_RHW.sum(2), rows)
    column_part_RW = _mass_part(masks_RHW.sum(1), columns)
    part_RHW = row_part_RH[:, :, None] * columns + column_part_RW[:, None, :]
    parts_RKHW = torch.stack([masks_RHW * (part_RHW == k) for k in range(tokens_per_region)], dim=1)
    empty_RK11 = parts_RKHW.sum((2, 3), keepdim=True) <= 0
    return torch.where(empty_RK11, masks_RHW[:, None], parts_RKHW)


def _mass_part(mass_RL: Tensor, num_parts: int) -> Tensor:
    """Return for each position the index of the part in which the middle of its mass lies. mass_RL: float >= 0."""
    before_RL = mass_RL.cumsum(1) - mass_RL
    share_RL = (before_RL + mass_RL / 2) / mass_RL.sum(1, keepdim=True).clamp_min(EPSILON)
    return (share_RL * num_parts).long().clamp(0, num_parts - 1)


def pool(maps_BCHW: Tensor, masks_RKHW: Tensor, image_index_R: Tensor | None) -> Tensor:
    """Return pooled_RKC: the mean of each region's image features weighted by its soft masks (RegionGPT, section 3.2).

    masks_RKHW: float32 >= 0; one that is empty (a crop whose region is hidden) pools the whole map, never to nothing.
    image_index_R: int64, which of the B maps a region belongs to; None: region i has map i.
    """
    maps_BCL = maps_BCHW.flatten(2)
    # In float32 up to here: in float16 EPSILON is 0, and sums over 10,000 cells lose the small shares.
    masks_RKL = masks_RKHW.flatten(2).float()
    mass_RK1 = masks_RKL.sum(2, keepdim=True)
    masks_RKL = torch.where(mass_RK1 > 0, masks_RKL, 1.0)
    weights_RKL = (masks_RKL / (masks_RKL.sum(2, keepdim=True) + EPSILON)).to(maps_BCL.dtype)
    if image_index_R is None:
        return torch.einsum("rkl,rcl->rkc", weights_RKL, maps_BCL)
    pooled_RKC = weights_RKL.new_empty(*weights_RKL.shape[:2], maps_BCL.shape[1])
    pieces, order = [], []
    for image_index in range(
        maps_BCL.shape[0]
    ):  # one small product an image: no copy of the map for each of its regions
        rows = (image_index_R == image_index).nonzero()[:, 0]
        if len(rows):
            pieces.append(torch.einsum("rkl,cl->rkc", weights_RKL[rows], maps_BCL[image_index]))
            order.append(rows)
    if not pieces:
        return pooled_RKC
    return torch.cat(pieces)[torch.cat(order).argsort()]
