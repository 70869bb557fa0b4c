"""Prepared regions on the model's device, and the tokens that they become there.

Legend: B images, R regions of all of them, K tokens a region, Z zoomed crops, T image tokens, D width, S x S pixels, G x G cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs

_FINISHED_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """image_tokens_BTD and regions_RKD of some images; counts: the regions of each."""

    image_tokens_BTD: Tensor
    regions_RKD: Tensor
    counts: tuple[int, ...]

    def index(self, image: int, region: int) -> int:
        """Return the number of a region of an image among all regions."""
        return sum(self.counts[:image]) + region

    @property
    def image_index_R(self) -> Tensor:
        """Return the image of each region: int64, on the CPU."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """The inputs of some images on the model's device; regions numbered through the batch. None where there is no zoomed crop."""

    pixels_B3SS: Tensor
    region_masks_RGG: Tensor
    region_image_index_R: Tensor
    zoom_pixels_Z3SS: Tensor | None
    zoom_masks_ZSS: Tensor | None
    zoom_region_index_Z: Tensor | None


def to_device_batch(
    inputs: Sequence[RegionInputs],
    processor: RegionGPTProcessor,
    device: torch.device,
    keep: float | Tensor | None = None,
) -> DeviceBatch:
    """Return the inputs of several images joined, their crops normalised and faded. keep: instead of the processor's own zoom_keep."""
    counts = [len(item.region_masks_RGG) for item in inputs]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    crops = [item.zoom_crops_Z4SS for item in inputs if item.zoom_crops_Z4SS is not None]
    index = [
        item.zoom_region_index_Z + start
        for item, start in zip(inputs, starts, strict=True)
        if item.zoom_region_index_Z is not None
    ]
    zoom_pixels = zoom_masks = None
    if crops:
        zoom_pixels, zoom_masks = _finished(torch.cat(crops).to(device), processor, keep)
    return DeviceBatch(
        pixels_B3SS=torch.stack([item.pixels_3SS for item in inputs]).to(device),
        region_masks_RGG=torch.cat([item.region_masks_RGG for item in inputs]).to(device),
        region_image_index_R=torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor(counts)).to(device),
        zoom_pixels_Z3SS=zoom_pixels,
        zoom_masks_ZSS=zoom_masks,
        zoom_region_index_Z=torch.cat(index).to(device) if index else None,
    )


def _finished(crops_Z4SS: Tensor, processor: RegionGPTProcessor, keep: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what the processor's `finish_zoom` does, crop by crop the same, without what it takes in between for all at once."""
    if isinstance(keep, Tensor) or len(crops_Z4SS) <= _FINISHED_AT_ONCE:
        return processor.image_processor.finish_zoom(crops_Z4SS, keep)
    pixels_Z3SS = torch.empty_like(crops_Z4SS[:, :3], dtype=torch.float32)
    masks_ZSS = torch.empty_like(crops_Z4SS[:, 0], dtype=torch.float32)
    for start in range(0, len(crops_Z4SS), _FINISHED_AT_ONCE):
        part = slice(start, start + _FINISHED_AT_ONCE)
        pixels_Z3SS[part], masks_ZSS[part] = processor.image_processor.finish_zoom(crops_Z4SS[part], keep)
    return pixels_Z3SS, masks_ZSS


def only_regions(inputs: RegionInputs, regions: Sequence[int]) -> RegionInputs:
    """Return the inputs of an image with these of its regions only, numbered anew in the given order (ascending)."""
    wanted = torch.tensor(list(regions), dtype=torch.long)
    crops, index_Z = inputs.zoom_crops_Z4SS, inputs.zoom_region_index_Z
    if crops is not None and index_Z is not None:
        kept_Z = torch.isin(index_Z, wanted)
        crops, index_Z = crops[kept_Z], torch.searchsorted(wanted, index_Z[kept_Z])
        if not len(crops):
            crops = index_Z = None
    return replace(
        inputs,
        region_masks_RGG=inputs.region_masks_RGG[wanted],
        zoom_crops_Z4SS=crops,
        zoom_region_index_Z=index_Z,
    )
