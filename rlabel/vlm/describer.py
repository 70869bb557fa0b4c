"""The Describer of plain models: chooses how a batch of pictures is answered, and turns what was said into answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.budget import is_out_of_memory
from rlabel.labeling.engine import Decoded, without_answer
from rlabel.spans import span
from rlabel.vlm.decoding import Given, Said, answers_of, given_looks, given_rows, grown, rows_of, shape_of, stop_ids
from rlabel.vlm.inputs import Look, PlainInputs, PlainProcessor
from rlabel.vlm.naming import AnswerTokens, NameOptions, Naming, check_rows
from rlabel.vlm.rows import PlainRows, rows_behind_prefix, shares_its_picture

log = logging.getLogger(__name__)

# Places and structure in the answers of families that point as well as speak: <loc_12>, <patch_index_0044>, </phrase>.
_TAGS = re.compile(r"</?[A-Za-z_]+[0-9]*/?>")


class PlainDescriber:
    """Describes regions by a plain vision-language model. The same regions give the same answers whatever they are batched with.

    share: "auto" computes once what the regions of a picture share; "none": each region alone, as a plain script would (to compare).
    max_batch_tokens: of prompts and answers held at once. names: answers are among these, or come with the likeliest of them; None: free text.

    Raises InputError where names are asked for and the model's cache does not allow to try them.
    """

    def __init__(
        self,
        model: Any,
        processor: PlainProcessor,
        *,
        max_new_tokens: int = 24,
        max_batch_tokens: int = 16384,
        share: Literal["auto", "none"] = "auto",
        names: NameOptions | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.max_batch_tokens = max_batch_tokens
        self.share = share
        self._stops = stop_ids(model, processor.tokenizer)
        self._naming: Naming | None = None
        if names is not None:
            self._naming = Naming(names, AnswerTokens(processor, self._stops), model.device)
            self._check("--decoding hybrid" if names.hybrid else "--decoding constrained")

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
                answers[i] = [one for row in range(len(look.rows)) for one in self._rows(look, [row])]
            else:
                # A model whose batches nobody has tried is asked about one picture at a time.
                batches = self.share == "auto" and self.processor.family.batches
                alone.setdefault(shape_of(look) if batches else i, []).append(i)
        for group in alone.values():
            for part in self._parts(group, looks[group[0]].rows[0]["input_ids"].shape[1]):
                said = self._halving(part, lambda own: self._together([looks[i] for i in own]))
                answers.update({i: [one] for i, one in zip(part, said, strict=True)})
        told = iter([answers[i] for i in range(len(looks))])
        return [[one for _ in item.looks for one in next(told)] for item in inputs]

    def _of_one_picture(self, look: Look) -> list[Decoded]:
        sharing = self.processor.family.sharing
        if sharing == "prompt" and shares_its_picture(self.model, look):
            with span("shared prompt", device=True):
                return self._behind_prefix(look)
        if sharing != "picture":
            return [one for row in range(len(look.rows)) for one in self._rows(look, [row])]
        # Encoders and bidirectional attention take no padding between prompt and answer: equally long prompts go together.
        of_length: dict[int, list[int]] = {}
        for row, tensors in enumerate(look.rows):
            of_length.setdefault(tensors["input_ids"].shape[1], []).append(row)
        told: dict[int, Decoded] = {}
        for length, rows in of_length.items():
            for part in self._parts(rows, length):
                told.update(zip(part, self._halving(part, lambda own: self._rows(look, own)), strict=True))
        return [told[row] for row in range(len(look.rows))]

    @property
    def _copies(self) -> int:
        return 1 if self._naming is None else self._naming.copies

    @property
    def _longest(self) -> int:
        """Return the tokens of the longest answer."""
        if self._naming is None or self._naming.hybrid:
            return self.max_new_tokens
        return self._naming.longest

    def _parts(self, items: list[int], prompt_tokens: int) -> Iterator[list[int]]:
        """Yield so many of the items, whose prompts are equally long, as the budget allows at once."""
        size = max(self.max_batch_tokens // (self._copies * (prompt_tokens + self._longest)), 1)
        yield from (items[start : start + size] for start in range(0, len(items), size))

    def _behind_prefix(self, look: Look) -> list[Decoded]:
        budget = self.max_batch_tokens
        while True:
            try:
                return self._told_behind_prefix(look, budget)
            except Exception as error:
                longest = max(row["input_ids"].shape[1] for row in look.rows) + self._longest
                if not is_out_of_memory(error) or budget <= longest:
                    raise
            # Outside the handler: the error holds what the failed try had allocated.
            _forget()
            budget = max(budget // 2, 1)
            log.warning("memory did not suffice for the regions of a picture at once; trying %d tokens", budget)

    @torch.inference_mode()
    def _told_behind_prefix(self, look: Look, budget: int) -> list[Decoded]:
        told: dict[int, Decoded] = {}
        for group, rows, logits_RV in rows_behind_prefix(self.model, look, self._longest, budget, self._copies):
            told.update(zip(group, self._told(rows, logits_RV), strict=True))
        return [told[row] for row in range(len(look.rows))]

    def _halving(self, part: list[int], answer: Callable[[list[int]], list[Decoded]]) -> list[Decoded]:
        """Return the answers of a part, which is halved where memory does not suffice."""
        try:
            return answer(part)
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

    @torch.inference_mode()
    def _rows(self, look: Look, rows: list[int]) -> list[Decoded]:
        with span("shared picture", device=True):
            return self._whole(given_rows(self.model, look, rows))

    @torch.inference_mode()
    def _together(self, looks: Sequence[Look]) -> list[Decoded]:
        with span("own pictures", device=True):
            return self._whole(given_looks(self.model, looks))

    def _whole(self, given: Given) -> list[Decoded]:
        """Return the answers to whole prompts."""
        if self._naming is None:
            return [self._decoded(said) for said in answers_of(self.model, given, self._stops, self.max_new_tokens)]
        said = None
        if self._naming.hybrid and self.model.config.is_encoder_decoder:
            # Its texts may be made to begin and end with certain tokens, which generate knows of.
            said = answers_of(self.model, given, self._stops, self.max_new_tokens)
        return self._told(*rows_of(self.model, given, self._stops, self.max_batch_tokens), said)

    def _told(self, rows: PlainRows, logits_RV: Tensor, said: Sequence[Said] | None = None) -> list[Decoded]:
        """Return the answers behind some rows, which are used up. said: free texts, where they are known."""
        if self._naming is None:
            return [self._decoded(one) for one in grown(rows, logits_RV, self._stops, self.max_new_tokens)]
        if not self._naming.hybrid:
            return self._naming.chosen(rows, logits_RV)
        if said is None:
            said = grown(rows.fork(torch.arange(len(logits_RV))), logits_RV, self._stops, self.max_new_tokens)
        return self._naming.beside([self._decoded(one) for one in said], rows, logits_RV)

    @torch.inference_mode()
    def _check(self, what: str) -> None:
        """Try the model on a small picture, in the ways in which it will be asked for names. Raises InputError where that gives other probabilities."""
        model, stops, most = self.model, self._stops, self.max_batch_tokens
        look = self.processor.trial().looks[0]
        given = given_rows(model, look, [0])
        check_rows(model, given, stops, lambda: rows_of(model, given, stops, most), what=what)
        shares = self.share == "auto" and self.processor.family.sharing == "prompt"
        if shares and shares_its_picture(model, look):
            check_rows(
                model, given, stops, lambda: next(rows_behind_prefix(model, look, self._longest, most))[1:], what=what
            )

    def _decoded(self, said: Said) -> Decoded:
        ids = [token for token in said.ids if token not in self._stops]
        text = str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))
        if self.processor.family.tasks is not None:
            text = " ".join(_TAGS.sub(" ", text).split())
        return Decoded(text=text.strip(), token_logprobs=said.logprobs, token_ids=tuple(ids))


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
