"""The decoding engine: one image encoded once, its prompt prefix computed once, all its regions answered together.

Greedy and exact: in float32 it gives the texts that transformers' own `generate` gives for one region at a time.
Inside a vocabulary it takes the likeliest token that goes on to a name, or the likeliest name of all. How prompts are kept: see `rows`.

Legend: B images, R regions of all of them, N questions about them, C texts whose probability is asked for, M tokens of the longest of these,
K tokens a region, P prefix tokens, S suffix tokens, D width, V vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlabel.config import PrefixSharing, Search
from rlabel.errors import InputError
from rlabel.labeling.budget import Mentions, in_parts
from rlabel.labeling.encoding import DeviceBatch, Encoded, to_device_batch
from rlabel.labeling.growing import Growing, pick
from rlabel.labeling.layers import Layers
from rlabel.labeling.rows import CascadeRows, CopiedRows, Rows, cascade_fits, fitting_layers
from rlabel.labeling.scoring import score_rows
from rlabel.labeling.search import Stretches, searched
from rlabel.labeling.trie import Trie
from rlabel.labeling.views import VIEWS_OF, Views, averaged, seen_as
from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import PromptTokens, RegionGPTProcessor, RegionInputs
from rlabel.spans import span
from rlabel.vocabulary.likelihood import LikelyName

__all__ = ["Decoded", "DeviceBatch", "Encoded", "Engine", "EngineOptions", "to_device_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """question: asked of every region. max_new_tokens: end token included.

    prefix_sharing: "packed": a prefix is kept once and all its regions look at it; "expanded": it is computed once and copied for each region; "none":
    computed anew for each (to compare); "auto": packed where the language model takes it, else expanded.
    max_batch_tokens: of prompts and answers that are worked on at once. max_texts: texts whose probability is computed at once.
    views: other looks at each region, whose tokens are averaged with the plain one's.
    names: answers are one of these; none: free text. Probabilities are the model's own either way. search: "greedy": token by token the likeliest that
    goes on to a name; "exact": the likeliest name.
    """

    question: str = CLASSIFY[0]
    max_new_tokens: int = 24
    prefix_sharing: PrefixSharing = "auto"
    max_batch_tokens: int = 16384
    max_texts: int = 256
    views: Views = "plain"
    names: tuple[str, ...] = ()
    search: Search = "greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """text: stripped, up to the stop token. token_logprobs: natural logarithms, stop token included.

    token_ids: of the text, without the stop token; () where the text is a part of a longer answer.
    problem: why the answer says nothing of the region that it was asked about; None where it does.
    likely_names: where names were asked for beside the text, those found, best first.
    agreement: share of the wordings that gave this answer; None where there was one wording.
    share: of a name, the least and the most that it can make up of the probability of all names; None for free text.
    """

    text: str
    token_logprobs: tuple[float, ...]
    token_ids: tuple[int, ...] = ()
    problem: str | None = None
    likely_names: tuple[LikelyName, ...] = ()
    agreement: float | None = None
    share: tuple[float, float] | None = None


def without_answer(reason: str) -> Decoded:
    """Return what stands for an answer that could not be had."""
    return Decoded(text="", token_logprobs=(), problem=reason)


class Engine:
    """Answers regions with one model. Holds no state between calls but the model and the prompt's tokens."""

    def __init__(
        self, model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, options: EngineOptions
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.options = options
        self.prompt: PromptTokens = processor.prompt(options.question)
        self.stretches: Stretches | None = None
        if options.names:
            self.stretches = self.stretches_of(options.names)
        # Kept: the processor reads its whole vocabulary to find them.
        self._stops = frozenset(processor.stop_ids)
        self.stop_ids = torch.tensor(sorted(self._stops), device=self.device)
        self._sharing = options.prefix_sharing
        self._layers: Layers | None = None
        self._tried = False

    def stretches_of(self, names: Sequence[str]) -> Stretches:
        """Return the names, each once, as something to search in; numbered in their order."""
        return Stretches(Trie([self.processor.answer_ids(name) for name in dict.fromkeys(names)], self.device))

    @property
    def sharing(self) -> str:
        """Return how prompts are kept, for people; known once something was asked."""
        return f"{self._sharing}, own layers" if self._layers is not None else self._sharing

    @property
    def device(self) -> torch.device:
        return next(self.model.vision_tower.parameters()).device

    def answer(
        self, inputs: Sequence[RegionInputs], mentions: Sequence[Sequence[Mentions]] | None = None
    ) -> list[list[Decoded]]:
        """Return the answers of each image's regions, in their order. Images without regions give an empty list.

        mentions: for each image, the regions that each of its questions names, in the order of the question's `<region>`s; where left out,
        one question about each region. A question that does not fit into memory has a `problem` for an answer.

        Raises InputError where a question names another number of regions than the engine's question does.
        """
        asked = each_region(inputs) if mentions is None else mentions
        self.check_mentions(asked)
        return self.in_parts(inputs, asked, self._answer)

    def in_parts(
        self,
        inputs: Sequence[RegionInputs],
        asked: Sequence[Sequence[Mentions]],
        answer: Callable[[list[RegionInputs], list[list[Mentions]]], list[list[Decoded]]],
        prompts: Sequence[PromptTokens] = (),
    ) -> list[list[Decoded]]:
        """Return what `answer` gives, asked so much at a time as the options and the memory allow. prompts: instead of the engine's own."""
        prompts = prompts or [self.prompt]
        longest = self.options.max_new_tokens if self.stretches is None else self.stretches.trie.longest
        return in_parts(
            inputs,
            asked,
            answer,
            without_answer,
            tokens_an_image=max(len(prompt.prefix_ids) for prompt in prompts),
            tokens_a_question=max(len(prompt.suffix_ids) for prompt in prompts) + longest,
            most_tokens=self.options.max_batch_tokens,
        )

    @torch.inference_mode()
    def _answer(self, inputs: list[RegionInputs], asked: list[list[Mentions]]) -> list[list[Decoded]]:
        encoded = self.encode(inputs)
        index = [[encoded.index(i, region) for region in row] for i, rows in enumerate(asked) for row in rows]
        image_index_N = torch.repeat_interleave(
            torch.arange(len(inputs)), torch.tensor([len(rows) for rows in asked], dtype=torch.long)
        )
        mentioned_NKD = encoded.regions_RKD[torch.tensor(index, device=self.device).flatten()]
        decoded = iter(self.decode(encoded.image_tokens_BTD, mentioned_NKD, image_index_N))
        return [[next(decoded) for _ in rows] for rows in asked]

    @torch.inference_mode()
    def score_answers(
        self,
        inputs: Sequence[RegionInputs],
        texts: Sequence[Sequence[Sequence[str]]],
        question: str | None = None,
    ) -> list[list[list[float]]]:
        """Return the natural logarithm of the probability that the model gives to each text as its whole answer, end token included.

        texts: for each image, for each of its regions, any number of texts; the result has the same shape. question: instead of the engine's.
        Each image's prefix is computed once, each region's part of the prompt once, and each text by teacher forcing.

        Raises InputError for a text that does not fit the language model.
        """
        prompt = self.prompt if question is None else self.processor.prompt(question)
        self.check_mentions([[(0,)]], prompt)
        if not any(own for regions in texts for own in regions):
            return [[[] for _ in regions] for regions in texts]
        return self.score_encoded(self.encode(inputs), texts, prompt)

    @torch.inference_mode()
    def score_encoded(
        self, encoded: Encoded, texts: Sequence[Sequence[Sequence[str]]], prompt: PromptTokens
    ) -> list[list[list[float]]]:
        """Return what `score_answers` does, of images that are encoded already."""
        places = [(i, r) for i, regions in enumerate(texts) for r, own in enumerate(regions) if own]
        result = [[[0.0] * len(own) for own in regions] for regions in texts]
        if not places:
            return result
        ids_of = {text: self.processor.answer_ids(text) for i, r in places for text in texts[i][r]}
        self._check_length(len(prompt.prefix_ids) + len(prompt.suffix_ids), ids_of)
        index_N = torch.tensor([encoded.index(i, r) for i, r in places], device=self.device)
        rows, first_NV = self.ask(
            encoded.image_tokens_BTD, encoded.regions_RKD[index_N], torch.tensor([i for i, _ in places]), prompt
        )
        wanted = [(n, ids_of[text]) for n, (i, r) in enumerate(places) for text in texts[i][r]]
        scores = iter(score_rows(rows, first_NV, wanted, self.options.max_texts))
        for i, r in places:
            result[i][r] = [next(scores) for _ in texts[i][r]]
        return result

    def check_mentions(self, asked: Sequence[Sequence[tuple[int, ...]]], prompt: PromptTokens | None = None) -> None:
        named = (prompt or self.prompt).suffix_ids.count(self.processor.region_token_id)
        wanted = named // self.processor.tokens_per_region
        wrong = next((row for rows in asked for row in rows if len(row) != wanted), None)
        if wrong is not None:
            raise InputError(
                f"question {(prompt or self.prompt).text!r}: it names {wanted} regions, expected {len(wrong)}. "
                "Give one `<region>` for each region that is asked about."
            )

    def _check_length(self, start: int, ids_of: dict[str, list[int]]) -> None:
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        text = max(ids_of, key=lambda text: len(ids_of[text]))
        if limit is not None and start + len(ids_of[text]) > limit:
            raise InputError(
                f"text {text[:60]!r}: {len(ids_of[text])} tokens behind a prompt of {start} are more than the {limit} that this language "
                "model takes. Shorten it."
            )

    def _look(self, inputs: Sequence[RegionInputs]) -> tuple[Tensor, Tensor]:
        """Return (image_tokens_BTD, regions_RKD) of some images as they are given."""
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
        return image_tokens_BTD, regions_RKD

    def encode(self, inputs: Sequence[RegionInputs]) -> Encoded:
        """Return the tokens of some images and of all their regions, of all views that the options ask for."""
        with span("tower", device=True):
            return self._encoded(inputs)

    def _encoded(self, inputs: Sequence[RegionInputs]) -> Encoded:
        image_tokens_BTD, regions_RKD = self._look(inputs)
        if views := VIEWS_OF[self.options.views]:
            num_shown = self.model.config.tokens_per_region
            looks = [self._look([seen_as(item, view) for item in inputs])[1] for view in views]
            shown_RKD = averaged([tokens_RKD[:, :num_shown] for tokens_RKD in (regions_RKD, *looks)])
            regions_RKD = torch.cat([shown_RKD, regions_RKD[:, num_shown:]], 1)
        counts = tuple(len(item.region_masks_RGG) for item in inputs)
        return Encoded(image_tokens_BTD=image_tokens_BTD, regions_RKD=regions_RKD, counts=counts)

    @torch.inference_mode()
    def decode(
        self,
        image_tokens_BTD: Tensor,
        mentioned_NKD: Tensor,
        image_index_N: Tensor,
        prompt: PromptTokens | None = None,
    ) -> list[Decoded]:
        """Return one answer a question. mentioned_NKD: the regions that the questions name, in the order of questions and mentions.

        image_index_N: the image of each question, ascending. prompt: asked instead of the engine's question.
        """
        return self.go_on(*self.ask(image_tokens_BTD, mentioned_NKD, image_index_N, prompt))

    def ask(
        self,
        image_tokens_BTD: Tensor,
        mentioned_NKD: Tensor,
        image_index_N: Tensor,
        prompt: PromptTokens | None = None,
    ) -> tuple[Rows, Tensor]:
        """Return rows behind each question, and logits_NV of the first token of its answer."""
        prompt = prompt or self.prompt
        if not self._tried:
            # Not when the engine is made: the first forward of a model may change its weights' layout, and it may yet have to be saved.
            self._tried = True
            if self._sharing in ("auto", "packed"):
                self._layers = fitting_layers(self.model)
            if self._sharing == "auto":
                fits = self._layers is not None or cascade_fits(self.model)
                self._sharing = "packed" if fits else "expanded"
        with span("prefill", device=True):
            return self._asked(image_tokens_BTD, mentioned_NKD, image_index_N.cpu(), prompt)

    def _asked(
        self, image_tokens_BTD: Tensor, mentioned_NKD: Tensor, index_N: Tensor, prompt: PromptTokens
    ) -> tuple[Rows, Tensor]:
        prefix_ids = torch.tensor([prompt.prefix_ids], device=self.device).expand(len(image_tokens_BTD), -1)
        prefix_BPD = self.model.embed_prompt(prefix_ids, image_tokens_BTD, None)
        rows: Rows
        if self._sharing == "packed":
            rows = CascadeRows.behind(self.model, prefix_BPD, index_N, self._layers)
        else:
            rows = CopiedRows.behind(self.model, prefix_BPD, index_N, share=self._sharing == "expanded")
        suffix_ids = torch.tensor([prompt.suffix_ids], device=self.device).expand(len(index_N), -1)
        return rows, rows.feed(self.model.embed_prompt(suffix_ids, None, mentioned_NKD))

    def go_on(self, rows: Rows, logits_NV: Tensor) -> list[Decoded]:
        """Return the answers behind the questions of some rows, which grow. logits_NV: of their first tokens."""
        with span("decode steps", device=True):
            if self.stretches is not None:
                return self._names(self.stretches, rows, logits_NV)
            return self._free_texts(rows, logits_NV)

    def _free_texts(self, rows: Rows, logits_NV: Tensor) -> list[Decoded]:
        embed = self.model.get_input_embeddings()
        growing = Growing(rows, len(logits_NV), self.options.max_new_tokens, self.device)
        pick([growing], logits_NV, self.stop_ids)
        while not growing.is_done:
            pick([growing], rows.feed(embed(growing.token_R[:, None])), self.stop_ids)
        return self.decoded(growing.answers())

    def _names(self, stretches: Stretches, rows: Rows, logits_NV: Tensor) -> list[Decoded]:
        """Return a name for each of the rows, which stay as they are."""
        return [
            replace(self._decoded(ids, logprobs), share=share)
            for found in searched(stretches, rows, logits_NV, self.options.search)
            for ids, logprobs, share in found.answers()
        ]

    def decoded(self, answers: Iterable[tuple[Sequence[int], Sequence[float]]]) -> list[Decoded]:
        """Return answers of token ids and their log-probabilities, stop tokens included, as text."""
        return [self._decoded(ids, logprobs) for ids, logprobs in answers]

    def _decoded(self, ids: Sequence[int], logprobs: Sequence[float]) -> Decoded:
        text_ids = [token for token in ids if token not in self._stops]
        text = self.processor.decode_answer(text_ids)
        return Decoded(text=text, token_logprobs=tuple(logprobs), token_ids=tuple(text_ids))


def each_region(inputs: Sequence[RegionInputs]) -> list[list[Mentions]]:
    """Return one question about each region of some images."""
    return [[(i,) for i in range(len(item.region_masks_RGG))] for item in inputs]
