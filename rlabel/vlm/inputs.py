"""What a plain model eats: each region's prompt as tokens, each picture as its own processor makes it, looked at once however many regions it has.

Legend: S tokens of a prompt.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask, rasterise
from rlabel.corpus.picture import LargePicture
from rlabel.errors import InputError
from rlabel.vlm.families import Family, PlainModel, named, prompt_text
from rlabel.vlm.showing import MARKS_AT_ONCE, Whole, box_of, box_text, crop, outlined, whole_picture

# The user's turn where a model has no chat template: LLaVA-1.5's.
_PLAIN_CHAT = "USER: {image}\n{text} ASSISTANT:"
# Texts that no template holds, to see what it puts around a question and an answer.
_PROBE, _ANSWER = "rlabel asks", "rlabel-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One picture as the model sees it, and the prompts of the regions that are asked about on it.

    picture: tensors that belong to the picture (pixel_values, image_grid_thw, ...). rows: for each region, tensors (1, S, ...) that belong to its
    prompt (input_ids, attention_mask, ...).
    """

    picture: dict[str, Tensor]
    rows: tuple[dict[str, Tensor], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainInputs:
    """Some regions of one image, in order, on one or several looks at it."""

    looks: tuple[Look, ...]

    @property
    def num_regions(self) -> int:
        return sum(len(look.rows) for look in self.looks)


def _user_turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


class PlainProcessor:
    """Shows regions to one model. May be called from several threads."""

    def __init__(self, processor: Any, plain: PlainModel) -> None:
        self.processor = processor
        self.plain = plain
        self.family: Family = named(plain.family)
        # Fast tokenizers are not to be used by two threads at once.
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def prepare(self, picture: NDArray[np.uint8] | LargePicture, masks: Sequence[RegionMask]) -> PlainInputs:
        """Return the inputs of some regions of one image.

        picture: uint8 (H, W, 3), RGB, upright, or a large one; masks of its height and width. Raises what the processor and decoding raise.
        """
        plain = self.plain
        if plain.region_as == "crop":
            looks = [
                self._look(crop(picture, mask, plain.crop_px, plain.crop_context), [prompt_text(plain)])
                for mask in masks
            ]
            return PlainInputs(looks=tuple(looks))
        whole = whole_picture(picture, plain.picture_px, square=self.family.square)
        if plain.region_as == "outline":
            looks = [self._look(outlined(whole, [mask], numbered=False), [prompt_text(plain)]) for mask in masks]
        elif plain.region_as == "marks":
            parts = [masks[start : start + MARKS_AT_ONCE] for start in range(0, len(masks), MARKS_AT_ONCE)]
            looks = [
                self._look(
                    outlined(whole, part, numbered=True),
                    [prompt_text(plain, number=number) for number in range(1, len(part) + 1)],
                )
                for part in parts
            ]
        else:
            looks = [self._boxes(whole, masks)] if masks else []
        return PlainInputs(looks=tuple(looks))

    def _boxes(self, whole: Whole, masks: Sequence[RegionMask]) -> Look:
        family, resized = self.family, None
        if family.coordinates == "pixels":
            resized = self.resized_px(whole.image)
        assert family.coordinates is not None
        texts = [box_text(family.box, family.coordinates, box_of(mask), whole.seen_px, resized) for mask in masks]
        return self._look(whole.image, [prompt_text(self.plain, box=text) for text in texts])

    def resized_px(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height that the model's image processor resizes a picture to (Qwen: whole patches). Raises InputError where it does not say."""
        processor = self.processor.image_processor
        with self._lock:
            made = processor(images=[image], return_tensors="pt")
        if "image_grid_thw" not in made:
            raise InputError(
                f"--family {self.family.name}: its boxes are in pixels of the resized picture, and this model's processor does not say to what size "
                "that was. Use --region-as crop, or name another family."
            )
        _, high, wide = made["image_grid_thw"][0].tolist()
        return wide * processor.patch_size, high * processor.patch_size

    def chat(self, text: str) -> str:
        """Return the whole prompt of a question about one picture, up to where the answer begins."""
        if not self.plain.chats:
            return text if self.family.name in _WITHOUT_IMAGE_TOKEN else f"{self.processor.image_token}{text}"
        if self._template:
            return self._rendered([_user_turn(text)], opened=True)
        token = getattr(self.processor, "image_token", None) or "<image>"
        return _PLAIN_CHAT.replace("{image}", str(token)).replace("{text}", text)

    def around_answer(self) -> tuple[str, str, str]:
        """Return what stands right before an answer's place in a prompt, what an answer begins with there, and what closes it; "" where nobody knows.

        By the chat template: it writes an assistant's turn as the model was trained to give it.
        """
        before = self.chat(_PROBE)[-1:]
        if not self.plain.chats:
            return before, self.family.lead, ""
        if not self._template:
            return before, " ", ""
        opened = self._rendered([_user_turn(_PROBE)], opened=True)
        for content in ([{"type": "text", "text": _ANSWER}], _ANSWER):
            turns = [_user_turn(_PROBE), {"role": "assistant", "content": content}]
            try:
                whole = self._rendered(turns, opened=False)
            except Exception:  # whatever a template makes of a turn that it does not know
                continue
            lead, found, behind = whole.removeprefix(opened).partition(_ANSWER)
            if whole.startswith(opened) and found:
                return before, lead, behind
        return before, "", ""

    @property
    def _template(self) -> str | None:
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def _rendered(self, turns: list[dict[str, Any]], *, opened: bool) -> str:
        """Return turns as the chat template writes them; opened: up to where the answer begins."""
        # By the tokenizer: some processors ask for what they need for films.
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=self._template, add_generation_prompt=opened, tokenize=False
        )
        return str(text)

    def trial(self) -> PlainInputs:
        """Return the inputs of one region of a small grey picture. Raises what `prepare` raises."""
        mask = rasterise(None, (8.0, 8.0, 32.0, 32.0), 64, 64, Limits())
        return self.prepare(np.full((64, 64, 3), 127, np.uint8), [mask])

    def _look(self, image: Image.Image, prompts: Sequence[str]) -> Look:
        """Return a picture with some prompts: each gets exactly the tokens that the processor gives it with the picture."""
        with self._lock:
            own = copy.copy(self.processor)
            own.image_processor = _Once(self.processor.image_processor)
            found = [dict(own(images=[image], text=[self.chat(prompt)], return_tensors="pt")) for prompt in prompts]
        length = found[0]["input_ids"].shape[1]
        of_prompt = {
            name
            for name, value in found[0].items()
            if isinstance(value, Tensor) and value.shape[:2] == (1, length) and not value.is_floating_point()
        }
        return Look(
            picture={name: value for name, value in found[0].items() if name not in of_prompt},
            rows=tuple({name: row[name] for name in sorted(of_prompt)} for row in found),
        )


def open_processor(folder: Path, plain: PlainModel, *, trust_remote_code: bool = False) -> PlainProcessor:
    """Return what shows regions to the model of a folder, tried on a small picture.

    Raises InputError when its files are missing or damaged, or its chat template takes no picture in a user's turn.
    """
    from rlabel.vlm.loading import first_line, load_processor

    made = PlainProcessor(load_processor(folder, trust_remote_code=trust_remote_code), plain)
    try:
        made.trial()
    except InputError:
        raise
    except Exception as error:  # whatever a template or a processor makes of a question
        raise InputError(
            f"--model {folder}: its processor cannot take a question about one picture: {type(error).__name__}: {first_line(error)}. "
            "Check its chat template, or download it again."
        ) from error
    return made


# These put the picture's tokens first themselves.
_WITHOUT_IMAGE_TOKEN = ("florence2", "kosmos2")


class _Once:
    """Stands for an image processor that is called again and again with one picture, and looks at it once."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._seen: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._seen is None:
            self._seen = self._processor(*args, **kwargs)
        return copy.copy(self._seen)  # processors take out of it what the model does not need

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def to_device(tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the tensors on a device, those of real numbers in the model's dtype; what is no tensor stays."""
    return {
        name: (value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value)
        for name, value in tensors.items()
    }
