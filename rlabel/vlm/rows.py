"""The prompts of regions as rows of one cache, as any model of transformers keeps them: answers are grown or tried behind them.

Two ways to get there: what the prompts of a picture share is computed once and copied, only what differs is computed anew; or `generate` itself computes
whole prompts of equal length, in whatever way the family wants its pictures, masks and positions, and leaves its cache.

Legend: R rows (regions), P tokens that they share, S further tokens of the longest prompt, T tokens so far, M tokens that are fed, X wanted logits,
V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from rlabel.labeling.rows import Texts
from rlabel.vlm.inputs import Look, to_device

Row = dict[str, Tensor]


class PlainRows:
    """Rows of one cache, each with its whole prompt; `labeling.rows.Rows`, fed with token ids instead of embeddings.

    mask_RT: 0 where padding stands. next_R: the position of each row's next token; None: as the model itself counts. leads: sides of positions before
    the rows' own, (3,) for time, height and width. num_encoded: tokens of the encoder, 0 where there is none. max_tokens: of rows whose texts are tried
    at once.
    """

    def __init__(
        self,
        model: Any,
        cache: Any,
        mask_RT: Tensor,
        next_R: Tensor | None = None,
        *,
        leads: tuple[int, ...] = (),
        num_encoded: int = 0,
        max_tokens: int = 16384,
    ) -> None:
        self._model = model
        self._cache = cache
        self._mask_RT = mask_RT
        self._next_R = next_R
        self._leads = leads
        self._num_encoded = num_encoded
        self._max_tokens = max_tokens
        # The rows of the cache that are meant; copied where something is fed, not before.
        self._picked_R: Tensor | None = None

    def feed(self, ids_RM: Tensor) -> Tensor:
        """Return float32 logits_RV behind the last of the given tokens, which the rows keep."""
        if self._picked_R is not None:
            self._cache, self._mask_RT, self._next_R = self._rows(self._picked_R)
            self._picked_R = None
        logits_RV = self._forward(self._cache, self._mask_RT, self._next_R, ids_RM, 1)[:, -1]
        self._mask_RT = torch.cat([self._mask_RT, torch.ones_like(ids_RM)], 1)
        if self._next_R is not None:
            self._next_R = self._next_R + ids_RM.shape[1]
        return logits_RV

    def try_texts(self, texts: Texts) -> Tensor:
        """Return logits_XV of the wanted positions, row after row, so many rows at a time as the budget allows. The rows are used up."""
        picked_R = torch.arange(len(self._mask_RT)) if self._picked_R is None else self._picked_R
        size = max(1, self._max_tokens // (self._mask_RT.shape[1] + texts.ids_RM.shape[1]))
        tried = []
        for start in range(0, len(picked_R), size):
            own = slice(start, start + size)
            # Filled up on the right: what is said later changes nothing of what was said before.
            logits_RMV = self._forward(*self._rows(picked_R[own]), texts.ids_RM[own], 0)
            tried.append(logits_RMV[texts.wanted_RM[own]])
        return torch.cat(tried)

    def keep(self, index_R: Tensor) -> None:
        """Keep these rows (int64, on the CPU, ascending); one may be named more than once."""
        self._picked_R = index_R if self._picked_R is None else self._picked_R[index_R]

    def fork(self, index_R: Tensor) -> PlainRows:
        """Return rows that go on from these of the rows, which stay as they are. No row has to be fed to meanwhile."""
        forked = copy.copy(self)
        forked.keep(index_R)
        return forked

    def _rows(self, picked_R: Tensor) -> tuple[Any, Tensor, Tensor | None]:
        on_device_R = picked_R.to(self._mask_RT.device)
        next_R = None if self._next_R is None else self._next_R[on_device_R]
        return select(self._cache, on_device_R), self._mask_RT[on_device_R], next_R

    def _forward(
        self, cache: Any, mask_RT: Tensor, next_R: Tensor | None, ids_RM: Tensor, logits_to_keep: int
    ) -> Tensor:
        given: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        known = signature(self._model.forward).parameters
        if "logits_to_keep" in known:
            given["logits_to_keep"] = logits_to_keep
        if "image_embeds_position_mask" in known:  # Kosmos-2 asks for a picture at every step, and does not look at it
            given["image_embeds"] = mask_RT.new_zeros(0, dtype=self._model.dtype)
        if self._num_encoded:
            # The cache holds what the decoder needs of the encoder; only the shape is asked for.
            encoded = mask_RT.new_zeros((1, 1, 1), dtype=self._model.dtype).expand(len(ids_RM), self._num_encoded, 1)
            given |= {"decoder_input_ids": ids_RM, "encoder_outputs": BaseModelOutput(last_hidden_state=encoded)}
        else:
            given |= {"input_ids": ids_RM, "attention_mask": torch.cat([mask_RT, torch.ones_like(ids_RM)], 1)}
        if next_R is not None:
            positions_RM = next_R[:, None] + torch.arange(ids_RM.shape[1], device=ids_RM.device)
            given["position_ids"] = positions_RM.expand(*self._leads, -1, -1)
        logits: Tensor = self._model(**given).logits
        return logits.float()


def select(cache: Any, index_R: Tensor) -> Any:
    """Return a cache of these rows of a cache, which stays as it is."""
    own = copy.copy(cache)
    if hasattr(own, "self_attention_cache"):
        own.self_attention_cache = select(own.self_attention_cache, index_R)
        own.cross_attention_cache = select(own.cross_attention_cache, index_R)
        own.is_updated = dict(own.is_updated)
        return own
    own.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in own.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict | list):  # states by number, which a layer replaces one by one
                setattr(layer, name, copy.copy(value))
    own.reorder_cache(index_R)  # which takes any rows, and knows states that batch_select_indices leaves alone
    return own


def shared_length(rows: Sequence[Row]) -> int:
    """Return how many first tokens all prompts share, at least one token short of the shortest."""
    prompts = [row["input_ids"][0] for row in rows]
    shortest = min(len(ids) for ids in prompts)
    first_S = prompts[0][:shortest]
    differs_S = torch.zeros(shortest, dtype=torch.bool)
    for ids in prompts[1:]:
        differs_S |= ids[:shortest] != first_S
    differing = differs_S.nonzero()
    return min(int(differing[0]) if len(differing) else shortest, shortest - 1)


def shares_its_picture(model: Any, look: Look) -> bool:
    """Return whether all of the picture lies in what the prompts of a look share."""
    rest_S = look.rows[0]["input_ids"][0, shared_length(look.rows) :]
    tokens = [getattr(model.config, name, None) for name in ("image_token_id", "image_token_index")]
    known = [token for token in tokens if isinstance(token, int)]
    return bool(known) and not torch.isin(rest_S, torch.tensor(known)).any()


def rows_behind_prefix(
    model: Any, look: Look, max_new_tokens: int, max_tokens: int, copies: int = 1
) -> Iterator[tuple[list[int], PlainRows, Tensor]]:
    """Yield (which prompts of the look, rows behind them, logits_RV of their first tokens), what all prompts share computed once.

    max_tokens: of prompts and answers held at once. copies: in which each row will be held at once.
    """
    shared = shared_length(look.rows)
    positions = [positions_of(model, look, row) for row in look.rows]
    first = {name: value[:, :shared] for name, value in look.rows[0].items()}
    out = model(
        **to_device(look.picture, model.device, model.dtype),
        **to_device(first, model.device, model.dtype),
        position_ids=positions[0][..., :shared].to(model.device),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = out.past_key_values
    suffixes = [row["input_ids"][0, shared:] for row in look.rows]
    # A window is counted in cells of the cache, so padding would push what is seen out of it; a running state would take it in.
    padded = not any(cache.is_sliding) and not any(getattr(cache, "is_linear", ()))
    for group in _groups(suffixes, shared, max_new_tokens, max_tokens // copies, padded=padded):
        own = [suffixes[i] for i in group]
        yield group, *_rows_of_group(model, cache, shared, own, [positions[i][..., shared:] for i in group], max_tokens)


def positions_of(model: Any, look: Look, row: Row) -> Tensor:
    """Return the positions of a whole prompt: (1, S), or (3, 1, S) for families with time, height and width (M-RoPE)."""
    ids = row["input_ids"]
    rope = getattr(model.base_model, "get_rope_index", None)
    if rope is None:
        return torch.arange(ids.shape[1])[None]
    grids = {name: value for name, value in look.picture.items() if name.endswith("grid_thw")}
    positions_31S: Tensor = rope(ids, mm_token_type_ids=row["mm_token_type_ids"], **grids)[0]
    return positions_31S


def _groups(
    suffixes: Sequence[Tensor], shared: int, max_new_tokens: int, max_tokens: int, *, padded: bool
) -> list[list[int]]:
    """Return which prompts go on together: so many that the budget is kept, and of one length where they may not be padded."""
    order = list(range(len(suffixes)))
    if not padded:
        order.sort(key=lambda i: (len(suffixes[i]), i))
    groups: list[list[int]] = []
    longest = 0
    for i in order:
        length = len(suffixes[i])
        longest = max(longest, length)
        fits = groups and (len(groups[-1]) + 1) * (shared + longest + max_new_tokens) <= max_tokens
        if groups and fits and (padded or length == len(suffixes[groups[-1][0]])):
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = length
    return groups


def _rows_of_group(
    model: Any, cache: Any, shared: int, suffixes: Sequence[Tensor], positions: Sequence[Tensor], max_tokens: int
) -> tuple[PlainRows, Tensor]:
    """Return rows behind R suffixes of a shared prompt of one row, and the logits of their first tokens."""
    device, longest, num_rows = model.device, max(len(suffix) for suffix in suffixes), len(suffixes)
    ids_RS = torch.zeros(num_rows, longest, dtype=torch.long)
    mask_RT = torch.ones(num_rows, shared + longest, dtype=torch.long)
    # Padding stands between what is shared and what is not; nothing looks at it, and its own positions mean nothing.
    places = positions[0].new_zeros((*positions[0].shape[:-2], num_rows, longest))
    for i, (suffix, own) in enumerate(zip(suffixes, positions, strict=True)):
        pad = longest - len(suffix)
        ids_RS[i, pad:] = suffix
        mask_RT[i, shared : shared + pad] = 0
        places[..., i, pad:] = own[..., 0, :]
    # The first new token stands behind the farthest one of the whole prompt. Text follows the picture, so that is the last one.
    next_R = places.reshape(-1, num_rows, longest).amax((0, 2)) + 1
    cache, mask_RT = select(cache, torch.zeros(num_rows, dtype=torch.long, device=device)), mask_RT.to(device)
    out = model(
        input_ids=ids_RS.to(device),
        attention_mask=mask_RT,
        position_ids=places.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    leads = tuple(places.shape[:-2])
    rows = PlainRows(model, cache, mask_RT, next_R.to(device), leads=leads, max_tokens=max_tokens)
    return rows, out.logits[:, -1].float()
