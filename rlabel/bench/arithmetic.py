"""Floating-point operations: what an answer needs by the model's shapes, and what the machine does in plain matrix products.

A product and its sum are two operations. What is counted is the least that one image, computed once, and its regions need: linear layers
2 x weights x tokens; attention 4 x heads x head width x positions looked at, a layer and token; the head 2 x width x vocabulary a token that is chosen.
Of a prefix the last layer gives keys and values only, and behind it that layer is finished for the tokens alone behind which one is chosen.
Norms, rotations and activations are left out, so a share of the peak is a little too low, never too high.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    """What the operations of a language model follow from. linear_weights: of all layers, without embeddings and head; attention_width: heads x head width.

    last_query_weights, last_rest_weights: of the last layer, what makes its queries, and what comes behind its attention; 0 where they are not told apart.
    """

    linear_weights: int
    num_layers: int
    attention_width: int
    head_weights: int
    last_query_weights: int = 0
    last_rest_weights: int = 0


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
    queries = rest = 0
    last = list(getattr(model.language_model.base_model, "layers", []))[-1:]
    for name, module in last[0].named_modules() if last else ():
        if isinstance(module, nn.Linear) and hasattr(last[0], "self_attn"):
            kind = name.rsplit(".", 1)[-1]
            queries += module.weight.numel() if kind == "q_proj" else 0
            rest += module.weight.numel() if kind in ("o_proj", "gate_proj", "up_proj", "down_proj") else 0
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LanguageShape(
        linear_weights=linear,
        num_layers=config.num_hidden_layers,
        attention_width=heads * head_width,
        head_weights=head.in_features * head.out_features,
        last_query_weights=queries,
        last_rest_weights=rest,
    )


def tokens_flop(shape: LanguageShape, start: int, count: int) -> float:
    """Return the operations of `count` tokens of one sequence that stand from position `start` on, each looking at all before it and itself; without head."""
    looked_at = count * start + count * (count + 1) / 2
    return 2.0 * shape.linear_weights * count + 4.0 * shape.num_layers * shape.attention_width * looked_at


def prefill_flop(shape: LanguageShape, prefix: int, suffix: int, num_images: int, num_regions: int) -> float:
    """Return the operations up to the first token of each region's answer. prefix, suffix: tokens of the prompt, an image and a region."""
    image = tokens_flop(shape, 0, prefix)
    if shape.last_query_weights:
        unasked = 4.0 * shape.attention_width * prefix * (prefix + 1) / 2
        image -= 2.0 * (shape.last_query_weights + shape.last_rest_weights) * prefix + unasked
    region = (
        tokens_flop(shape, prefix, suffix) - 2.0 * shape.last_rest_weights * (suffix - 1) + 2.0 * shape.head_weights
    )
    return num_images * image + num_regions * region


def needed(
    engine: Engine, inputs: Sequence[RegionInputs], num_answer_tokens: Sequence[int], shape: LanguageShape
) -> Work:
    """Return what some images need. num_answer_tokens: of every region's answer, end token included; each is chosen by the head once, and all
    but the last go through the model."""
    prefix, suffix = len(engine.prompt.prefix_ids), len(engine.prompt.suffix_ids)
    num_regions = len(num_answer_tokens)
    head = 2.0 * shape.head_weights
    prefill = prefill_flop(shape, prefix, suffix, len(inputs), num_regions)
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
    dtype: torch.dtype,
    device: torch.device,
    seconds: float = 1.0,
    sides: Sequence[int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the most operations a second that square matrix products reach here, by the torch threads that are set: the best of several sizes.

    clock: seconds; of the process where other processes are not to count.
    """
    sides = sides or ((1024, 2048, 3072) if device.type == "cpu" else (4096, 8192, 16384))
    best = 0.0
    for side in sides:
        a = torch.randn(side, side, dtype=dtype, device=device)
        b = torch.randn(side, side, dtype=dtype, device=device)
        out = torch.empty(side, side, dtype=dtype, device=device)
        end = time.perf_counter() + seconds / len(sides)
        while True:
            synchronize(device)
            started = clock()
            torch.mm(a, b, out=out)
            synchronize(device)
            best = max(best, 2.0 * side**3 / (clock() - started))
            if time.perf_counter() > end:
                break
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
