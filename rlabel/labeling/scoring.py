"""How probable given texts are as the answers to some questions: each text by teacher forcing behind its own question, many at once.

Legend: C texts, M tokens of the longest, N questions, X wanted logits, V vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlabel.labeling.rows import Rows, Texts

# Logits of scored texts held at once, numbers.
_MAX_LOGITS = 1 << 26
_Text = tuple[int, list[int]]


def score_rows(rows: Rows, first_NV: Tensor, texts: Sequence[_Text], most: int) -> list[float]:
    """Return the log-probability of each text as what its row says next; the rows stay as they are.

    first_NV: logits of the rows' first tokens. texts: (row, token ids), rows ascending. most: texts at once.
    """
    norm_N = first_NV.float().logsumexp(-1).double()
    scores: list[float] = []
    for chunk in _chunks(texts, most, first_NV.shape[-1]):
        row_C = torch.tensor([row for row, _ in chunk])
        longest = max(len(ids) for _, ids in chunk)
        ids_CM = torch.tensor([[*ids, *[0] * (longest - len(ids))] for _, ids in chunk], device=first_NV.device)
        lengths_C = torch.tensor([len(ids) for _, ids in chunk], device=first_NV.device)
        on_device_C = row_C.to(first_NV.device)
        score_C = first_NV[on_device_C, ids_CM[:, 0]].double() - norm_N[on_device_C]
        longer_C = lengths_C > 1
        if longest > 1:
            fed = longer_C.nonzero()[:, 0]
            own = Texts(ids_RM=ids_CM[fed, :-1], lengths_R=lengths_C[fed] - 1, first_R=torch.zeros_like(fed))
            logits_XV = rows.fork(row_C[fed.cpu()]).try_texts(own).float()
            which_X, place_X = own.wanted_RM.nonzero(as_tuple=True)
            next_X = ids_CM[fed[which_X], place_X + 1]
            logprob_X = logits_XV.gather(1, next_X[:, None])[:, 0].double() - logits_XV.logsumexp(-1).double()
            score_C = score_C.index_add(0, fed[which_X], logprob_X)
        scores += score_C.tolist()
    return scores


def _chunks(texts: Sequence[_Text], most: int, vocabulary_size: int) -> Iterator[list[_Text]]:
    """Yield the texts in their order, so many at a time that neither their number nor their logits get out of hand."""
    chunk: list[_Text] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text[1]))
        if chunk and (len(chunk) == most or (len(chunk) + 1) * longest * vocabulary_size > _MAX_LOGITS):
            yield chunk
            chunk, longest = [], len(text[1])
        chunk.append(text)
    if chunk:
        yield chunk
