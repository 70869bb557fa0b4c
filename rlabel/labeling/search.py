"""The likeliest names of a trie behind each of some rows: token by token, or exactly, by best-first search.

The probability of a beginning bounds that of every name that goes on from it, so the search goes on from the likeliest beginnings only, of all rows
together, and ends when the best name found is at least as likely as every beginning that is left (A* with no estimate of the rest; Hart et al. 1968).
What is left is known as a sum too, and bounds what the names found make up of all names together. Where a beginning leaves one name only, its
remaining tokens are fed at once: they are decided, and fed only because a score is the model's own probability of the whole answer.

Legend: R rows, S nodes of the trie, U stretches (see `Stretches`), C stretches tried at once, M tokens of the longest, K ways on from a node,
L names, X wanted logits, V vocabulary of the tokenizer. Probabilities are natural logarithms, float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from rlabel.labeling.rows import Rows, Texts
from rlabel.labeling.trie import ROOT, Trie

How = Literal["greedy", "exact", "all"]
# Numbers held at once: of the tables of a search, and logits.
_MAX_TABLE = 1 << 25
_MAX_LOGITS = 1 << 26
# A step with few tokens costs as much as one with so many: what it has room for is used to try the next best stretches as well.
_ROOM = 24
# Of those, such as are less likely than the best by this factor will most often not be needed.
_UNLIKELY = 3.0


class Stretches:
    """The nodes at which a search goes on, each with the tokens up to where there is a choice again, or the end of a name.

    head_U: the node where a stretch begins; of_node_S: the stretch that begins at a node, -1 for none. tokens_UM, node_UM: the way from the root to its
    last node; depth_U: number of tokens up to its head, length_U: up to its last node. end_L: the end of each name, names in their order; of_end_S: the
    name that ends at a node; way_LM, token_LM: nodes and tokens of each name, filled up with -1 on the left.
    """

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        device = trie.token_E.device
        first, token, child = trie.first_S.tolist(), trie.token_E.tolist(), trie.child_E.tolist()
        heads: list[int] = []
        ways: list[tuple[list[int], list[int]]] = []
        depths: list[int] = []
        waiting: list[tuple[int, list[int], list[int]]] = [(ROOT, [], [])]
        while waiting:
            node, tokens, nodes = waiting.pop()
            for edge in range(first[node], first[node + 1]):
                head = child[edge]
                way, way_nodes = [*tokens, token[edge]], [*nodes, head]
                depth, last = len(way), head
                # On to where there is a choice, or where the next token ends a name.
                while first[last + 1] - first[last] == 1 and _goes_on(first, child[first[last]]):
                    way.append(token[first[last]])
                    last = child[first[last]]
                    way_nodes.append(last)
                if not _goes_on(first, last):
                    continue
                heads.append(head)
                ways.append((way, way_nodes))
                depths.append(depth)
                if first[last + 1] - first[last] > 1:
                    waiting.append((last, way, way_nodes))
        longest = max((len(way) for way, _ in ways), default=1)
        self.head_U = torch.tensor(heads, dtype=torch.long, device=device)
        self.depth_U = torch.tensor(depths, dtype=torch.long, device=device)
        self.length_U = torch.tensor([len(way) for way, _ in ways], dtype=torch.long, device=device)
        fill = [0] * longest
        self.tokens_UM = torch.tensor([[*way, *fill][:longest] for way, _ in ways], dtype=torch.long, device=device)
        self.node_UM = torch.tensor([[*nodes, *fill][:longest] for _, nodes in ways], dtype=torch.long, device=device)
        self.num_nodes = len(first) - 1
        self.of_node_S = torch.full((self.num_nodes,), -1, dtype=torch.long, device=device)
        self.of_node_S[self.head_U] = torch.arange(len(heads), device=device)
        end_S = (trie.name_S >= 0).nonzero()[:, 0]
        self.end_L = end_S[trie.name_S[end_S].argsort()]
        self.of_end_S = torch.full((self.num_nodes,), -1, dtype=torch.long, device=device)
        self.of_end_S[self.end_L] = torch.arange(len(self.end_L), device=device)
        parent = torch.full((self.num_nodes,), -1, dtype=torch.long, device=device)
        edge_count_S = trie.first_S[1:] - trie.first_S[:-1]
        parent[trie.child_E] = torch.repeat_interleave(torch.arange(self.num_nodes, device=device), edge_count_S)
        steps = [self.end_L]
        for _ in range(trie.longest - 1):
            steps.append(torch.where(steps[-1] > ROOT, parent[steps[-1].clamp_min(0)], -1))
        # The root, and what is above it, is no token.
        way_LM = torch.stack(steps[::-1], 1)
        self.way_LM = way_LM.masked_fill(way_LM == ROOT, -1)
        token_S = torch.full((self.num_nodes,), -1, dtype=torch.long, device=device)
        token_S[trie.child_E] = trie.token_E
        self.token_LM = token_S[self.way_LM.clamp_min(0)].masked_fill(self.way_LM < 0, -1)
        self.most_ways = int(edge_count_S.max())


def _goes_on(first: list[int], node: int) -> bool:
    return first[node + 1] > first[node]


class Found:
    """What a search knows of some rows. total_RS: probability of the beginning up to a node, -inf where it is not known; token_RS: of its last token.

    chosen_R: the name that the search went for, counted as the names of `Stretches` are.
    """

    def __init__(self, stretches: Stretches, rows: Rows, logits_RV: Tensor) -> None:
        self.stretches = stretches
        self._rows = rows
        num_rows = len(logits_RV)
        shape, device = (num_rows, stretches.num_nodes), logits_RV.device
        self.token_RS = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.total_RS = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.open_RU = torch.ones((num_rows, len(stretches.head_U)), dtype=torch.bool, device=device)
        self.chosen_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        row_R = torch.arange(num_rows, device=device)
        root_R = torch.full((num_rows,), ROOT, device=device)
        self._add_ways_on(row_R, root_R, torch.zeros(num_rows, dtype=torch.float64, device=device), logits_RV)

    @property
    def ends_RL(self) -> Tensor:
        """Return the probability of each name, -inf where it is not known."""
        return self.total_RS[:, self.stretches.end_L]

    @property
    def bounds_RU(self) -> Tensor:
        """Return what no name beyond an open stretch exceeds; -inf for stretches that were tried or cannot be reached yet."""
        return self.total_RS[:, self.stretches.head_U].masked_fill(~self.open_RU, -torch.inf)

    def choose_best(self) -> None:
        """Choose the likeliest name found, of equals the first."""
        ends_RL = self.ends_RL
        number_L = torch.arange(ends_RL.shape[1], device=ends_RL.device)
        is_best_RL = ends_RL >= ends_RL.amax(1, keepdim=True)
        self.chosen_R = number_L.masked_fill(~is_best_RL, len(number_L) - 1).amin(1)

    def names(self) -> list[list[tuple[int, float]]]:
        """Return (name, its probability) of the names found for each row, best first, of equals the first."""
        values_RL, order_RL = self.ends_RL.sort(dim=1, descending=True, stable=True)
        rows = zip(order_RL.tolist(), values_RL.tolist(), strict=True)
        return [
            [(name, value) for name, value in zip(names, values, strict=True) if value > -torch.inf]
            for names, values in rows
        ]

    def answers(self) -> list[tuple[list[int], list[float], tuple[float, float]]]:
        """Return, for each row, tokens of the chosen name, their probabilities, and the bounds of its share in the probability of all names."""
        own = self.stretches
        way_RM, token_RM = own.way_LM[self.chosen_R], own.token_LM[self.chosen_R]
        logprob_RM = self.token_RS.gather(1, way_RM.clamp_min(0))
        chosen_R = self.ends_RL.gather(1, self.chosen_R[:, None])[:, 0]
        known_R = self.ends_RL.logsumexp(1)
        at_most_R = torch.logaddexp(known_R, self.bounds_RU.logsumexp(1)) if len(own.head_U) else known_R
        low, high = (chosen_R - at_most_R).exp().tolist(), (chosen_R - known_R).exp().tolist()
        rows = zip(token_RM.tolist(), logprob_RM.tolist(), low, high, strict=True)
        return [
            ([token for token in tokens if token >= 0], logprobs[-sum(token >= 0 for token in tokens) :], (least, most))
            for tokens, logprobs, least, most in rows
        ]

    def try_stretches(self, row_C: Tensor, stretch_C: Tensor) -> None:
        """Feed some stretches behind some rows (ascending) and note what becomes known."""
        vocabulary_size = self._vocabulary_size
        longest = int(self.stretches.length_U.max())
        size = max(1, _MAX_LOGITS // (vocabulary_size * longest))
        for start in range(0, len(row_C), size):
            self._try(row_C[start : start + size], stretch_C[start : start + size])

    def _try(self, row_C: Tensor, stretch_C: Tensor) -> None:
        own = self.stretches
        depth_C, length_C = own.depth_U[stretch_C], own.length_U[stretch_C]
        longest = int(length_C.max())
        tokens_CM, node_CM = own.tokens_UM[stretch_C, :longest], own.node_UM[stretch_C, :longest]
        texts = Texts(ids_RM=tokens_CM, lengths_R=length_C, first_R=depth_C - 1)
        logits_XV = self._rows.fork(row_C.cpu()).try_texts(texts).float()
        which_X, place_X = texts.wanted_RM.nonzero(as_tuple=True)
        # Behind every token but the last one of a stretch stands the next one of it.
        is_last_X = place_X == length_C[which_X] - 1
        inner = (~is_last_X).nonzero()[:, 0]
        total_C = self.total_RS[row_C, own.head_U[stretch_C]]
        if len(inner):
            which_I, next_I = which_X[inner], place_X[inner] + 1
            token_I = _own_logprobs(logits_XV[inner], tokens_CM[which_I, next_I][:, None])[:, 0]
            token_CM = torch.zeros(tokens_CM.shape, dtype=torch.float64, device=logits_XV.device)
            token_CM[which_I, next_I] = token_I
            total_CM = total_C[:, None] + token_CM.cumsum(1)
            node_I = node_CM[which_I, next_I]
            self.token_RS[row_C[which_I], node_I] = token_I
            self.total_RS[row_C[which_I], node_I] = total_CM[which_I, next_I]
            total_C = total_CM[:, -1]
        last_C = node_CM.gather(1, length_C[:, None] - 1)[:, 0]
        self._add_ways_on(row_C, last_C, total_C, logits_XV[is_last_X])
        self.open_RU[row_C, stretch_C] = False

    def _add_ways_on(self, row_C: Tensor, node_C: Tensor, total_C: Tensor, logits_CV: Tensor) -> None:
        """Note the tokens that go on from a node of each of some rows. total_C: probability up to there."""
        self._vocabulary_size = logits_CV.shape[1]
        trie = self.stretches.trie
        first_C = trie.first_S[node_C]
        place_K = torch.arange(self.stretches.most_ways, device=node_C.device)
        which, place = (place_K < (trie.first_S[node_C + 1] - first_C)[:, None]).nonzero(as_tuple=True)
        edge = first_C[which] + place
        norm_C = logits_CV.float().logsumexp(-1).double()
        logprob = logits_CV[which, trie.token_E[edge]].double() - norm_C[which]
        self.token_RS[row_C[which], trie.child_E[edge]] = logprob
        self.total_RS[row_C[which], trie.child_E[edge]] = total_C[which] + logprob


def _own_logprobs(logits_XV: Tensor, token_XK: Tensor) -> Tensor:
    """Float64, so that no two logits that differ are rounded together."""
    return logits_XV.gather(1, token_XK).double() - logits_XV.float().logsumexp(-1, keepdim=True).double()


def searched(stretches: Stretches, rows: Rows, logits_RV: Tensor, how: How, num_best: int = 1) -> Iterator[Found]:
    """Yield what is known of the rows after a search, of so many rows at a time that the tables do not get out of hand. The rows stay as they are.

    logits_RV: of what the rows say first. greedy: the likeliest token that goes on to a name, again and again; exact: the `num_best` likeliest names are among
    those found; all: every name is found.
    """
    size = max(1, _MAX_TABLE // stretches.num_nodes)
    num_rows = len(logits_RV)
    for start in range(0, num_rows, size):
        own = rows
        if num_rows > size:
            own = rows.fork(torch.arange(start, min(num_rows, start + size)))
        found = Found(stretches, own, logits_RV[start : start + size])
        if how == "greedy":
            _go_down(found)
        else:
            num_names = len(stretches.end_L)
            _go_best_first(found, min(num_best, num_names) if how == "exact" else num_names)
            found.choose_best()
        yield found


def _go_down(found: Found) -> None:
    own = found.stretches
    trie, num_rows = own.trie, len(found.total_RS)
    row_C = torch.arange(num_rows, device=found.total_RS.device)
    node_C = torch.full_like(row_C, ROOT)
    while True:
        # The likeliest of the ways on: where a stretch was tried they are known.
        first_C = trie.first_S[node_C]
        place_K = torch.arange(own.most_ways, device=row_C.device)
        edge_CK = (first_C[:, None] + place_K).clamp(max=len(trie.token_E) - 1)
        is_way_CK = place_K < (trie.first_S[node_C + 1] - first_C)[:, None]
        logprob_CK = found.token_RS[row_C[:, None], trie.child_E[edge_CK]].masked_fill(~is_way_CK, -torch.inf)
        node_C = trie.child_E[edge_CK.gather(1, logprob_CK.argmax(1, keepdim=True))[:, 0]]
        found.chosen_R[row_C] = own.of_end_S[node_C].clamp_min(0)
        goes_on = (~trie.ended(node_C)).nonzero()[:, 0]
        if not len(goes_on):
            return
        row_C, node_C = row_C[goes_on], node_C[goes_on]
        stretch_C = own.of_node_S[node_C]
        found.try_stretches(row_C, stretch_C)
        node_C = own.node_UM[stretch_C].gather(1, own.length_U[stretch_C][:, None] - 1)[:, 0]


def _go_best_first(found: Found, num_best: int) -> None:
    own = found.stretches
    num_names, num_stretches = len(own.end_L), len(own.head_U)
    wants_all = num_best == num_names
    each = 0
    while num_stretches:
        bounds_RU = found.bounds_RU
        least_R = found.ends_RL.topk(num_best).values[:, -1]
        # A beginning as likely as the name found may lead to one that is as likely, and comes before it.
        may_win_RU = (bounds_RU >= least_R[:, None]) & (bounds_RU > -torch.inf)
        num_rows = int(may_win_RU.any(1).sum())
        if not num_rows:
            return
        # More and more a row: one that is still undecided after a few steps will need many, and steps have their price.
        each = num_stretches if wants_all else min(num_stretches, max(2 * each, _ROOM // num_rows, 1))
        best_RW, stretch_RW = bounds_RU.masked_fill(~may_win_RU, -torch.inf).topk(each)
        chosen_RW = best_RW > -torch.inf
        if not wants_all:
            chosen_RW &= best_RW >= best_RW[:, :1] - _UNLIKELY
        row_C, place_C = chosen_RW.nonzero(as_tuple=True)
        found.try_stretches(row_C, stretch_RW[row_C, place_C])
