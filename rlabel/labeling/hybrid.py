"""Free text, and beside it how likely the model finds the names of a vocabulary: the likeliest of them, and those the text is near to.

Legend: N regions that are asked about, W names kept for each, C ways on from a node, V vocabulary of the tokenizer, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from rlabel.config import RankBy
from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.budget import Mentions
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.encoding import Encoded
from rlabel.labeling.engine import Decoded, Engine, each_region
from rlabel.labeling.ensemble import by_image, likeliest_answers
from rlabel.labeling.rows import Rows
from rlabel.labeling.search import searched
from rlabel.labeling.trie import ROOT, Trie
from rlabel.regiongpt.processing import RegionInputs
from rlabel.vocabulary.likelihood import LikelyName

# A vocabulary of so few names is scored in full: a beam as wide as that leaves nothing out.
ALL_OF = 32


class HybridDescriber:
    """Gives each region's free text with the log-probabilities of its likeliest names.

    names: those of the vocabulary, synonyms included. num_candidates: names that are looked for; all of a small vocabulary. They are found by a beam, or
    exactly where the engine's options ask for an exact search.
    near: gives, for each text, names that it is near to; they are scored as well.
    rank_by: total: the probability of the name; per_token: its mean over the name's tokens, end token included; prior: divided by what the model gives
    to the name where picture and region are blank ("contextual calibration", Zhao et al. 2021, arXiv 2102.09690). The search goes by the total in any case.
    questions: wordings, instead of the engine's question; the log-probability of a name is its mean over them, and the text is the one that all of
    them together find likeliest.
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        num_candidates: int,
        near: Callable[[Sequence[str]], list[list[str]]] | None = None,
        rank_by: RankBy = "total",
        questions: Sequence[str] = (),
    ) -> None:
        self.engine = engine
        self.names = list(dict.fromkeys(names))
        self._known = frozenset(self.names)
        self.stretches = engine.stretches_of(self.names)
        self.width = len(self.names) if len(self.names) <= ALL_OF else num_candidates
        self.near = near
        self.rank_by = rank_by
        self.prompts = [engine.processor.prompt(question) for question in questions] or [engine.prompt]
        for prompt in self.prompts:
            engine.check_mentions([[(0,)]], prompt)
        self._prior: dict[str, float] = {}

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        """Return, for each region, its free text with likely_names, best first. Images and questions are computed once."""
        return self.engine.in_parts(inputs, each_region(inputs), self._describe, self.prompts)

    @torch.inference_mode()
    def _describe(self, inputs: list[RegionInputs], asked: list[list[Mentions]]) -> list[list[Decoded]]:
        engine = self.engine
        encoded = engine.encode(inputs)
        by_prompt: list[list[Decoded]] = []
        found: list[list[dict[str, float]]] = []
        for prompt in self.prompts:
            rows, logits_NV = engine.ask(encoded.image_tokens_BTD, encoded.regions_RKD, encoded.image_index_R, prompt)
            found.append(self._found(rows, logits_NV))
            by_prompt.append(engine.go_on(rows, logits_NV))
        said = by_prompt[0] if len(by_prompt) == 1 else likeliest_answers(engine, encoded, self.prompts, by_prompt)
        ranked = self._ranked(encoded, self._scored(encoded, said, found))
        answers = iter([replace(answer, likely_names=own) for answer, own in zip(said, ranked, strict=True)])
        return [[next(answers) for _ in rows] for rows in asked]

    def _found(self, rows: Rows, logits_NV: Tensor) -> list[dict[str, float]]:
        """Return the names that a search finds for each row, with their log-probabilities. The rows stay as they are."""
        if self.engine.options.search == "exact":
            names = [
                own[: self.width]
                for found in searched(self.stretches, rows, logits_NV, "exact", self.width)
                for own in found.names()
            ]
        else:
            embed = self.engine.model.get_input_embeddings()
            names = likeliest_names(self.stretches.trie, rows, logits_NV, self.width, embed)
        return [{self.names[number]: logprob for number, logprob in own} for own in names]

    def _scored(
        self, encoded: Encoded, said: Sequence[Decoded], found: Sequence[Sequence[dict[str, float]]]
    ) -> list[dict[str, float]]:
        """Return, for each region, the mean over the wordings of the log-probability of every name that any of them found or the text is near to."""
        wanted = [list(dict.fromkeys(name for one in own for name in one)) for own in zip(*found, strict=True)]
        for near, own in zip(near_names(self.near, said, self._known), wanted, strict=True):
            own += [name for name in near if name not in own]
        for prompt, known_R in zip(self.prompts, found, strict=True):
            missing = [[name for name in own if name not in known] for own, known in zip(wanted, known_R, strict=True)]
            scores = sum(self.engine.score_encoded(encoded, by_image(encoded, missing), prompt), [])
            for names, values, known in zip(missing, scores, known_R, strict=True):
                known.update(zip(names, values, strict=True))
        return [
            {name: sum(known_R[r][name] for known_R in found) / len(found) for name in own}
            for r, own in enumerate(wanted)
        ]

    def _ranked(self, encoded: Encoded, likely: Sequence[dict[str, float]]) -> list[tuple[LikelyName, ...]]:
        if self.rank_by == "prior":
            self._learn_priors(encoded, list(dict.fromkeys(name for own in likely for name in own)))
        return [ranked(own, self._rank) for own in likely]

    def _rank(self, name: str, logprob: float) -> float:
        if self.rank_by == "per_token":
            return logprob / len(self.engine.processor.answer_ids(name))
        return logprob - self._prior[name] if self.rank_by == "prior" else logprob

    def _learn_priors(self, encoded: Encoded, names: Sequence[str]) -> None:
        """Keep how likely names are of a blank region of a blank picture."""
        new = [name for name in names if name not in self._prior]
        if new:
            blank = Encoded(
                image_tokens_BTD=torch.zeros_like(encoded.image_tokens_BTD[:1]),
                regions_RKD=torch.zeros_like(encoded.regions_RKD[:1]),
                counts=(1,),
            )
            for name in new:
                # One at a time: what is kept must not hang on which names another shard brought first.
                scores = [self.engine.score_encoded(blank, [[[name]]], prompt)[0][0][0] for prompt in self.prompts]
                self._prior[name] = sum(scores) / len(scores)


def near_names(
    near: Callable[[Sequence[str]], list[list[str]]] | None, said: Sequence[Decoded], names: Set[str]
) -> list[list[str]]:
    """Return, for each text, the names that it is near to, each once; none for a text that is a name itself."""
    texts = [] if near is None else list(dict.fromkeys(answer.text for answer in said if answer.text not in names))
    found = dict(zip(texts, near(texts), strict=True)) if near is not None and texts else {}
    return [[name for name in dict.fromkeys(found.get(answer.text, ())) if name in names] for answer in said]


def ranked(likely: Mapping[str, float], rank: Callable[[str, float], float]) -> tuple[LikelyName, ...]:
    """Return names with their log-probabilities, best rank first, of equals in the order of the alphabet. rank: of a name and its log-probability."""
    names = [LikelyName(name=name, logprob=value, rank=rank(name, value)) for name, value in likely.items()]
    return tuple(sorted(names, key=lambda one: (-one.rank, one.name)))


def likeliest_names(
    trie: Trie, rows: Rows, logits_NV: Tensor, width: int, embed: Callable[[Tensor], Tensor]
) -> list[list[tuple[int, float]]]:
    """Return, for each of some rows, (number of a name in the trie, its natural-log probability as the whole answer), best first.

    A beam of `width` beginnings of names; as wide as the trie has names, it finds all of them. The rows stay as they are.
    logits_NV: of the first token. embed: what makes of token ids (R, 1) what the rows are fed with.
    """
    num, device = logits_NV.shape[0], logits_NV.device
    node_R = torch.full((num,), ROOT, device=device)
    score_NW = torch.zeros((num, 1), device=device)
    first_row_N1 = torch.arange(num, device=device)[:, None]
    logits_RV = logits_NV
    beams = rows.fork(torch.arange(num))
    for depth in range(trie.longest):
        logprob_RC, token_RC, child_RC = trie.go_on(logits_RV.float().log_softmax(-1), node_R)
        num_ways = logprob_RC.shape[1]
        total_NE = (score_NW.flatten()[:, None] + logprob_RC).view(num, -1)
        score_NW, kept_NW = total_NE.topk(min(width, total_NE.shape[1]))
        # Beams in the order of what they go on from, as rows are kept.
        kept_NW, order_NW = kept_NW.sort(1)
        score_NW = score_NW.gather(1, order_NW)
        kept_from_R = (first_row_N1 * (total_NE.shape[1] // num_ways) + kept_NW // num_ways).flatten()
        node_R = child_RC.view(num, -1).gather(1, kept_NW).flatten()
        token_R = token_RC.view(num, -1).gather(1, kept_NW).flatten()
        over_R = trie.ended(node_R) | score_NW.flatten().isneginf()
        if bool(over_R.all()) or depth == trie.longest - 1:
            break
        beams.keep(kept_from_R.cpu())
        logits_RV = beams.feed(embed(token_R.clamp_min(0)[:, None]))
    score_NW, order_NW = score_NW.sort(dim=1, descending=True, stable=True)
    name_NW = trie.name_S[node_R].view(num, -1).gather(1, order_NW).cpu()
    return [
        [(name, score) for name, score in zip(names, scores, strict=True) if name >= 0 and score > -torch.inf]
        for names, scores in zip(name_NW.tolist(), score_NW.cpu().tolist(), strict=True)
    ]
