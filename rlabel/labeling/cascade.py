"""Attention of many rows that share beginnings: the keys of a beginning are kept once, and all its rows look at them in one product.

A row's attention is computed in parts, one over each beginning that it shares with others and one over its own tokens, and the parts are joined by
their largest scores and sums, as flash attention joins its blocks (Dao et al. 2022, arXiv 2205.14135; "cascade" inference, FlashInfer, does the same).
Registered with transformers under the name ATTENTION; the language model's own code does everything else, on one long sequence of all rows' tokens.

Legend: N tokens that are fed, R rows, M tokens fed for the longest row, G groups (beginnings), T tiles of a group's rows, C rows of a tile, L tokens of a
beginning, H heads of keys, Q queries a head of keys, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "rlabel_cascade"
# What language models hand to their attention beside keys and values, and what of it changes nothing here.
_HARMLESS = frozenset({"dropout", "use_cache", "position_ids", "position_embeddings", "is_causal", "output_attentions"})
# Own keys and values grow by so many tokens at a time.
_GROWTH = 16
# The fused attention of torch for CPUs, and what it is good in.
_FUSED_NAME = "_scaled_dot_product_flash_attention_for_cpu"
_FUSED = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """keys, values: of each layer, (G, H, L, E)."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def num_groups(self) -> int:
        return int(self.keys[0].shape[0])

    def only(self, index_G: Tensor) -> Beginnings:
        """Return these of the groups (int64, on the CPU); they are copied."""
        index_G = index_G.to(self.keys[0].device)
        return Beginnings(keys=[one[index_G] for one in self.keys], values=[one[index_G] for one in self.values])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Rows laid side by side in tiles, each of one group. group_T: None where tile and group are the same; slot_R: None where no tile has an empty place."""

    num_tiles: int
    rows_each: int
    group_T: Tensor | None
    slot_R: Tensor | None

    @classmethod
    def of(cls, group_R: Tensor, num_groups: int, device: torch.device) -> Tiles:
        """group_R: int64 on the CPU, ascending."""
        counts_G = torch.bincount(group_R, minlength=num_groups)
        size = _tile_size(counts_G)
        tiles_G = (counts_G + size - 1) // size
        num_tiles = int(tiles_G.sum())
        group_T = torch.repeat_interleave(torch.arange(num_groups), tiles_G)
        rank_R = torch.arange(len(group_R)) - (counts_G.cumsum(0) - counts_G)[group_R]
        slot_R = (tiles_G.cumsum(0) - tiles_G)[group_R] * size + rank_R
        is_full = num_tiles * size == len(group_R)
        is_whole = num_tiles == num_groups and bool((tiles_G == 1).all())
        return cls(
            num_tiles=num_tiles,
            rows_each=size,
            group_T=None if is_whole else group_T.to(device),
            slot_R=None if is_full else slot_R.to(device),
        )

    def lay(self, values_RX: Tensor) -> Tensor:
        """Return (T, C, ...) of rows."""
        if self.slot_R is None:
            return values_RX.unflatten(0, (self.num_tiles, self.rows_each))
        laid = values_RX.new_zeros((self.num_tiles * self.rows_each, *values_RX.shape[1:]))
        return laid.index_copy_(0, self.slot_R, values_RX).unflatten(0, (self.num_tiles, self.rows_each))

    def take(self, laid_TCX: Tensor) -> Tensor:
        """Return the rows of what `lay` gave."""
        rows = laid_TCX.flatten(0, 1)
        return rows if self.slot_R is None else rows[self.slot_R]

    def keys_of(self, keys_GHLE: Tensor) -> Tensor:
        return keys_GHLE if self.group_T is None else keys_GHLE[self.group_T]


def _tile_size(counts_G: Tensor) -> int:
    """Return how many rows a tile should take, so that empty places and copies of keys are few: a copy costs about as much as two rows."""
    most = int(counts_G.max())
    sizes = [most, *(2**power for power in range(most.bit_length()) if 2**power < most)]

    def cost(size: int) -> int:
        num_tiles = int(((counts_G + size - 1) // size).sum())
        return num_tiles * (size + (2 if size < most else 0))

    return min(sizes, key=cost)


class Own:
    """The keys and values of each row's own tokens, layer by layer; all rows have equally many of them."""

    def __init__(self, num_layers: int) -> None:
        self.num_tokens = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def extended(self, layer: int, keys_RHME: Tensor, values_RHME: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values with the given ones behind, which are kept. `num_tokens` is counted on by the caller, after the last layer."""
        end = self.num_tokens + keys_RHME.shape[2]
        joined = []
        for held, new in ((self._keys, keys_RHME), (self._values, values_RHME)):
            old = held[layer]
            if old is None or old.shape[2] < end:
                shape = list(new.shape)
                shape[2] = end + _GROWTH
                room = new.new_zeros(shape)
                if old is not None:
                    room[:, :, : self.num_tokens] = old[:, :, : self.num_tokens]
                held[layer] = old = room
            old[:, :, self.num_tokens : end] = new
            joined.append(old[:, :, :end])
        return joined[0], joined[1]

    def select(self, index_R: Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        for held in (self._keys, self._values):
            held[:] = [None if one is None else one[index_R] for one in held]

    def beginnings(self) -> Beginnings:
        """Return what there is of all rows as beginnings of others; nothing is copied."""
        keys, values = (
            [one[:, :, : self.num_tokens] for one in held if one is not None] for held in (self._keys, self._values)
        )
        return Beginnings(keys=keys, values=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Where tokens of one forward belong. shared: beginnings with the rows that go on from them, the first ones first.

    place_N: index of each token in (R, M), for rows of different lengths; None: every row has M tokens. own: keys of earlier tokens, kept up; or None.
    """

    num_rows: int
    num_each: int
    shared: Sequence[tuple[Beginnings, Tiles]]
    own: Own | None
    place_N: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.num_each if self.place_N is None else len(self.place_N)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rlabel_feeds: Sequence[Feed] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Return (attended (1, N, heads, E), None), as transformers' attention functions do. query: (1, heads, N, E); key, value: (1, H, N, E).

    Raises NotImplementedError where a model asks its attention for more than this: then beginnings have to be copied.
    """
    more = [name for name, wanted in others.items() if wanted is not None and name not in _HARMLESS]
    if not rlabel_feeds or attention_mask is not None or more:
        raise NotImplementedError(f"attention with {more or 'a mask, or without a feed'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_NHE, key_NHE, value_NHE = (values_1HNE[0].transpose(0, 1) for values_1HNE in (query, key, value))
    return attend_rows(query_NHE, key_NHE, value_NHE, rlabel_feeds, int(module.layer_idx), scale)[None], None  # type: ignore[arg-type]


def attend_rows(
    query_NHE: Tensor, key_NHE: Tensor, value_NHE: Tensor, feeds: Sequence[Feed], layer: int, scaling: float
) -> Tensor:
    """Return what the fed tokens of all rows see, (N, heads of queries, E), in their dtype. layer: counted from 0; its own keys and values are kept.

    feeds: of the tokens in their order; those of each are looked at together.
    """
    if len(feeds) == 1:
        return _attend_feed(query_NHE, key_NHE, value_NHE, feeds[0], layer, scaling)
    sizes = [feed.num_tokens for feed in feeds]
    each = zip(query_NHE.split(sizes), key_NHE.split(sizes), value_NHE.split(sizes), feeds, strict=True)
    return torch.cat([_attend_feed(query, key, value, feed, layer, scaling) for query, key, value, feed in each])


def _attend_feed(
    query_NHE: Tensor, key_NHE: Tensor, value_NHE: Tensor, feed: Feed, layer: int, scaling: float
) -> Tensor:
    num_heads = key_NHE.shape[1]
    query_RMHQE = _rows(query_NHE * scaling, feed).unflatten(2, (num_heads, -1))
    keys_RHME, values_RHME = _rows(key_NHE, feed).transpose(1, 2), _rows(value_NHE, feed).transpose(1, 2)
    past = 0 if feed.own is None else feed.own.num_tokens
    if feed.own is not None:
        keys_RHME, values_RHME = feed.own.extended(layer, keys_RHME, values_RHME)
    parts = [_own_part(query_RMHQE, keys_RHME, values_RHME, past)]
    for beginnings, tiles in feed.shared:
        parts.append(_shared_part(query_RMHQE, beginnings.keys[layer], beginnings.values[layer], tiles))
    joined = _join(parts).to(query_NHE.dtype).flatten(0, 1).flatten(1, 2)
    return joined if feed.place_N is None else joined[feed.place_N]


_Part = tuple[Tensor, Tensor, Tensor]


def _rows(values_NHE: Tensor, feed: Feed) -> Tensor:
    """Return (R, M, H, E) of the tokens that were fed; zeros where a row has fewer."""
    if feed.place_N is not None:
        room = values_NHE.new_zeros((feed.num_rows * feed.num_each, *values_NHE.shape[1:]))
        values_NHE = room.index_copy_(0, feed.place_N, values_NHE)
    return values_NHE.unflatten(0, (feed.num_rows, feed.num_each))


def _own_part(query_RMHQE: Tensor, keys_RHLE: Tensor, values_RHLE: Tensor, past: int) -> _Part:
    """past: tokens of a row before those that ask."""
    num_each, num_queries = query_RMHQE.shape[1], query_RMHQE.shape[3]
    asks = query_RMHQE.transpose(1, 2).flatten(2, 3)
    scores = asks @ keys_RHLE.transpose(2, 3)
    if num_each > 1:
        later = torch.ones(num_each, keys_RHLE.shape[2], dtype=torch.bool, device=scores.device).triu_(past + 1)
        scores.unflatten(2, (num_each, num_queries)).masked_fill_(later[:, None], -torch.inf)
    most, total, summed = _softmax_parts(scores, values_RHLE)
    back = (num_each, num_queries)
    return (
        most.unflatten(2, back).transpose(1, 2),
        total.unflatten(2, back).transpose(1, 2),
        summed.unflatten(2, back).transpose(1, 2),
    )


def _shared_part(query_RMHQE: Tensor, keys_GHLE: Tensor, values_GHLE: Tensor, tiles: Tiles) -> _Part:
    laid = tiles.lay(query_RMHQE)
    sides = (laid.shape[1], laid.shape[2], laid.shape[4])
    asks_THXE = laid.permute(0, 3, 1, 2, 4, 5).flatten(2, 4)
    most, total, summed = _whole_part(asks_THXE, tiles.keys_of(keys_GHLE), tiles.keys_of(values_GHLE))

    def back(values_THXE: Tensor) -> Tensor:
        return tiles.take(values_THXE.unflatten(2, sides).permute(0, 2, 3, 1, 4, 5))

    return back(most), back(total), back(summed)


def _whole_part(asks_THXE: Tensor, keys_THLE: Tensor, values_THLE: Tensor) -> _Part:
    """Return what each of the asking sees of all the keys: see `_softmax_parts`."""
    if asks_THXE.device.type != "cpu" or asks_THXE.dtype not in _FUSED or not hasattr(torch.ops.aten, _FUSED_NAME):
        return _softmax_parts(asks_THXE @ keys_THLE.transpose(2, 3), values_THLE)
    # What is behind F.scaled_dot_product_attention on CPUs; called by its own name, since that one alone gives the logarithm of the sum too.
    seen_THXE, logsum_THX = getattr(torch.ops.aten, _FUSED_NAME)(asks_THXE, keys_THLE, values_THLE, scale=1.0)
    # As one key that weighs as much as all of them: its score is the logarithm of their sum.
    return logsum_THX[..., None], torch.ones_like(logsum_THX)[..., None], seen_THXE.float()


def _softmax_parts(scores: Tensor, values: Tensor) -> _Part:
    """Return the largest score, the sum of exponentials and the values summed with these, (..., 1), (..., 1), (..., E), float32. The scores are used up."""
    scores = scores.float()
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    return most, weights.sum(-1, keepdim=True), (weights.to(values.dtype) @ values).float()


def _join(parts: Sequence[_Part]) -> Tensor:
    most = parts[0][0]
    for part in parts[1:]:
        most = torch.maximum(most, part[0])
    total, summed = torch.zeros_like(most), torch.zeros_like(parts[0][2])
    for part_most, part_total, part_summed in parts:
        share = (part_most - most).exp_()
        total = total.addcmul_(share, part_total)
        summed = summed.addcmul_(share, part_summed)
    return summed.div_(total)


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def cascade_attention(language_model: Any) -> Iterator[None]:
    """Let a language model attend by `attend` for a while: `generate` and training go by what was chosen at loading."""
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
