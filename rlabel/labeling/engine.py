"""The decoding engine: one image encoded once, its prompt prefix computed once, all its regions answered in one batch.

Greedy and exact: in float32 it gives the texts that transformers' own `generate` gives for one region at a time.
Inside a vocabulary it takes the likeliest token that goes on to a name. What it leaves out: continuous batching, packing.

Legend: B images, R regions of all of them, N questions about them, C texts whose probability is asked for, A tokens of such a text,
K tokens a region, Z zoomed crops, P prefix tokens, S suffix tokens, D width, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlabel.errors import InputError
from rlabel.labeling.trie import ROOT, Trie
from rlabel.labeling.views import VIEWS_OF, Views, averaged, seen_as
from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import PromptTokens, RegionGPTProcessor, RegionInputs
from rlabel.vocabulary.likelihood import LikelyName


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """question: asked of every region. max_new_tokens: end token included. share_prefix: False computes the prefix anew for each region (to compare).

    max_texts: texts whose probability is computed at once. views: other looks at each region, whose tokens are averaged with the plain one's.
    names: answers are one of these, token by token the likeliest that goes on to one; none: free text. Probabilities are the model's own either way.
    """

    question: str = CLASSIFY[0]
    max_new_tokens: int = 24
    share_prefix: bool = True
    max_texts: int = 256
    views: Views = "plain"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """text: stripped, up to the stop token. token_logprobs: natural logarithms, stop token included.

    token_ids: of the text, without the stop token; () where the text is a part of a longer answer.
    problem: why the answer says nothing of the region that it was asked about; None where it does.
    likely_names: where names were asked for beside the text, those found, best first.
    agreement: share of the wordings that gave this answer; None where there was one wording.
    """

    text: str
    token_logprobs: tuple[float, ...]
    token_ids: tuple[int, ...] = ()
    problem: str | None = None
    likely_names: tuple[LikelyName, ...] = ()
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """image_tokens_BTD and regions_RKD of some images; counts: the regions of each."""

    image_tokens_BTD: Tensor
    regions_RKD: Tensor
    counts: tuple[int, ...]

    def index(self, image: int, region: int) -> int:
        """Return the number of a region of an image among all regions."""
        return sum(self.counts[:image]) + region


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
        self.trie = None
        if options.names:
            self.trie = Trie([processor.answer_ids(name) for name in dict.fromkeys(options.names)], self.device)
        # Kept: the processor reads its whole vocabulary to find them.
        self._stops = frozenset(processor.stop_ids)
        self._stop_ids = torch.tensor(sorted(self._stops), device=self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.vision_tower.parameters()).device

    @torch.inference_mode()
    def answer(
        self, inputs: Sequence[RegionInputs], mentions: Sequence[Sequence[tuple[int, ...]]] | None = None
    ) -> list[list[Decoded]]:
        """Return the answers of each image's regions, in their order. Images without regions give an empty list.

        mentions: for each image, the regions that each of its questions names, in the order of the question's `<region>`s; where left out,
        one question about each region.

        Raises InputError where a question names another number of regions than the engine's question does.
        """
        asked = [[(i,) for i in range(len(item.region_masks_RGG))] for item in inputs] if mentions is None else mentions
        if not any(asked):
            return [[] for _ in inputs]
        self.check_mentions(asked)
        encoded = self.encode(inputs)
        index = [[encoded.index(i, region) for region in row] for i, rows in enumerate(asked) for row in rows]
        image_index_N = torch.repeat_interleave(
            torch.arange(len(inputs)), torch.tensor([len(rows) for rows in asked])
        ).to(self.device)
        mentioned_NKD = encoded.regions_RKD[torch.tensor(index, device=self.device).flatten()]
        decoded = self.decode(encoded.image_tokens_BTD, mentioned_NKD, image_index_N)
        answers: list[list[Decoded]] = []
        for rows in asked:
            answers.append(decoded[: len(rows)])
            decoded = decoded[len(rows) :]
        return answers

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
        start = len(prompt.prefix_ids) + len(prompt.suffix_ids)
        self._check_length(start, ids_of)
        cache = DynamicCache(config=self.model.config.text_config)
        prefix_ids = torch.tensor([prompt.prefix_ids], device=self.device).expand(len(encoded.counts), -1)
        self.forward(self.model.embed_prompt(prefix_ids, encoded.image_tokens_BTD, None), cache, 0)
        cache.batch_select_indices(torch.tensor([i for i, _ in places], device=self.device))
        suffix_ids = torch.tensor([prompt.suffix_ids], device=self.device).expand(len(places), -1)
        asked = torch.tensor([encoded.index(i, r) for i, r in places], device=self.device)
        suffix_NSD = self.model.embed_prompt(suffix_ids, None, encoded.regions_RKD[asked])
        first_NV = self.forward(suffix_NSD, cache, len(prompt.prefix_ids)).float().log_softmax(-1)
        rows = [(n, j, ids_of[text]) for n, (i, r) in enumerate(places) for j, text in enumerate(texts[i][r])]
        for chunk in _chunks(rows, self.options.max_texts, first_NV.shape[-1]):
            index_C = torch.tensor([n for n, _, _ in chunk], device=self.device)
            scores = self._score(first_NV[index_C], cache, index_C, [ids for _, _, ids in chunk], start)
            for (n, j, _), score in zip(chunk, scores, strict=True):
                i, r = places[n]
                result[i][r][j] = score
        return result

    def _score(
        self, first_CV: Tensor, cache: DynamicCache, index_C: Tensor, ids: Sequence[Sequence[int]], start: int
    ) -> list[float]:
        """Return the log-probability of each answer, given as token ids, behind the prompts index_C of the cache, which stays as it is.

        first_CV: log-probabilities of the first token. start: number of tokens of the prompts.
        """
        longest = max(map(len, ids))
        # Filled up on the right: what is said later changes nothing of what was said before.
        ids_CA = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in ids], device=self.device)
        lengths_C = torch.tensor([len(row) for row in ids], device=self.device)
        logprobs_CA = first_CV.gather(1, ids_CA[:, :1])
        if longest > 1:
            own = copy.deepcopy(cache)
            own.batch_select_indices(index_C)
            output = self.model.language_model(
                inputs_embeds=self.model.get_input_embeddings()(ids_CA[:, :-1]),
                past_key_values=own,
                position_ids=torch.arange(start, start + longest - 1, device=self.device)[None],
                use_cache=True,
            )
            logits_CAV = output.logits.float()
            picked_CA = logits_CAV.gather(2, ids_CA[:, 1:, None])[..., 0] - logits_CAV.logsumexp(-1)
            logprobs_CA = torch.cat([logprobs_CA, picked_CA], 1)
        is_own_CA = torch.arange(longest, device=self.device)[None] < lengths_C[:, None]
        return [float(value) for value in logprobs_CA.double().masked_fill(~is_own_CA, 0.0).sum(1).cpu()]

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
        image_tokens_BTD, regions_RKD = self._look(inputs)
        if views := VIEWS_OF[self.options.views]:
            num_shown = self.model.config.tokens_per_region
            looks = [self._look([seen_as(item, view) for item in inputs])[1] for view in views]
            shown_RKD = averaged([tokens_RKD[:, :num_shown] for tokens_RKD in (regions_RKD, *looks)])
            regions_RKD = torch.cat([shown_RKD, regions_RKD[:, num_shown:]], 1)
        counts = tuple(len(item.region_masks_RGG) for item in inputs)
        return Encoded(image_tokens_BTD=image_tokens_BTD, regions_RKD=regions_RKD, counts=counts)

    def decode(
        self,
        image_tokens_BTD: Tensor,
        mentioned_NKD: Tensor,
        image_index_N: Tensor,
        prompt: PromptTokens | None = None,
    ) -> list[Decoded]:
        """Return one answer a question. mentioned_NKD: the regions that the questions name, in the order of questions and mentions.

        prompt: asked instead of the engine's question.
        """
        cache, logits_NV, position = self.ask(image_tokens_BTD, mentioned_NKD, image_index_N, prompt)
        return self.go_on(cache, logits_NV, position)

    def ask(
        self,
        image_tokens_BTD: Tensor,
        mentioned_NKD: Tensor,
        image_index_N: Tensor,
        prompt: PromptTokens | None = None,
    ) -> tuple[DynamicCache, Tensor, int]:
        """Return the cache behind each question, logits_NV of the first token of its answer, and the position of that token."""
        prompt = prompt or self.prompt
        num_images, num_questions = image_tokens_BTD.shape[0], image_index_N.shape[0]
        cache = DynamicCache(config=self.model.config.text_config)
        prefix_ids = torch.tensor([prompt.prefix_ids], device=self.device)
        if self.options.share_prefix:
            prefix_BPD = self.model.embed_prompt(prefix_ids.expand(num_images, -1), image_tokens_BTD, None)
        else:
            prefix_BPD = self.model.embed_prompt(
                prefix_ids.expand(num_questions, -1), image_tokens_BTD[image_index_N], None
            )
        self.forward(prefix_BPD, cache, 0)
        if self.options.share_prefix:
            cache.batch_select_indices(image_index_N)
        suffix_ids = torch.tensor([prompt.suffix_ids], device=self.device).expand(num_questions, -1)
        step_RSD = self.model.embed_prompt(suffix_ids, None, mentioned_NKD)
        position = len(prompt.prefix_ids)
        return cache, self.forward(step_RSD, cache, position), position + len(prompt.suffix_ids)

    def go_on(self, cache: DynamicCache, logits_RV: Tensor, position: int) -> list[Decoded]:
        """Return the greedy answers behind the questions of a cache, which grows. logits_RV: of their first tokens, which stand at `position`."""
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        num_questions = logits_RV.shape[0]
        done_R = torch.zeros(num_questions, dtype=torch.bool, device=self.device)
        embed = self.model.get_input_embeddings()
        trie = self.trie
        node_R = torch.full((num_questions,), ROOT, device=self.device)
        most = self.options.max_new_tokens if trie is None else trie.longest
        for number in range(most):
            # Picked from the raw logits, as generate does: a log-softmax may round two of them together.
            if trie is None:
                token_R = logits_RV.argmax(-1)
            else:
                token_R, node_R = trie.pick(logits_RV, node_R)
                token_R = token_R.clamp_min(0)  # of rows that are done, which say nothing any more
            logprob_R = logits_RV.float().log_softmax(-1).gather(1, token_R[:, None])[:, 0]
            tokens.append(token_R.masked_fill(done_R, -1))
            logprobs.append(logprob_R)
            done_R = done_R | (torch.isin(token_R, self._stop_ids) if trie is None else trie.ended(node_R))
            if bool(done_R.all()) or number == most - 1:
                break
            logits_RV = self.forward(embed(token_R[:, None]), cache, position)
            position += 1
        return self._texts(torch.stack(tokens, 1).cpu(), torch.stack(logprobs, 1).cpu())

    def forward(self, embeddings_RSD: Tensor, cache: Any, position: int) -> Tensor:
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
                Decoded(
                    text=self.processor.decode_answer(text_ids),
                    token_logprobs=tuple(values[:num_tokens]),
                    token_ids=tuple(text_ids),
                )
            )
        return decoded


# Logits of scored texts held at once, numbers.
_MAX_LOGITS = 1 << 26
_Row = tuple[int, int, list[int]]


def _chunks(rows: list[_Row], most: int, vocabulary_size: int) -> Iterator[list[_Row]]:
    """Yield the rows in their order, so many at a time that neither their number nor their logits get out of hand."""
    chunk: list[_Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row[2]))
        if chunk and (len(chunk) == most or (len(chunk) + 1) * longest * vocabulary_size > _MAX_LOGITS):
            yield chunk
            chunk, longest = [], len(row[2])
        chunk.append(row)
    if chunk:
        yield chunk
