"""Mask pooling: soft, antialiased masks weigh feature maps into region features; one feature, a grid of them, or as many as learned queries look for.

Legend: R regions, B images, C channels, H x W cells of a feature map (L in a row), K tokens a region, E width of queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# RegionGPT's public relative adds 1e-8 to the denominator; masks here never pool to nothing, so it only guards float rounding.
EPSILON = 1e-8
_QUERY_WIDTH = 64


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


class RegionQueries(nn.Module):
    """K learned queries that look at the cells inside a mask: cross-attention with the logarithm of the mask as its bias.

    Keys start at 0, so that a fresh model pools by the mask alone; queries start apart, so that the tokens learn to differ.
    """

    def __init__(self, channels: int, tokens_per_region: int) -> None:
        super().__init__()
        self.queries_KE = nn.Parameter(torch.empty(tokens_per_region, _QUERY_WIDTH))
        self.keys_EC = nn.Parameter(torch.empty(_QUERY_WIDTH, channels))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        nn.init.normal_(self.queries_KE)
        nn.init.zeros_(self.keys_EC)

    def forward(self, maps_BCHW: Tensor, masks_RHW: Tensor, image_index_R: Tensor | None) -> Tensor:
        """Return masks_RKHW for `pool`: how much each query looks at each cell, summing to 1; an empty mask stays empty.

        masks_RHW: float32 in [0, 1]. image_index_R: as of `pool`.
        """
        looks_KC = self.queries_KE @ self.keys_EC / math.sqrt(_QUERY_WIDTH)
        scores_BKHW = torch.einsum("kc,bchw->bkhw", looks_KC.to(maps_BCHW.dtype), maps_BCHW).float()
        scores_RKL = (scores_BKHW if image_index_R is None else scores_BKHW[image_index_R]).flatten(2)
        masks_R1L = masks_RHW.flatten(1)[:, None].float()
        full_R11 = masks_R1L.amax(2, keepdim=True) > 0
        # An empty mask would divide by 0 also where its result is not taken, and spoil the gradient.
        bias_R1L = torch.where(full_R11, masks_R1L, 1.0).log()
        weights_RKL = (scores_RKL + bias_R1L).softmax(-1) * full_R11
        return weights_RKL.unflatten(2, masks_RHW.shape[1:])


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
    # One small product an image: no copy of the map for each of its regions. Unbound, since each index would give a gradient as large as all maps.
    for image_index, map_CL in enumerate(maps_BCL.unbind(0)):
        rows = (image_index_R == image_index).nonzero()[:, 0]
        if len(rows):
            pieces.append(torch.einsum("rkl,cl->rkc", weights_RKL[rows], map_CL))
            order.append(rows)
    if not pieces:
        return pooled_RKC
    return torch.cat(pieces)[torch.cat(order).argsort()]
