"""Other looks at the same regions, for labeling: mirrored, or with each mask replaced by its box. Their region tokens are averaged with the plain ones.

Legend: R regions, Z of them zoomed, S x S pixels, G x G cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rlabel.regiongpt.processing import RegionInputs

View = Literal["flip", "box"]
Views = Literal["plain", "flip", "box", "both"]
# What is looked at besides the plain look.
VIEWS_OF: dict[Views, tuple[View, ...]] = {"plain": (), "flip": ("flip",), "box": ("box",), "both": ("flip", "box")}


def seen_as(inputs: RegionInputs, view: View) -> RegionInputs:
    """Return the inputs of one image as a view shows them."""
    return _mirrored(inputs) if view == "flip" else _boxed(inputs)


def _mirrored(inputs: RegionInputs) -> RegionInputs:
    crops = inputs.zoom_crops_Z4SS
    return replace(
        inputs,
        pixels_3SS=inputs.pixels_3SS.flip(-1),
        region_masks_RGG=inputs.region_masks_RGG.flip(-1),
        zoom_crops_Z4SS=None if crops is None else crops.flip(-1),
    )


def _boxed(inputs: RegionInputs) -> RegionInputs:
    crops = inputs.zoom_crops_Z4SS
    if crops is not None:
        filled_Z1SS = _filled(crops[:, 3] > 127).to(crops.dtype)[:, None] * 255
        crops = torch.cat([crops[:, :3], torch.maximum(crops[:, 3:], filled_Z1SS)], 1)
    masks_RGG = inputs.region_masks_RGG
    filled_RGG = _filled(masks_RGG > 0.5).to(masks_RGG.dtype)
    return replace(inputs, region_masks_RGG=torch.maximum(masks_RGG, filled_RGG), zoom_crops_Z4SS=crops)


def _filled(inside_NHW: Tensor) -> Tensor:
    """Return bool (N, H, W): the smallest upright box around each mask; nothing for an empty one."""
    rows_NH, columns_NW = inside_NHW.any(2), inside_NHW.any(1)
    return _span(rows_NH)[:, :, None] & _span(columns_NW)[:, None, :]


def _span(any_NL: Tensor) -> Tensor:
    """Return bool (N, L): everything between the first and the last True."""
    begun = any_NL.int().cumsum(1) > 0
    not_ended = any_NL.flip(1).int().cumsum(1).flip(1) > 0
    return begun & not_ended


def averaged(shown: Sequence[Tensor]) -> Tensor:
    """Return the mean direction of several views' tokens (..., D), as long as those of the first view."""
    unit = torch.stack([torch.nn.functional.normalize(view.float(), dim=-1) for view in shown]).mean(0)
    mean = torch.nn.functional.normalize(unit, dim=-1) * shown[0].float().norm(dim=-1, keepdim=True)
    return mean.to(shown[0].dtype)
