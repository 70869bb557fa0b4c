"""Floating-point operations: what an answer needs by the model's shapes, and what the machine does in plain matrix products.

A product and its sum are two operations. What is counted is the least that one image, computed once, and its regions need: linear layers
2 x weights x tokens; attention 4 x heads x head width x positions looked at, a layer and token; the head 2 x width x vocabulary a token that is chosen.
Norms, rotations and activations are left out, so a share of the peak is a little too low, never too high.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlabel.labeling.engine import Engine
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations that a corpus needs. tower: with refinement, pooling and connectors."""

    tower: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.tower + self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageShape:
    """What the operations of a language model follow from. linear_weights: of all layers, without embeddings and head; attention_width: heads x head width."""

    linear_weights: int
    num_layers: int
    attention_width: int
    head_weights: int


def language_shape(model: RegionGPTForConditionalGeneration) -> LanguageShape:
    """Return the shape of a RegionGPT's language model."""
    config = model.config.text_config
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    linear = sum(
        module.in_features * module.out_features
        for module in model.language_model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LanguageShape(
        linear_weights=linear,
        num_layers=config.num_hidden_layers,
        attention_width=heads * head_width,
        head_weights=head.in_features * head.out_features,
    )


def tokens_flop(shape: LanguageShape, start: int, count: int) -> float:
    """Return the operations of `count` tokens of one sequence that stand from position `start` on, each looking at all before it and itself; without head."""
    looked_at = count * start + count * (count + 1) / 2
    return 2.0 * shape.linear_weights * count + 4.0 * shape.num_layers * shape.attention_width * looked_at


def needed(
    engine: Engine, inputs: Sequence[RegionInputs], num_answer_tokens: Sequence[int], shape: LanguageShape
) -> Work:
    """Return what some images need. num_answer_tokens: of every region's answer, end token included; each is chosen by the head once, and all
    but the last go through the model."""
    prefix, suffix = len(engine.prompt.prefix_ids), len(engine.prompt.suffix_ids)
    num_regions = len(num_answer_tokens)
    head = 2.0 * shape.head_weights
    prefill = len(inputs) * tokens_flop(shape, 0, prefix) + num_regions * (tokens_flop(shape, prefix, suffix) + head)
    decode = sum(
        tokens_flop(shape, prefix + suffix, count - 1) + head * (count - 1) for count in num_answer_tokens if count
    )
    tower: dict[tuple[int, int], float] = {}  # by the numbers of regions and crops, on which alone it depends
    sizes = [_num_regions_and_crops(item) for item in inputs]
    for size, item in zip(sizes, inputs, strict=True):
        if size not in tower:
            tower[size] = _tower_flop(engine, item)
    return Work(tower=sum(tower[size] for size in sizes), prefill=prefill, decode=decode)


def _num_regions_and_crops(item: RegionInputs) -> tuple[int, int]:
    return len(item.region_masks_RGG), 0 if item.zoom_crops_Z4SS is None else len(item.zoom_crops_Z4SS)


@torch.inference_mode()
def _tower_flop(engine: Engine, item: RegionInputs) -> float:
    """Return the operations of an image and its regions before the language model, counted by torch while they run."""
    with FlopCounterMode(display=False) as counter:
        engine.encode([item])
    return float(counter.get_total_flops())


def matrix_peak(
    dtype: torch.dtype, device: torch.device, seconds: float = 1.0, sides: Sequence[int] | None = None
) -> float:
    """Return the most operations a second that square matrix products reach here, by the torch threads that are set: the best of several sizes."""
    sides = sides or ((1024, 2048, 3072) if device.type == "cpu" else (4096, 8192, 16384))
    best = 0.0
    for side in sides:
        a = torch.randn(side, side, dtype=dtype, device=device)
        b = torch.randn(side, side, dtype=dtype, device=device)
        out = torch.empty(side, side, dtype=dtype, device=device)
        end = time.perf_counter() + seconds / len(sides)
        while True:
            synchronize(device)
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            synchronize(device)
            now = time.perf_counter()
            best = max(best, 2.0 * side**3 / (now - started))
            if now > end:
                break
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
