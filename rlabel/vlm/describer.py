"""The Describer of plain models: chooses how a batch of pictures is answered, and turns what was said into answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.budget import is_out_of_memory
from rlabel.labeling.engine import Decoded, without_answer
from rlabel.spans import span
from rlabel.vlm.decoding import (
    Said,
    answers_behind_prefix,
    answers_by_generate,
    answers_together,
    shape_of,
    stop_ids,
)
from rlabel.vlm.inputs import Look, PlainInputs, PlainProcessor

log = logging.getLogger(__name__)

# Places and structure in the answers of families that point as well as speak: <loc_12>, <patch_index_0044>, </phrase>.
_TAGS = re.compile(r"</?[A-Za-z_]+[0-9]*/?>")


class PlainDescriber:
    """Describes regions by a plain vision-language model. The same regions give the same answers whatever they are batched with.

    share: "auto" computes once what the regions of a picture share; "none": each region alone, as a plain script would (to compare).
    max_batch_tokens: of prompts and answers held at once.
    """

    def __init__(
        self,
        model: Any,
        processor: PlainProcessor,
        *,
        max_new_tokens: int = 24,
        max_batch_tokens: int = 16384,
        share: Literal["auto", "none"] = "auto",
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.max_batch_tokens = max_batch_tokens
        self.share = share
        self._stops = stop_ids(model, processor.tokenizer)

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> PlainInputs:
        assert image.picture is not None
        return self.processor.prepare(image.picture, [region.mask for region in regions])

    def describe(self, inputs: Sequence[PlainInputs]) -> list[list[Decoded]]:
        looks = [look for item in inputs for look in item.looks]
        answers: dict[int, list[Decoded]] = {}
        alone: dict[Any, list[int]] = {}
        for i, look in enumerate(looks):
            if len(look.rows) > 1 and self.share == "auto":
                answers[i] = self._of_one_picture(look)
            elif len(look.rows) > 1:
                answers[i] = [self._decoded(said) for row in range(len(look.rows)) for said in self._row(look, row)]
            else:
                # A model whose batches nobody has tried is asked about one picture at a time.
                batches = self.share == "auto" and self.processor.family.batches
                alone.setdefault(shape_of(look) if batches else i, []).append(i)
        for group in alone.values():
            tokens = looks[group[0]].rows[0]["input_ids"].shape[1] + self.max_new_tokens
            size = max(self.max_batch_tokens // tokens, 1)
            for start in range(0, len(group), size):
                part = group[start : start + size]
                said = self._halving(part, lambda own: self._together([looks[i] for i in own]))
                answers.update({i: [one] for i, one in zip(part, said, strict=True)})
        told = iter([answers[i] for i in range(len(looks))])
        return [[one for _ in item.looks for one in next(told)] for item in inputs]

    def _of_one_picture(self, look: Look) -> list[Decoded]:
        sharing = self.processor.family.sharing
        if sharing == "prompt":
            with span("shared prompt", device=True):
                answers = self._behind_prefix(look)
            if answers is not None:
                return answers
        if sharing != "picture":
            return [self._decoded(said) for row in range(len(look.rows)) for said in self._row(look, row)]
        # Encoders and bidirectional attention take no padding between prompt and answer: equally long prompts go together.
        of_length: dict[int, list[int]] = {}
        for row, tensors in enumerate(look.rows):
            of_length.setdefault(tensors["input_ids"].shape[1], []).append(row)
        told: dict[int, Decoded] = {}
        for length, rows in of_length.items():
            size = max(self.max_batch_tokens // (length + self.max_new_tokens), 1)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                told.update(zip(part, self._halving(part, lambda own: self._rows(look, own)), strict=True))
        return [told[row] for row in range(len(look.rows))]

    def _behind_prefix(self, look: Look) -> list[Decoded] | None:
        budget = self.max_batch_tokens
        while True:
            try:
                said = answers_behind_prefix(self.model, look, self._stops, self.max_new_tokens, budget)
                return None if said is None else [self._decoded(one) for one in said]
            except Exception as error:
                longest = max(row["input_ids"].shape[1] for row in look.rows) + self.max_new_tokens
                if not is_out_of_memory(error) or budget <= longest:
                    raise
            # Outside the handler: the error holds what the failed try had allocated.
            _forget()
            budget = max(budget // 2, 1)
            log.warning("memory did not suffice for the regions of a picture at once; trying %d tokens", budget)

    def _halving(self, part: list[int], answer: Callable[[list[int]], list[Said]]) -> list[Decoded]:
        """Return the answers of a part, which is halved where memory does not suffice."""
        try:
            return [self._decoded(said) for said in answer(part)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
        _forget()
        if len(part) == 1:
            return [without_answer(f"memory did not suffice for one region alone: {reason}")]
        log.warning("memory did not suffice for %d regions at once; trying halves", len(part))
        half = len(part) // 2
        return self._halving(part[:half], answer) + self._halving(part[half:], answer)

    def _row(self, look: Look, row: int) -> list[Said]:
        return self._rows(look, [row])

    def _rows(self, look: Look, rows: list[int]) -> list[Said]:
        with span("shared picture", device=True):
            return answers_by_generate(self.model, look, self._stops, self.max_new_tokens, rows)

    def _together(self, looks: Sequence[Look]) -> list[Said]:
        with span("own pictures", device=True):
            return answers_together(self.model, looks, self._stops, self.max_new_tokens)

    def _decoded(self, said: Said) -> Decoded:
        ids = [token for token in said.ids if token not in self._stops]
        text = str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))
        if self.processor.family.tasks is not None:
            text = " ".join(_TAGS.sub(" ", text).split())
        return Decoded(text=text.strip(), token_logprobs=said.logprobs, token_ids=tuple(ids))


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
