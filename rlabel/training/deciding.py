"""The decision that alignment prepared, told to the language model token by token: how likely each name is, not only which one is nearest.

A name is a path through the tokens of all names. At every token of the path the probabilities of the names that begin as the path does, added up by
their next token, are what the language model is to say (distillation with soft targets, Hinton et al. 2015, arXiv 1503.02531). So one region token says
something about every name, and the probabilities of answers are those of the alignment.

Legend: N names, L tokens of the longest name with its end token, P answer tokens, V vocabulary, R regions and S scripts of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlabel.prompts.tasks import RegionFacts
from rlabel.prompts.templates import Turn
from rlabel.training.packing import Row

_NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A packed row with its picture and the regions that its scripts mention.

    decided_S: of scripts that ask for a region's name, (region, number of its name); None for others. likely_RN: the probabilities of names.
    """

    row: Row
    image_1TD: Tensor
    regions_RKD: Tensor
    decided_S: tuple[tuple[int, int] | None, ...] = ()
    likely_RN: Tensor | None = None


class NamePaths:
    """next_NL: each name's tokens, _NONE behind its end. begun_NL: a number for what comes before each token, the same for names that begin alike."""

    def __init__(self, answer_ids: Mapping[str, Sequence[int]]) -> None:
        self.index = {name: n for n, name in enumerate(answer_ids)}
        longest = max((len(ids) for ids in answer_ids.values()), default=0)
        known: dict[tuple[int, ...], int] = {}
        self.next_NL = torch.full((len(answer_ids), longest), _NONE)
        self.begun_NL = torch.full((len(answer_ids), longest), _NONE)
        for n, ids in enumerate(answer_ids.values()):
            self.next_NL[n, : len(ids)] = torch.tensor(ids)
            for depth in range(len(ids)):
                self.begun_NL[n, depth] = known.setdefault(tuple(ids[:depth]), len(known))

    def decided(self, turn: Turn, facts: Sequence[RegionFacts]) -> tuple[int, int] | None:
        """Return (region, number of its name) where a question asks for the name of one region, else None."""
        if len(turn.mentions) != 1 or turn.answer is None or turn.answer != facts[turn.mentions[0]].name:
            return None
        return turn.mentions[0], self.index[turn.answer]

    def put_in(
        self, loss_P: Tensor, logits_PV: Tensor, rows: Sequence[ShownRow], places: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return loss_P with the losses of those tokens replaced that belong to a name whose probability is known. places: row and token of each."""
        at, likely, path, depth = [], [], [], []
        num_before: dict[tuple[int, int], int] = {}
        for i, (b, t) in enumerate(places):
            shown = rows[b]
            owner = shown.row.owners[t]
            decided = shown.decided_S[owner] if shown.decided_S else None
            if decided is None or shown.likely_RN is None:
                continue
            at.append(i)
            likely.append(shown.likely_RN[decided[0]])
            path.append(decided[1])
            depth.append(num_before.setdefault((b, owner), 0))
            num_before[b, owner] += 1
        if not at:
            return loss_P
        device = loss_P.device
        path_Q, depth_Q = torch.tensor(path, device=device), torch.tensor(depth, device=device)
        loss_Q = self.loss(logits_PV[at].log_softmax(-1), torch.stack(likely), path_Q, depth_Q)
        return loss_P.index_copy(0, torch.tensor(at, device=device), loss_Q)

    def loss(self, log_probabilities_PV: Tensor, likely_PN: Tensor, path_P: Tensor, depth_P: Tensor) -> Tensor:
        """Return loss_P, the cross-entropy of each next token against the names' probabilities.

        log_probabilities_PV: what the model says of every token. likely_PN: the names' probabilities. path_P: the name whose tokens lie before each
        place; depth_P: how many of them.
        """
        device = log_probabilities_PV.device
        next_PN, begun_PN = self.next_NL.to(device).T[depth_P], self.begun_NL.to(device).T[depth_P]
        goes_on_PN = begun_PN == begun_PN.gather(1, path_P[:, None])
        share_PN = likely_PN.masked_fill(~goes_on_PN, 0.0)
        # Where even the names that go on are next to impossible, the token teaches nothing, rather than a division by zero.
        share_PN = share_PN / share_PN.sum(1, keepdim=True).clamp_min(1e-12)
        said_PN = log_probabilities_PV.gather(1, next_PN.clamp_min(0))
        return -(share_PN * said_PN.masked_fill(~goes_on_PN, 0.0)).sum(1)
