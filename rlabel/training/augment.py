"""Changes of training crops: how the window is laid (drawn before cutting) and what happens to its pixels (afterwards, batched).

Legend: Z crops, S x S pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from rlabel.regiongpt.pixels import PLAIN, View
from rlabel.training.recipe import Augment


def draw_view(augment: Augment, random: Generator) -> View:
    """Return how the window of one region is laid."""
    mirrored = bool(random.random() < augment.mirror)
    if random.random() >= augment.geometry:
        return replace(PLAIN, mirrored=mirrored)
    return View(
        angle_deg=float(random.uniform(-25, 25)),
        mirrored=mirrored,
        scale=float(random.uniform(0.8, 1.3)),
        shift_x=float(random.uniform(-0.08, 0.08)),
        shift_y=float(random.uniform(-0.08, 0.08)),
        stretch=float(math.exp(random.uniform(-0.15, 0.15))),
    )


def change_pixels(crops_Z4SS: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Return changed crops, uint8 (Z, 4, S, S): colours and mask."""
    rgb = crops_Z4SS[:, :3].float() / 255.0
    mask = crops_Z4SS[:, 3:].float() / 255.0
    count, size = len(rgb), rgb.shape[-1]

    def chosen(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).nonzero()[:, 0]

    def uniform(rows: Tensor, low: float, high: float) -> Tensor:
        return (torch.rand(len(rows), generator=generator) * (high - low) + low)[:, None, None, None]

    if len(rows := chosen(augment.outline)):
        rgb[rows] = _outlines(rgb[rows])
    if len(rows := chosen(augment.colour)):
        changed = _turn_hue(rgb[rows], uniform(rows, -math.pi / 3, math.pi / 3)[:, 0, 0, 0])
        grey = changed.mean(1, keepdim=True)
        changed = grey + (changed - grey) * uniform(rows, 0.3, 1.7)
        level = changed.mean((1, 2, 3), keepdim=True)
        rgb[rows] = (level + (changed - level) * uniform(rows, 0.6, 1.5)) * uniform(rows, 0.65, 1.4)
    if len(rows := chosen(augment.grey)):
        rgb[rows] = rgb[rows].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for factor in (2, 4):
        if len(rows := chosen(augment.blur / 2)):
            rgb[rows] = F.interpolate(F.avg_pool2d(rgb[rows], factor), size=size, mode="bilinear", align_corners=False)
    if len(rows := chosen(augment.cutout)):
        hidden = _rectangles(len(rows), size, generator)
        mask[rows] = mask[rows].masked_fill(hidden, 0.0)
        rgb[rows] = torch.where(hidden, uniform(rows, 0.0, 1.0), rgb[rows])
    return torch.cat([rgb.clamp(0, 1), mask], 1).mul(255).round().to(torch.uint8)


def _turn_hue(rgb_Z3SS: Tensor, angle_Z: Tensor) -> Tensor:
    """Turn colours around the grey axis (Rodrigues' rotation about (1, 1, 1))."""
    cos, sin = angle_Z.cos(), angle_Z.sin()
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    a, b, c = cos + third, third - root, third + root
    matrix_Z33 = torch.stack([a, b, c, c, a, b, b, c, a], 1).view(-1, 3, 3)
    return torch.einsum("zij,zjhw->zihw", matrix_Z33, rgb_Z3SS)


def _outlines(rgb_Z3SS: Tensor) -> Tensor:
    """Dark edges on a light, faintly coloured ground."""
    grey = F.avg_pool2d(rgb_Z3SS.mean(1, keepdim=True), 3, 1, 1)
    dx = F.pad(grey[..., :, 1:] - grey[..., :, :-1], (0, 1))
    dy = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1))
    edges = (F.max_pool2d((dx.abs() + dy.abs()) * 6.0, 3, 1, 1)).clamp(0, 1)
    flat = 0.55 + 0.45 * F.avg_pool2d(rgb_Z3SS, 7, 1, 3)
    return flat * (1 - edges)


def _rectangles(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Bool (Z, 1, S, S): one rectangle a crop, with sides of 15 to 45 % of the crop's."""
    middle = torch.rand(count, 2, 1, generator=generator)
    half = torch.rand(count, 2, 1, generator=generator) * 0.15 + 0.075
    place = (torch.arange(size) + 0.5) / size
    within = (place - middle).abs() < half
    return (within[:, 0, :, None] & within[:, 1, None, :])[:, None]
