"""Answers of a plain model among the names of a vocabulary: one of them for an answer, or how likely they are beside the free text.

The search and the scores are RegionGPT's (`labeling.search`, `labeling.scoring`, `labeling.hybrid`); here is only what differs: how a model writes a
name as its whole answer, and what rows it is tried behind.

Legend: R regions, V vocabulary of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlabel.config import RankBy, Search
from rlabel.errors import InputError
from rlabel.labeling.engine import Decoded
from rlabel.labeling.hybrid import ALL_OF, likeliest_names, near_names, ranked
from rlabel.labeling.rows import Texts
from rlabel.labeling.scoring import score_rows
from rlabel.labeling.search import Stretches, searched
from rlabel.labeling.trie import Trie
from rlabel.vlm.decoding import Given, generate
from rlabel.vlm.inputs import PlainProcessor
from rlabel.vlm.rows import PlainRows

# Tokens that a model is tried with before it is trusted with names.
_TRIED = 4
# Share of the largest logit by which one may differ; with fewer bits, the same sum in another order rounds otherwise.
_WORST, _WORST_ROUNDED = 0.02, 0.15


class AnswerTokens:
    """How a model writes a text as its whole answer: with what its chat template puts before and behind an assistant's turn."""

    def __init__(self, processor: PlainProcessor, stops: Sequence[int]) -> None:
        """stops: tokens that end an answer. Raises InputError where there is none: then no answer is ever whole."""
        if not stops:
            raise InputError(
                "--decoding: this model names no token that ends an answer (eos_token_id of generation_config.json or the tokenizer), so a name "
                "cannot be told from its beginning. Use --decoding free."
            )
        self._tokenizer = processor.tokenizer
        before, self._lead, behind = processor.around_answer()
        self._context = before
        self._before = self._ids(before)
        ends = [token for token in self._tokenizer(behind, add_special_tokens=False).input_ids if token in stops]
        own = self._tokenizer.eos_token_id
        self.end = ends[0] if ends else own if own in stops else stops[0]

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text, closed by the end token. A special token's name in it stays plain text."""
        answer = self._lead + text
        whole = self._ids(self._context + answer)
        # As they stand behind the prompt: a tokenizer may write a word otherwise at the beginning of a text.
        if self._before and whole[: len(self._before)] == self._before:
            return [*whole[len(self._before) :], self.end]
        return [*self._ids(answer), self.end]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameOptions:
    """names: of the vocabulary, synonyms included. hybrid: names beside the free text, instead of one for an answer.

    num_candidates, near, rank_by: of hybrid, see `labeling.hybrid.HybridDescriber`. search: "greedy" (hybrid: a beam) or "exact".
    """

    names: tuple[str, ...]
    hybrid: bool = False
    num_candidates: int = 5
    search: Search = "greedy"
    rank_by: RankBy = "total"
    near: Callable[[Sequence[str]], list[list[str]]] | None = None
    max_texts: int = 256


class Naming:
    """Finds the names that a model finds likeliest behind the prompts of some regions."""

    def __init__(self, options: NameOptions, answer_ids: AnswerTokens, device: torch.device) -> None:
        self.options = options
        self.hybrid = options.hybrid
        self._ids = {name: answer_ids(name) for name in options.names}
        self._known = frozenset(self._ids)
        # Names that a tokenizer does not tell apart are found as the first of them.
        first = {tuple(ids): name for name, ids in reversed(self._ids.items())}
        self.names = [name for name, ids in self._ids.items() if first[tuple(ids)] == name]
        self.stretches = Stretches(Trie((self._ids[name] for name in self.names), device))
        self._stop = answer_ids.end
        self.width = len(self.names) if len(self.names) <= ALL_OF else options.num_candidates
        beam = self.hybrid and options.search == "greedy"
        # Rows that are held for each region at once.
        self.copies = self.width if beam else 1

    @property
    def longest(self) -> int:
        """Tokens of the longest name."""
        return int(self.stretches.trie.longest)

    def chosen(self, rows: PlainRows, logits_RV: Tensor) -> list[Decoded]:
        """Return one name a row as its answer. logits_RV: of the rows' first tokens."""
        answers = []
        for found in searched(self.stretches, rows, logits_RV, self.options.search):
            for number, (ids, logprobs, share) in zip(found.chosen_R.tolist(), found.answers(), strict=True):
                text_ids = tuple(token for token in ids if token != self._stop)
                answers.append(
                    Decoded(text=self.names[number], token_logprobs=tuple(logprobs), token_ids=text_ids, share=share)
                )
        return answers

    def beside(self, said: Sequence[Decoded], rows: PlainRows, logits_RV: Tensor) -> list[Decoded]:
        """Return free texts with the names that are likely where they were said. The rows stay as they are."""
        likely = self._found(rows, logits_RV)
        near = near_names(self.options.near, said, self._known)
        missing = [
            (row, name) for row, own in enumerate(near) for name in dict.fromkeys(own) if name not in likely[row]
        ]
        texts = [(row, self._ids[name]) for row, name in missing]
        if texts:
            scores = score_rows(rows, logits_RV, texts, self.options.max_texts)
            for (row, name), score in zip(missing, scores, strict=True):
                likely[row][name] = score
        return [replace(answer, likely_names=ranked(own, self._rank)) for answer, own in zip(said, likely, strict=True)]

    def _found(self, rows: PlainRows, logits_RV: Tensor) -> list[dict[str, float]]:
        if self.options.search == "exact":
            found = [
                own[: self.width]
                for part in searched(self.stretches, rows, logits_RV, "exact", self.width)
                for own in part.names()
            ]
        else:
            found = likeliest_names(self.stretches.trie, rows, logits_RV, self.width, lambda ids: ids)
        return [{self.names[number]: logprob for number, logprob in own} for own in found]

    def _rank(self, name: str, logprob: float) -> float:
        return logprob / len(self._ids[name]) if self.options.rank_by == "per_token" else logprob


@torch.inference_mode()
def check_rows(
    model: Any, given: Given, stops: Sequence[int], rows_of_it: Callable[[], tuple[PlainRows, Tensor]], *, what: str
) -> None:
    """Try whether answers tried behind rows have the probabilities that `generate` gives them; a model's own cache may not allow it.

    given: one prompt. rows_of_it: gives rows behind it, and the logits of their first tokens. what: the flag that asks for it, for the message.

    Raises InputError where they have not.
    """
    try:
        worst = _worst_difference(model, given, stops, *rows_of_it())
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
        if worst <= (_WORST if exact else _WORST_ROUNDED):
            return
        reason = f"probabilities behind a kept prompt differ by {worst:.0%} from those of transformers' generate"
    kind = model.config.model_type
    raise InputError(f"{what}: not with models of type {kind!r}: {reason}. Use --decoding free.")


def _worst_difference(model: Any, given: Given, stops: Sequence[int], rows: PlainRows, first_RV: Tensor) -> float:
    """Return by how much logits of a few tokens differ from those of `generate`, as a share of the largest."""
    out = generate(model, given, stops, _TRIED, min_new_tokens=_TRIED, return_dict_in_generate=True, output_logits=True)
    ids_1M = out.sequences[:, -_TRIED:]
    if getattr(model.generation_config, "forced_bos_token_id", None) is not None:
        ids_1M = ids_1M[:, 1:]
    logits_MV = torch.cat(out.logits).float()[-ids_1M.shape[1] :]
    fed_1M = ids_1M[:, :-1]
    lengths = torch.tensor([fed_1M.shape[1]], device=fed_1M.device)
    texts = Texts(ids_RM=fed_1M, lengths_R=lengths, first_R=torch.zeros_like(lengths))
    got_MV = torch.cat([first_RV, rows.fork(torch.arange(1)).try_texts(texts)])
    return float((got_MV - logits_MV).abs().max() / logits_MV.abs().max())
