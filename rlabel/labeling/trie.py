"""The names of a vocabulary as a trie of token ids, so that decoding can be kept inside it: no loop over rows or tokens in Python.

Legend: N names, E edges, S nodes, R rows that are decoded together, C children of the fullest node among theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rlabel.errors import InputError

ROOT = 0


class Trie:
    """token_E, child_E: the edges, those of a node side by side with ascending tokens; first_S: where a node's edges begin, with one more entry at the end.

    A node without edges is the end of a name. name_S: which name ends at a node, the first of equal ones; -1 elsewhere.
    """

    def __init__(self, names: Iterable[Sequence[int]], device: torch.device | str = "cpu") -> None:
        """names: token ids of each, end token included; repeated ones count once.

        Raises InputError where there is none, one is empty, or one goes on behind the end of another.
        """
        edges: list[dict[int, int]] = [{}]
        ends: dict[int, int] = {}
        for number, ids in enumerate(names):
            node = ROOT
            if not ids:
                raise InputError(
                    "vocabulary: expected tokens of every name, got a name without any. Take the empty name out."
                )
            for token in ids:
                if node in ends:
                    raise InputError(
                        f"vocabulary: tokens {list(ids)} go on behind the end of another name. Names need an end token."
                    )
                if token not in edges[node]:
                    edges[node][token] = len(edges)
                    edges.append({})
                node = edges[node][token]
            if edges[node]:
                raise InputError(
                    f"vocabulary: tokens {list(ids)} are the beginning of another name. Names need an end token."
                )
            ends.setdefault(node, number)
        if not ends:
            raise InputError("vocabulary: expected names to choose from, got none.")
        counts = torch.tensor([len(own) for own in edges])
        self.first_S = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).to(device)
        self.token_E = torch.tensor([token for own in edges for token in sorted(own)], device=device)
        self.child_E = torch.tensor([own[token] for own in edges for token in sorted(own)], device=device)
        self.name_S = torch.tensor([ends.get(node, -1) for node in range(len(edges))], device=device)
        self.longest = _depth(edges)

    def go_on(self, logprobs_RV: Tensor, node_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logprob_RC, token_RC, child_RC) of all ways on from each row's node; filled up with -inf.

        The end of a name goes on to itself, for nothing, by token -1.
        """
        edge_RC, logprob_RC = self._edges(logprobs_RV, node_R)
        ended_R1 = self.ended(node_R)[:, None]
        stays_RC = ended_R1 & (torch.arange(edge_RC.shape[1], device=node_R.device) == 0)
        return (
            logprob_RC.masked_fill(stays_RC, 0.0),
            self.token_E[edge_RC].masked_fill(ended_R1, -1),
            torch.where(ended_R1, node_R[:, None], self.child_E[edge_RC]),
        )

    def _edges(self, values_RV: Tensor, node_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return (edge_RC, value_RC): the edges of each row's node with the values of their tokens; filled up with -inf."""
        first_R = self.first_S[node_R]
        count_R = self.first_S[node_R + 1] - first_R
        place_C = torch.arange(max(1, int(count_R.max())), device=values_RV.device)
        edge_RC = (first_R[:, None] + place_C).clamp(max=len(self.token_E) - 1)
        return edge_RC, values_RV.gather(1, self.token_E[edge_RC]).masked_fill(place_C >= count_R[:, None], -torch.inf)

    def ended(self, node_R: Tensor) -> Tensor:
        """Return bool (R,): which rows have come to the end of a name."""
        return self.first_S[node_R + 1] == self.first_S[node_R]


def _depth(edges: Sequence[dict[int, int]]) -> int:
    """Return the number of tokens of the longest name. Children have higher numbers than their parents."""
    depth = [0] * len(edges)
    for node, own in enumerate(edges):
        for child in own.values():
            depth[child] = depth[node] + 1
    return max(depth)
