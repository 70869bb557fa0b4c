"""Answers in free text that grow token by token, greedily, behind rows.

Legend: R rows that are fed, N answers, M tokens of the longest, V vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rlabel.labeling.rows import CascadeRows, Rows

# A step of fewer rows pays for the copying that it takes once this share of them is done.
_DONE_SHARE = 0.25
R = TypeVar("R", Rows, CascadeRows)


class Growing(Generic[R]):
    """The answers behind some rows that were asked together. most: tokens of an answer, its stop token included.

    token_R: to be fed next, one a row; rows whose answers are done are still among them until they are worth taking out.
    """

    def __init__(self, rows: R, num_answers: int, most: int, device: torch.device) -> None:
        self.rows: R = rows
        self.token_R = torch.zeros(num_answers, dtype=torch.long, device=device)
        self.is_done = num_answers == 0
        self._most = most
        self._number = 0
        self._tokens_NM = torch.zeros((num_answers, most), dtype=torch.long, device=device)
        self._logprobs_NM = torch.zeros((num_answers, most), device=device)
        # On the CPU: the answer of each row, which of them are done, and the lengths of all answers.
        self._answer_R = torch.arange(num_answers)
        self._done_R = torch.zeros(num_answers, dtype=torch.bool)
        self._length_N = torch.zeros(num_answers, dtype=torch.long)
        self._on_device_R = self._answer_R.to(device)

    @property
    def num_rows(self) -> int:
        return len(self._answer_R)

    def take(self, token_R: Tensor, logprob_R: Tensor, stops_R: Tensor) -> None:
        """Put a token behind each answer that is not done. stops_R: whether it is a stop token; on the CPU."""
        self._tokens_NM[self._on_device_R, self._number] = token_R
        self._logprobs_NM[self._on_device_R, self._number] = logprob_R
        self._length_N[self._answer_R[~self._done_R]] += 1
        self._number += 1
        self._done_R = self._done_R | stops_R
        self.token_R = token_R
        num_done = int(self._done_R.sum())
        if num_done == len(self._done_R) or self._number == self._most:
            self.is_done = True
        elif num_done >= _DONE_SHARE * len(self._done_R):
            kept_R = (~self._done_R).nonzero()[:, 0]
            self.rows.keep(kept_R)
            self._answer_R, self._done_R = self._answer_R[kept_R], self._done_R[kept_R]
            kept_on_device_R = kept_R.to(token_R.device)
            self._on_device_R, self.token_R = self._on_device_R[kept_on_device_R], token_R[kept_on_device_R]

    def answers(self) -> list[tuple[list[int], list[float]]]:
        """Return the token ids of each answer with their natural-log probabilities, stop token included."""
        lists = (self._tokens_NM.tolist(), self._logprobs_NM.tolist(), self._length_N.tolist())
        return [(ids[:length], logprobs[:length]) for ids, logprobs, length in zip(*lists, strict=True)]


def pick(growing: Sequence[Growing[R]], logits_RV: Tensor, stop_ids: Tensor) -> None:
    """Put the likeliest token behind the answers of all rows. logits_RV: the rows of the first of `growing` stand first."""
    # Picked from the raw logits, as generate does: a log-softmax may round two of them together.
    token_R = logits_RV.argmax(-1)
    logprob_R = logits_RV.gather(1, token_R[:, None])[:, 0].float() - logits_RV.float().logsumexp(-1)
    # The one wait for the device in a step.
    stops_R = torch.isin(token_R, stop_ids).cpu()
    sizes = [one.num_rows for one in growing]
    parts = (values_R.split(sizes) for values_R in (token_R, logprob_R, stops_R))
    for one, *own in zip(growing, *parts, strict=True):
        one.take(*own)
