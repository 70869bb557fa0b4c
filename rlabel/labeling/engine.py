"""The decoding engine: one image encoded once, its prompt prefix computed once, all its regions answered in one batch.

Greedy and exact: in float32 it gives the texts that transformers' own `generate` gives for one region at a time.
What it leaves out: decoding inside a vocabulary, continuous batching, packing.

Legend: B images, R regions of all of them, Z zoomed crops, P prefix tokens, S suffix tokens, D width, V vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import PromptTokens, RegionGPTProcessor, RegionInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """question: asked of every region. max_new_tokens: end token included. share_prefix: False computes the prefix anew for each region (to compare)."""

    question: str = CLASSIFY[0]
    max_new_tokens: int = 24
    share_prefix: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """text: stripped, up to the stop token. token_logprobs: natural logarithms, stop token included."""

    text: str
    token_logprobs: tuple[float, ...]


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
        zoom_pixels, zoom_masks = processor.image_processor.finish_zoom(torch.cat(crops).to(device), keep)
    return DeviceBatch(
        pixels_B3SS=torch.stack([item.pixels_3SS for item in inputs]).to(device),
        region_masks_RGG=torch.cat([item.region_masks_RGG for item in inputs]).to(device),
        region_image_index_R=torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor(counts)).to(device),
        zoom_pixels_Z3SS=zoom_pixels,
        zoom_masks_ZSS=zoom_masks,
        zoom_region_index_Z=torch.cat(index).to(device) if index else None,
    )


class Engine:
    """Answers regions with one model. Holds no state between calls but the model and the prompt's tokens."""

    def __init__(
        self, model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, options: EngineOptions
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.options = options
        self.prompt: PromptTokens = processor.prompt(options.question)
        # Kept: the processor reads its whole vocabulary to find them.
        self._stops = frozenset(processor.stop_ids)
        self._stop_ids = torch.tensor(sorted(self._stops), device=self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.vision_tower.parameters()).device

    @torch.inference_mode()
    def answer(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        """Return the answers of each image's regions, in their order. Images without regions give an empty list."""
        counts = [len(item.region_masks_RGG) for item in inputs]
        if not sum(counts):
            return [[] for _ in counts]
        batch = to_device_batch(inputs, self.processor, self.device)
        maps_BCGG, image_tokens_BTD = self.model.encode_images(batch.pixels_B3SS)
        regions_RKD = self.model.encode_regions(
            maps_BCGG,
            batch.region_masks_RGG,
            batch.region_image_index_R,
            batch.zoom_pixels_Z3SS,
            batch.zoom_masks_ZSS,
            batch.zoom_region_index_Z,
        )
        decoded = self._decode(image_tokens_BTD, regions_RKD, batch.region_image_index_R)
        answers: list[list[Decoded]] = []
        for count in counts:
            answers.append(decoded[:count])
            decoded = decoded[count:]
        return answers

    def _decode(self, image_tokens_BTD: Tensor, regions_RKD: Tensor, image_index_R: Tensor) -> list[Decoded]:
        num_images, num_regions = image_tokens_BTD.shape[0], regions_RKD.shape[0]
        cache = DynamicCache(config=self.model.config.text_config)
        prefix_ids = torch.tensor([self.prompt.prefix_ids], device=self.device)
        if self.options.share_prefix:
            prefix_BPD = self.model.embed_prompt(prefix_ids.expand(num_images, -1), image_tokens_BTD, None)
        else:
            prefix_BPD = self.model.embed_prompt(
                prefix_ids.expand(num_regions, -1), image_tokens_BTD[image_index_R], None
            )
        self._forward(prefix_BPD, cache, 0)
        if self.options.share_prefix:
            cache.batch_select_indices(image_index_R)
        suffix_ids = torch.tensor([self.prompt.suffix_ids], device=self.device).expand(num_regions, -1)
        step_RSD = self.model.embed_prompt(suffix_ids, None, regions_RKD)
        position = len(self.prompt.prefix_ids)
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        done_R = torch.zeros(num_regions, dtype=torch.bool, device=self.device)
        embed = self.model.get_input_embeddings()
        for _ in range(self.options.max_new_tokens):
            logits_RV = self._forward(step_RSD, cache, position)
            position += step_RSD.shape[1]
            # Picked from the raw logits, as generate does: a log-softmax may round two of them together.
            token_R = logits_RV.argmax(-1)
            logprob_R = logits_RV.float().log_softmax(-1).gather(1, token_R[:, None])[:, 0]
            tokens.append(token_R.masked_fill(done_R, -1))
            logprobs.append(logprob_R)
            done_R = done_R | torch.isin(token_R, self._stop_ids)
            if bool(done_R.all()):
                break
            step_RSD = embed(token_R[:, None])
        return self._texts(torch.stack(tokens, 1).cpu(), torch.stack(logprobs, 1).cpu())

    def _forward(self, embeddings_RSD: Tensor, cache: Any, position: int) -> Tensor:
        """Return logits_RV of the last position; the cache grows by the given tokens, which stand from `position` on."""
        position_ids_1S = torch.arange(position, position + embeddings_RSD.shape[1], device=self.device)[None]
        output = self.model.language_model(
            inputs_embeds=embeddings_RSD,
            past_key_values=cache,
            position_ids=position_ids_1S,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _texts(self, tokens_RT: Tensor, logprobs_RT: Tensor) -> list[Decoded]:
        decoded = []
        for ids, values in zip(tokens_RT.tolist(), logprobs_RT.tolist(), strict=True):
            num_tokens = ids.index(-1) if -1 in ids else len(ids)
            text_ids = [token for token in ids[:num_tokens] if token not in self._stops]
            decoded.append(
                Decoded(text=self.processor.decode_answer(text_ids), token_logprobs=tuple(values[:num_tokens]))
            )
        return decoded
