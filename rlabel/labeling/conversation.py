"""A conversation about one picture and its regions: free questions, turn after turn, with one cache that only grows.

Legend: R regions, K tokens a region, T image tokens, S tokens of a step, D width, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging

from rlabel.corpus.masks import RegionMask
from rlabel.errors import InputError
from rlabel.labeling.engine import Decoded, to_device_batch
from rlabel.prompts.questions import parse_question, without_marks
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.assembly import load_processor
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.regiongpt.quantization import Precision, load_model


class Conversation:
    """Answers questions about one picture, greedily. The picture and its regions are encoded once, and no token is computed twice.

    Where a model's chat template rewrites what was said before, the cache is cut back to the part that still holds.
    """

    def __init__(
        self,
        model: RegionGPTForConditionalGeneration,
        processor: RegionGPTProcessor,
        inputs: RegionInputs,
        max_new_tokens: int = 64,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self._begin()
        self._stops = frozenset(processor.stop_ids)
        device = next(model.vision_tower.parameters()).device
        batch = to_device_batch([inputs], processor, device)
        with torch.inference_mode():
            maps_BCGG, self._image_1TD = model.encode_images(batch.pixels_B3SS)
            self._regions_RKD = model.encode_regions(
                maps_BCGG,
                batch.region_masks_RGG,
                batch.region_image_index_R,
                batch.zoom_pixels_Z3SS,
                batch.zoom_masks_ZSS,
                batch.zoom_region_index_Z,
            )

    def _begin(self) -> None:
        self.turns: list[Turn] = []
        self.num_computed = 0
        self._ids: list[int] = []
        self._picked: list[int] = []
        self._cache = DynamicCache(config=self.model.config.text_config)

    def fresh(self) -> Conversation:
        """Return a new conversation about the same picture and regions, which are not encoded again."""
        new = copy.copy(self)
        new._begin()
        return new

    @torch.inference_mode()
    def ask(self, text: str) -> Decoded:
        """Return the answer to a question in which `<region1>`, ... name the regions.

        Raises InputError for a region that is not there, and when the conversation no longer fits the language model; nothing is added to it then.
        """
        question = parse_question(text, len(self._regions_RKD))
        turns = [*self.turns, Turn(question=question.text, mentions=question.mentions)]
        ids = self._asked(turns)
        self._check_length(len(ids))
        kept = _common(self._ids, ids[:-1])
        # An image or region is put in whole or not at all.
        special = (self.processor.image_token_id, self.processor.region_token_id)
        while kept and ids[kept] in special and ids[kept - 1] == ids[kept]:
            kept -= 1
        if dropped := len(self._ids) - kept:
            self._cache.crop(-dropped)
        mentions = [index for turn in turns for index in turn.mentions]
        embeddings_1SD = self._embed(ids, kept, mentions)
        new_ids, logprobs = self._decode(embeddings_1SD, kept)
        # The last token was picked, never fed: the end token needs not be, the last of an answer that was cut off does.
        self._ids = [*ids, *new_ids[:-1]]
        self._picked = [] if new_ids[-1] in self._stops else new_ids[-1:]
        text_ids = [token for token in new_ids if token not in self._stops]
        answer = self.processor.decode_answer(text_ids)
        self.turns = [*turns[:-1], turns[-1].answered(without_marks(answer))]
        return Decoded(text=answer, token_logprobs=tuple(logprobs), token_ids=tuple(text_ids))

    def _asked(self, turns: list[Turn]) -> list[int]:
        """Return the tokens of the conversation up to the answer that is wanted: what was said stands as it was said, token for token."""
        try:
            return [*self._ids, *self._picked, *self.processor.turn_ids(turns)]
        except InputError:  # the chat template rewrites what was said
            return self.processor.conversation_ids(turns)

    def _check_length(self, num_tokens: int) -> None:
        longest = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if longest is not None and num_tokens + self.max_new_tokens > longest:
            raise InputError(
                f"conversation: {num_tokens} tokens and {self.max_new_tokens} for the answer are more than the {longest} that this language model takes. "
                "Begin a new one."
            )

    def _embed(self, ids: list[int], kept: int, mentions: list[int]) -> Tensor:
        """Return embeddings_1SD of ids[kept:], with the features of the picture and the mentioned regions that stand there."""
        new = torch.tensor([ids[kept:]], device=self._regions_RKD.device)
        has_image = bool((new == self.processor.image_token_id).any())
        num_before = ids[:kept].count(self.processor.region_token_id) // self.processor.tokens_per_region
        mentioned_RKD = self._regions_RKD[mentions[num_before:]]
        return self.model.embed_prompt(new, self._image_1TD if has_image else None, mentioned_RKD)

    def _decode(self, step_1SD: Tensor, position: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        logprobs: list[float] = []
        embed = self.model.get_input_embeddings()
        while True:
            position_ids_1S = torch.arange(position, position + step_1SD.shape[1], device=step_1SD.device)[None]
            output = self.model.language_model(
                inputs_embeds=step_1SD,
                past_key_values=self._cache,
                position_ids=position_ids_1S,
                use_cache=True,
                logits_to_keep=1,
            )
            self.num_computed += step_1SD.shape[1]
            position += step_1SD.shape[1]
            logits_V = output.logits[0, -1]
            token = int(logits_V.argmax())
            tokens.append(token)
            logprobs.append(float(logits_V.float().log_softmax(-1)[token]))
            if token in self._stops or len(tokens) == self.max_new_tokens:
                return tokens, logprobs
            step_1SD = embed(torch.tensor([[token]], device=step_1SD.device))


def converse(
    model: str, pixels_HWC: NDArray[np.uint8], regions: Sequence[RegionMask], max_new_tokens: int
) -> Conversation:
    """Return a conversation about one upright RGB picture with a model folder, loaded in float32 on the CPU.

    Raises InputError when the model cannot be loaded.
    """
    logging.disable_progress_bar()
    loaded = load_model(model, Precision(dtype="float32"), "cpu")
    processor = load_processor(model)
    return Conversation(loaded, processor, processor.image_processor.prepare(pixels_HWC, regions), max_new_tokens)


def _common(left: list[int], right: list[int]) -> int:
    """Return the length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
