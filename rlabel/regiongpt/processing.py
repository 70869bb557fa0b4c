"""What the model eats: pixels and masks to tensors, questions to tokens. One piece of code for training and labeling.

Legend: R regions of one image, Z of them zoomed, S x S pixels, G x G cells of the refined feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from rlabel.corpus.masks import RegionMask
from rlabel.corpus.picture import LargePicture, Sight, is_large
from rlabel.errors import InputError
from rlabel.prompts.templates import IMAGE, REGION, Turn, question_text
from rlabel.regiongpt.pixels import PLAIN, View, resize_square, zoom_crop

ZoomWhich = Literal["off", "all", "small"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionInputs:
    """One image and its regions, ready for the model (not yet on its device).

    pixels_3SS: float32, normalised. region_masks_RGG: float32 in [0, 1]. zoom_crops_Z4SS: uint8, colours and mask, or None without zoom.
    zoom_region_index_Z: int64, the region each crop shows.
    """

    pixels_3SS: Tensor
    region_masks_RGG: Tensor
    zoom_crops_Z4SS: Tensor | None
    zoom_region_index_Z: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """A question as token ids, cut where regions begin to differ: prefix (image included) and suffix (from the first `<region>` on)."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    text: str


class RegionGPTImageProcessor(BaseImageProcessor):
    """Turns an upright picture and the masks of its regions into model inputs.

    image_size_px: side the whole picture is squeezed to. mask_side: G, the side of the model's refined feature map.
    zoom: which regions get a zoomed crop: none, all, or those whose longer side is below zoom_below_px once the picture is squeezed.
    zoom_context: margin around the box, share of its longer side; zoom_more_contexts: margins of further crops.
    zoom_keep: how much of what lies outside the mask stays visible, 0 to 1.
    """

    model_input_names = ["pixel_values", "region_masks"]

    def __init__(
        self,
        image_size_px: int = 224,
        mask_side: int = 56,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        zoom: ZoomWhich = "off",
        zoom_size_px: int = 128,
        zoom_below_px: float = 64.0,
        zoom_context: float = 0.1,
        zoom_keep: float = 0.2,
        zoom_more_contexts: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size_px = image_size_px
        self.mask_side = mask_side
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.zoom = zoom
        self.zoom_size_px = zoom_size_px
        self.zoom_below_px = zoom_below_px
        self.zoom_context = zoom_context
        self.zoom_keep = zoom_keep
        self.zoom_more_contexts = list(zoom_more_contexts)

    @property
    def sight(self) -> Sight:
        """What is seen of a picture, for those who open it."""
        return Sight(whole_px=self.image_size_px, details=self.zoom != "off")

    def prepare(
        self,
        picture: NDArray[np.uint8] | LargePicture,
        regions: Sequence[RegionMask],
        views: Sequence[View] | None = None,
    ) -> RegionInputs:
        """Return the inputs of one image; masks of the regions have its height and width.

        picture: uint8 (H, W, 3), RGB, upright, or a large one. Raises BadImage where a large one can no longer be decoded.
        """
        if not isinstance(picture, LargePicture) and is_large(*picture.shape[:2]):
            picture = LargePicture.of_pixels(picture)
        if isinstance(picture, LargePicture):
            height_px, width_px, pixels_SSC = picture.height_px, picture.width_px, picture.see(self.sight)
        else:
            (height_px, width_px), pixels_SSC = picture.shape[:2], resize_square(picture, self.image_size_px)
        side = self.mask_side
        masks_RGG = np.empty((len(regions), side, side), np.float32)
        for i, region in enumerate(regions):
            masks_RGG[i] = region.resample(side, side)
        index = [i for i, region in enumerate(regions) if self._is_zoomed(height_px, width_px, region)]
        contexts = (self.zoom_context, *self.zoom_more_contexts)
        crops_ZSS4 = np.empty((len(index) * len(contexts), self.zoom_size_px, self.zoom_size_px, 4), np.uint8)
        for i in range(len(crops_ZSS4)):
            number = index[i // len(contexts)]
            view, context = PLAIN if views is None else views[number], contexts[i % len(contexts)]
            crops_ZSS4[i] = zoom_crop(picture, regions[number], self.zoom_size_px, context, view)
        return RegionInputs(
            pixels_3SS=self.normalise(torch.from_numpy(pixels_SSC.copy()).permute(2, 0, 1)),
            region_masks_RGG=torch.from_numpy(masks_RGG),
            zoom_crops_Z4SS=torch.from_numpy(crops_ZSS4).permute(0, 3, 1, 2) if index else None,
            zoom_region_index_Z=torch.tensor(index).repeat_interleave(len(contexts)) if index else None,
        )

    def _is_zoomed(self, height_px: int, width_px: int, region: RegionMask) -> bool:
        if self.zoom != "small":
            return self.zoom == "all"
        scale_y, scale_x = self.image_size_px / height_px, self.image_size_px / width_px
        return max(region.box_xywh[2] * scale_x, region.box_xywh[3] * scale_y) < self.zoom_below_px

    def normalise(self, pixels_3SS: Tensor) -> Tensor:
        """Return float32 pixels with the tower's mean and deviation, from (..., 3, S, S) in 0 to 255, on the device they are on."""
        mean = torch.tensor(self.image_mean, dtype=torch.float32, device=pixels_3SS.device)[:, None, None] * 255.0
        std = torch.tensor(self.image_std, dtype=torch.float32, device=pixels_3SS.device)[:, None, None] * 255.0
        return (pixels_3SS.float() - mean) / std

    def denormalise(self, pixels_3SS: Tensor) -> Tensor:
        """Return uint8 pixels (..., 3, S, S) of normalised ones: the way back of `normalise`."""
        mean = torch.tensor(self.image_mean, dtype=torch.float32, device=pixels_3SS.device)[:, None, None] * 255.0
        std = torch.tensor(self.image_std, dtype=torch.float32, device=pixels_3SS.device)[:, None, None] * 255.0
        return (pixels_3SS * std + mean).round().clamp(0, 255).to(torch.uint8)

    def finish_zoom(self, crops_Z4SS: Tensor, keep: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (zoom_pixels_Z3SS normalised with the outside of the mask faded, zoom_masks_ZSS in [0, 1]) of uint8 crops."""
        masks_Z1SS = crops_Z4SS[:, 3:].float() / 255.0
        return self.normalise(crops_Z4SS[:, :3]) * self.fade(
            masks_Z1SS, self.zoom_keep if keep is None else keep
        ), masks_Z1SS[:, 0]

    @staticmethod
    def fade(masks: Tensor, keep: float | Tensor) -> Tensor:
        """Return what normalised pixels are multiplied by: 1 inside the mask, `keep` outside (0 is the mean colour)."""
        return keep + (1.0 - keep) * masks


class RegionGPTProcessor(ProcessorMixin):
    """The image processor and the tokenizer of one model, with the prompt builder that training and labeling share."""

    attributes = ["image_processor", "tokenizer"]

    def __init__(
        self,
        image_processor: RegionGPTImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_image_tokens: int = 49,
        tokens_per_region: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)
        self.image_processor: RegionGPTImageProcessor
        self.tokenizer: PreTrainedTokenizerBase
        self.num_image_tokens = num_image_tokens
        self.tokens_per_region = tokens_per_region

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        # transformers looks class names up among its own modules; ours is registered, not part of them.
        return type(argument)

    @property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))  # type: ignore[arg-type]

    @property
    def region_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(REGION))  # type: ignore[arg-type]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the end tokens and every token with a line break (small models run on after the answer)."""
        ends = {self.tokenizer.eos_token_id}
        ends |= {
            i for token in ("<|im_end|>", "<|eot_id|>") if (i := self.tokenizer.get_vocab().get(token)) is not None
        }
        pieces = self.tokenizer.get_vocab()
        # Byte-level tokenizers write the line feed as U+010A; others keep it, or write the byte.
        ends |= {i for piece, i in pieces.items() if "\u010a" in piece or "\n" in piece or piece == "<0x0A>"}
        return tuple(sorted(i for i in ends if i is not None))

    def prompt(self, question: str) -> PromptTokens:
        """Return the tokens of a question about regions, up to where the answer begins.

        Raises InputError when the question has no `<region>`.
        """
        if REGION not in question:
            raise InputError(
                f"question {question!r}: expected at least one {REGION}, the place of the region's tokens, got none. Add it."
            )
        if IMAGE in question:
            raise InputError(
                f"question {question!r}: expected no {IMAGE}, since the image is put before every question, got one. Leave it out."
            )
        text = self._chat_text([Turn(question=question)])
        ids = self._ids_of(text)
        cut = ids.index(self.region_token_id)
        return PromptTokens(prefix_ids=tuple(ids[:cut]), suffix_ids=tuple(ids[cut:]), text=text)

    def conversation_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a conversation up to where the answer to its last turn begins; the picture stands in the first one."""
        return self._ids_of(self._chat_text(turns))

    def turn_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens between the answer to the last turn but one and the last turn's answer.

        Raises InputError where the chat template rewrites what was said before: such a model is trained on one turn a conversation.
        """
        now = self._chat_text([*turns[:-1], turns[-1].unanswered()])
        if len(turns) == 1:
            return self._ids_of(now)
        before = self._chat_text([*turns[:-2], turns[-2].unanswered()]) + str(turns[-2].answer)
        if not now.startswith(before):
            raise InputError(
                "chat template: expected that a conversation goes on behind its last answer, got one that rewrites it. "
                "Train this model with conversation: separate."
            )
        return self._ids_of(now.removeprefix(before))

    def _chat_text(self, turns: Sequence[Turn]) -> str:
        """Return the turns as the model's chat template lays them, or one a line where it has none."""
        users = [question_text(turn.question) if i == 0 else turn.question for i, turn in enumerate(turns)]
        if getattr(self.tokenizer, "chat_template", None):
            messages: list[dict[str, str]] = []
            for turn, user in zip(turns, users, strict=True):
                messages.append({"role": "user", "content": user})
                if turn.answer is not None:
                    messages.append({"role": "assistant", "content": turn.answer})
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        text = self.tokenizer.bos_token or ""
        for turn, user in zip(turns, users, strict=True):
            text += f"{user}\n" + ("" if turn.answer is None else f"{turn.answer}{self.tokenizer.eos_token}")
        return str(text)

    def _ids_of(self, text: str) -> list[int]:
        expanded = text.replace(IMAGE, IMAGE * self.num_image_tokens).replace(REGION, REGION * self.tokens_per_region)
        return list(self.tokenizer(expanded, add_special_tokens=False).input_ids)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer as the model is trained to give it, closed by the end token.

        An answer is a name from a file: a special token's text in it ("<region>", "</s>") stays plain text.
        """
        ids = self.tokenizer(answer, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*ids, self.tokenizer.eos_token_id]

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the stripped text of generated ids up to the first stop token (not included)."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
