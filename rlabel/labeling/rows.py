"""The prompts of many questions, each a row, computed and kept so that answers can be grown behind them. Two ways to keep them, with one face.

CascadeRows keep each image's prefix once and attend by `cascade`; CopiedRows copy it for every row, which any language model of transformers can do.

Legend: B images, R rows, M tokens of the longest text that is fed, X positions whose logits are wanted, P prefix tokens, D width, V vocabulary of the
tokenizer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from rlabel.labeling.cascade import Beginnings, Feed, Own, Tiles, cascade_attention
from rlabel.labeling.layers import Layers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts of various lengths, one a row. ids_RM: filled up on the right; lengths_R: at least 1.

    first_R: the logits behind each row's tokens from this one on are wanted.
    """

    ids_RM: Tensor
    lengths_R: Tensor
    first_R: Tensor

    @property
    def fed_RM(self) -> Tensor:
        """Return bool: where tokens are."""
        return torch.arange(self.ids_RM.shape[1], device=self.ids_RM.device) < self.lengths_R[:, None]

    @property
    def wanted_RM(self) -> Tensor:
        """Return bool: behind which tokens logits are wanted."""
        return self.fed_RM & (torch.arange(self.ids_RM.shape[1], device=self.ids_RM.device) >= self.first_R[:, None])


class Rows(Protocol):
    """Rows that go on from what was fed to them, each by itself."""

    def feed(self, embeddings_RMD: Tensor) -> Tensor:
        """Return logits_RV behind the last of the given tokens, which the rows keep."""

    def try_texts(self, texts: Texts) -> Tensor:
        """Return logits_XV of the wanted positions, row after row. The rows are used up."""

    def keep(self, index_R: Tensor) -> None:
        """Keep these rows (int64, on the CPU, ascending); one may be named more than once."""

    def fork(self, index_R: Tensor) -> Rows:
        """Return rows that go on from these of the rows (int64, on the CPU, ascending), which stay as they are. No row has to be fed to meanwhile."""


class CopiedRows:
    """Rows of one cache, in which each has the prefix of its image."""

    def __init__(self, model: Any, cache: DynamicCache, position: int) -> None:
        self._model = model
        self._cache = cache
        self._position = position

    @classmethod
    def behind(cls, model: Any, prefix_BPD: Tensor, image_index_R: Tensor, *, share: bool) -> CopiedRows:
        """Return rows behind the prefix of each one's image. share: False computes the prefix anew for every row."""
        device = prefix_BPD.device
        rows = cls(model, DynamicCache(config=model.config.text_config), 0)
        rows.feed(prefix_BPD if share else prefix_BPD[image_index_R.to(device)])
        if share:
            rows.keep(image_index_R)
        return rows

    def feed(self, embeddings_RMD: Tensor) -> Tensor:
        return self._forward(embeddings_RMD, 1)[:, -1]

    def try_texts(self, texts: Texts) -> Tensor:
        embed = self._model.get_input_embeddings()
        # Filled up on the right: what is said later changes nothing of what was said before.
        logits_RMV = self._forward(embed(texts.ids_RM), 0)
        return logits_RMV[texts.wanted_RM]

    def keep(self, index_R: Tensor) -> None:
        self._cache.batch_select_indices(index_R.to(self._model.get_input_embeddings().weight.device))

    def fork(self, index_R: Tensor) -> CopiedRows:
        rows = CopiedRows(self._model, copy.deepcopy(self._cache), self._position)
        rows.keep(index_R)
        return rows

    def _forward(self, embeddings_RMD: Tensor, logits_to_keep: int) -> Tensor:
        num_tokens = embeddings_RMD.shape[1]
        positions = torch.arange(self._position, self._position + num_tokens, device=embeddings_RMD.device)
        output = self._model.language_model(
            inputs_embeds=embeddings_RMD,
            past_key_values=self._cache,
            position_ids=positions[None],
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        self._position += num_tokens
        logits: Tensor = output.logits
        return logits


class CascadeRows:
    """Rows that look at beginnings kept once: the prefix of their image, and behind a fork the rows that they went on from."""

    def __init__(
        self,
        model: Any,
        layers: Layers | None,
        shared: list[tuple[Beginnings, Tensor]],
        num_rows: int,
        position: int,
    ) -> None:
        """shared: beginnings, with the place of each row's own among them (int64, on the CPU, ascending). position: of the next token.

        layers: compute the language model; None: transformers does.
        """
        self._model = model
        self._layers = layers
        self._shared = shared
        self._tiles: list[tuple[Beginnings, Tiles]] | None = None
        self._num_rows = num_rows
        self._position = position
        self._own = Own(model.config.text_config.num_hidden_layers)

    @classmethod
    def behind(cls, model: Any, prefix_BPD: Tensor, image_index_R: Tensor, layers: Layers | None = None) -> CascadeRows:
        """Return rows behind the prefix of each one's image, computed once an image."""
        num_tokens = prefix_BPD.shape[1]
        if layers is not None:
            return cls(model, layers, [(layers.begin(prefix_BPD), image_index_R)], len(image_index_R), num_tokens)
        cache = DynamicCache(config=model.config.text_config)
        model.language_model(
            inputs_embeds=prefix_BPD,
            past_key_values=cache,
            position_ids=torch.arange(num_tokens, device=prefix_BPD.device)[None],
            use_cache=True,
            logits_to_keep=1,
        )
        cached: Any = cache.layers
        prefixes = Beginnings(keys=[one.keys for one in cached], values=[one.values for one in cached])
        return cls(model, None, [(prefixes, image_index_R)], len(image_index_R), num_tokens)

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def num_prefixes(self) -> int:
        """Return how many images' prefixes are held."""
        return self._shared[0][0].num_groups

    def feed(self, embeddings_RMD: Tensor) -> Tensor:
        return feed_together([self], embeddings_RMD)

    def try_texts(self, texts: Texts) -> Tensor:
        fed_RM = texts.fed_RM
        num_each = fed_RM.shape[1]
        place_N = fed_RM.flatten().nonzero()[:, 0]
        wanted_X = texts.wanted_RM.flatten()[place_N].nonzero()[:, 0]
        embeddings_ND = self._model.get_input_embeddings()(texts.ids_RM.flatten()[place_N])
        feed = self._feed_of(num_each, self._own if self._own.num_tokens else None, place_N)
        return self._forward(embeddings_ND, self._position + place_N % num_each, [feed], wanted_X)

    def keep(self, index_R: Tensor) -> None:
        self._shared = [_held(beginnings, group_R[index_R]) for beginnings, group_R in self._shared]
        self._tiles = None
        self._num_rows = len(index_R)
        self._own.select(index_R.to(self._shared[0][0].keys[0].device))

    def fork(self, index_R: Tensor) -> CascadeRows:
        shared = [(beginnings, group_R[index_R]) for beginnings, group_R in self._shared]
        if self._own.num_tokens:
            shared.append((self._own.beginnings(), index_R))
        return CascadeRows(self._model, self._layers, shared, len(index_R), self._position)

    def _feed_of(self, num_each: int, own: Own | None, place_N: Tensor | None = None) -> Feed:
        if self._tiles is None:
            device = self._shared[0][0].keys[0].device
            self._tiles = [(one, Tiles.of(group_R, one.num_groups, device)) for one, group_R in self._shared]
        return Feed(num_rows=self._num_rows, num_each=num_each, shared=self._tiles, own=own, place_N=place_N)

    def _forward(self, embeddings_ND: Tensor, positions_N: Tensor, feeds: list[Feed], wanted_X: Tensor) -> Tensor:
        if self._layers is not None:
            return self._layers.go_on(embeddings_ND, positions_N, feeds, wanted_X)
        with cascade_attention(self._model.language_model):
            output = self._model.language_model(
                inputs_embeds=embeddings_ND[None],
                position_ids=positions_N[None],
                use_cache=False,
                logits_to_keep=wanted_X,
                rlabel_feeds=feeds,
            )
        logits: Tensor = output.logits[0]
        return logits


def feed_together(cohorts: Sequence[CascadeRows], embeddings_RMD: Tensor) -> Tensor:
    """Feed equally many tokens to all rows of some cohorts of one model, however far each has come; return logits_RV behind the last.

    The rows of the first cohort stand first. All of the model but its attention works on the tokens of all cohorts at once.
    """
    num_rows, num_each, _ = embeddings_RMD.shape
    device = embeddings_RMD.device
    starts_R = torch.cat([torch.full((rows.num_rows,), rows._position, device=device) for rows in cohorts])
    positions_N = (starts_R[:, None] + torch.arange(num_each, device=device)).flatten()
    last_R = torch.arange(num_each - 1, num_rows * num_each, num_each, device=device)
    feeds = [rows._feed_of(num_each, rows._own) for rows in cohorts]
    logits_RV = cohorts[0]._forward(embeddings_RMD.flatten(0, 1), positions_N, feeds, last_R)
    for rows in cohorts:
        rows._own.num_tokens += num_each
        rows._position += num_each
    return logits_RV


def _held(beginnings: Beginnings, group_R: Tensor) -> tuple[Beginnings, Tensor]:
    """Return the beginnings and each row's place among them, without those that no row goes on from once they are half of all."""
    used_G, place_R = group_R.unique(return_inverse=True)
    return (beginnings.only(used_G), place_R) if 2 * len(used_G) <= beginnings.num_groups else (beginnings, group_R)


@torch.inference_mode()
def cascade_fits(model: Any, layers: Layers | None = None) -> bool:
    """Return whether a RegionGPT's language model can attend by `cascade`: every layer looks at everything before, and a try gives the same logits.

    layers: as CascadeRows take them.
    """
    config = model.config.text_config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if set(kinds) != {"full_attention"} or getattr(config, "sliding_window", None):
        return False
    embed = model.get_input_embeddings()
    ids_24 = torch.arange(8, device=embed.weight.device).view(2, 4) % embed.weight.shape[0]
    image_index = torch.tensor([0, 0, 1])
    try:
        tried = []
        for rows in (
            CascadeRows.behind(model, embed(ids_24), image_index, layers),
            CopiedRows.behind(model, embed(ids_24), image_index, share=True),
        ):
            rows.feed(embed(ids_24[image_index.to(ids_24.device), :2]))
            tried.append(rows.feed(embed(ids_24.flatten()[:3, None])))
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        log.info("prefixes are copied: this language model does not take the shared attention (%s)", error)
        return False
    # In half precision sums in another order leave thirty layers some hundredths apart (0.034 measured), a wrong attention much more.
    far = 0.02 if tried[1].dtype == torch.float32 else 0.08
    shared, copied = tried[0].float(), tried[1].float()
    return bool(torch.allclose(shared, copied, rtol=0.0, atol=far * float(copied.abs().max())))


def fitting_layers(model: Any) -> Layers | None:
    """Return what computes the language model of a RegionGPT faster than transformers and gives the same logits in a try; None where nothing does."""
    layers = Layers.of(model.language_model)
    return layers if layers is not None and cascade_fits(model, layers) else None
