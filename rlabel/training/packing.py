"""Conversations of one picture laid end to end in one row, where each sees the shared prefix and itself only.

So the picture's tokens, and whatever else all conversations begin with, pass through the language model once.

Legend: T tokens of a row, D width, B rows, V vocabulary, R region features of the row's mentions, K tokens a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rlabel.prompts.templates import Turn
from rlabel.regiongpt.processing import RegionGPTProcessor

IGNORED = -100
PREFIX = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A conversation as tokens. labels: what the model is to say after each token, else IGNORED. mentions: the regions of its `<region>`s in order."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    mentions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Scripts laid end to end. labels: the token after each, where it is to be said, else IGNORED. owners: the script of a token, PREFIX for what is shared."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    owners: tuple[int, ...]
    mentions: tuple[int, ...]


def script(processor: RegionGPTProcessor, turns: Sequence[Turn]) -> Script:
    """Return the tokens of a conversation whose turns all have answers.

    After an answer the model is to say the end token. What follows it is what the chat template lays there, as when the labeler goes on asking.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(turns):
        assert turn.answer is not None
        said = processor.answer_ids(turn.answer)
        asked = processor.turn_ids(turns[: number + 1])
        ids += [*asked, *said[:-1]]
        labels += [*[IGNORED] * (len(asked) - 1), *said]
    mentions = tuple(index for turn in turns for index in turn.mentions)
    return Script(ids=tuple(ids), labels=tuple(labels), mentions=mentions)


def pack(scripts: Sequence[Script], region_token_id: int) -> Row:
    """Return scripts as one row. What all begin with is laid once, up to the first region or the first token that an answer follows."""
    shared = _shared_length(scripts, region_token_id)
    ids = list(scripts[0].ids[:shared])
    labels = [IGNORED] * shared
    positions = list(range(shared))
    owners = [PREFIX] * shared
    for owner, one in enumerate(scripts):
        ids += one.ids[shared:]
        labels += one.labels[shared:]
        positions += range(shared, len(one.ids))
        owners += [owner] * (len(one.ids) - shared)
    return Row(
        ids=tuple(ids),
        labels=tuple(labels),
        positions=tuple(positions),
        owners=tuple(owners),
        mentions=tuple(index for one in scripts for index in one.mentions),
    )


def _shared_length(scripts: Sequence[Script], region_token_id: int) -> int:
    first = scripts[0].ids
    shared = len(first)
    for one in scripts:
        longest = min(shared, len(one.ids))
        shared = next(
            (
                i
                for i in range(longest)
                if one.ids[i] != first[i] or first[i] == region_token_id or one.labels[i] != IGNORED
            ),
            longest,
        )
    return shared


def attention_bias(rows: Sequence[Row], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return (bias_B1TT: 0 where a token sees, the lowest number where not; labels_BT; positions_BT) of rows padded at their ends."""
    longest = max(len(row.ids) for row in rows)
    labels_BT = torch.full((len(rows), longest), IGNORED)
    positions_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    # Padding is seen by nothing; each padding token sees itself, or its softmax would be over nothing.
    visible_B1TT = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1, 1)
    for i, row in enumerate(rows):
        length = len(row.ids)
        labels_BT[i, :length] = torch.tensor(row.labels)
        positions_BT[i, :length] = torch.tensor(row.positions)
        owner_T = torch.tensor(row.owners)
        before_TT = torch.ones(length, length, dtype=torch.bool).tril()
        own_TT = (owner_T[None, :] == PREFIX) | (owner_T[None, :] == owner_T[:, None])
        visible_B1TT[i, 0, :length, :length] = before_TT & own_TT
    bias_B1TT = torch.zeros(visible_B1TT.shape, dtype=dtype, device=device)
    bias_B1TT.masked_fill_(~visible_B1TT.to(device), torch.finfo(dtype).min)
    return bias_B1TT, labels_BT.to(device), positions_BT.to(device)


def stack(embeddings: Sequence[Tensor]) -> Tensor:
    """Return embeddings_BTD of rows of different lengths, zeros behind the shorter ones."""
    longest = max(len(row_TD) for row_TD in embeddings)
    return torch.stack([F.pad(row_TD, (0, 0, 0, longest - len(row_TD))) for row_TD in embeddings])
