"""Free text, and beside it how likely the model finds the names of a vocabulary: the likeliest by a beam over their trie, and those the text is near to.

Legend: N regions that are asked about, W names kept for each, C ways on from a node, V vocabulary of the tokenizer, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from rlabel.config import RankBy
from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.engine import Decoded, Encoded, Engine
from rlabel.labeling.trie import ROOT, Trie
from rlabel.regiongpt.processing import RegionInputs
from rlabel.vocabulary.likelihood import LikelyName

# A vocabulary of so few names is scored in full: a beam as wide as that leaves nothing out.
_ALL_OF = 32


class HybridDescriber:
    """Gives each region's free text with the log-probabilities of its likeliest names.

    names: those of the vocabulary, synonyms included. num_candidates: names that the beam keeps; all of a small vocabulary.
    near: gives, for each text, names that it is near to; they are scored as well.
    rank_by: total: the probability of the name; per_token: its mean over the name's tokens, end token included; prior: divided by what the model gives
    to the name where picture and region are blank ("contextual calibration", Zhao et al. 2021, arXiv 2102.09690). The beam goes by the total in any case.
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        num_candidates: int,
        near: Callable[[Sequence[str]], list[list[str]]] | None = None,
        rank_by: RankBy = "total",
    ) -> None:
        self.engine = engine
        self.names = list(dict.fromkeys(names))
        self.trie = Trie([engine.processor.answer_ids(name) for name in self.names], engine.device)
        self.width = len(self.names) if len(self.names) <= _ALL_OF else num_candidates
        self.near = near
        self.rank_by = rank_by
        self._prior: dict[str, float] = {}

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    @torch.inference_mode()
    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        """Return, for each region, its free text with likely_names, best first. Images and questions are computed once."""
        counts = [len(item.region_masks_RGG) for item in inputs]
        if not any(counts):
            return [[] for _ in inputs]
        engine = self.engine
        encoded = engine.encode(inputs)
        image_index_N = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor(counts)).to(engine.device)
        cache, logits_NV, position = engine.ask(encoded.image_tokens_BTD, encoded.regions_RKD, image_index_N)
        # Greedy decoding grows the cache that it is given.
        found = likeliest_names(engine, self.trie, copy.deepcopy(cache), logits_NV, position, self.width)
        likely = [{self.names[n]: logprob for n, logprob in own} for own in found]
        said = engine.go_on(cache, logits_NV, position)
        self._add_near(encoded, said, likely)
        ranked = self._ranked(encoded, likely)
        answers = [replace(answer, likely_names=own) for answer, own in zip(said, ranked, strict=True)]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [answers[start : start + count] for start, count in zip(starts, counts, strict=True)]

    def _add_near(self, encoded: Encoded, said: Sequence[Decoded], likely: list[dict[str, float]]) -> None:
        """Score the names that texts are near to, where the beam has not found them already."""
        if self.near is None:
            return
        known = set(self.names)
        texts = list(dict.fromkeys(answer.text for answer in said if answer.text not in known))
        near = dict(zip(texts, self.near(texts), strict=True)) if texts else {}
        new = [
            [name for name in near.get(answer.text, ()) if name in known and name not in own]
            for answer, own in zip(said, likely, strict=True)
        ]
        if not any(new):
            return
        by_image: list[list[list[str]]] = []
        for count in encoded.counts:
            by_image.append(new[:count])
            new = new[count:]
        scored = self.engine.score_encoded(encoded, by_image, self.engine.prompt)
        regions = iter(likely)
        for own_texts, own_scores in zip(by_image, scored, strict=True):
            for names, scores in zip(own_texts, own_scores, strict=True):
                next(regions).update(zip(names, scores, strict=True))

    def _ranked(self, encoded: Encoded, likely: Sequence[dict[str, float]]) -> list[tuple[LikelyName, ...]]:
        if self.rank_by == "prior":
            self._learn_priors(encoded, list(dict.fromkeys(name for own in likely for name in own)))
        ranked = []
        for own in likely:
            names = [LikelyName(name=name, logprob=value, rank=self._rank(name, value)) for name, value in own.items()]
            ranked.append(tuple(sorted(names, key=lambda one: (-one.rank, one.name))))
        return ranked

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
                self._prior[name] = self.engine.score_encoded(blank, [[[name]]], self.engine.prompt)[0][0][0]


def likeliest_names(
    engine: Engine, trie: Trie, cache: DynamicCache, logits_NV: Tensor, position: int, width: int
) -> list[list[tuple[int, float]]]:
    """Return, for each question of a cache, (number of a name in the trie, its natural-log probability as the whole answer), best first.

    A beam of `width` beginnings of names; as wide as the trie has names, it finds all of them. The cache is used up.
    logits_NV: of the first token, which stands at `position`.
    """
    num = logits_NV.shape[0]
    node_R = torch.full((num,), ROOT, device=engine.device)
    score_NW = torch.zeros((num, 1), device=engine.device)
    first_row_N1 = torch.arange(num, device=engine.device)[:, None]
    logits_RV = logits_NV
    embed = engine.model.get_input_embeddings()
    for depth in range(trie.longest):
        logprob_RC, token_RC, child_RC = trie.go_on(logits_RV.float().log_softmax(-1), node_R)
        num_ways = logprob_RC.shape[1]
        total_NE = (score_NW.flatten()[:, None] + logprob_RC).view(num, -1)
        score_NW, kept_NW = total_NE.topk(min(width, total_NE.shape[1]))
        kept_from_R = (first_row_N1 * (total_NE.shape[1] // num_ways) + kept_NW // num_ways).flatten()
        node_R = child_RC.view(num, -1).gather(1, kept_NW).flatten()
        token_R = token_RC.view(num, -1).gather(1, kept_NW).flatten()
        over_R = trie.ended(node_R) | score_NW.flatten().isneginf()
        if bool(over_R.all()) or depth == trie.longest - 1:
            break
        cache.batch_select_indices(kept_from_R)
        logits_RV = engine.forward(embed(token_R.clamp_min(0)[:, None]), cache, position)
        position += 1
    name_NW = trie.name_S[node_R].view(num, -1).cpu()
    return [
        [(name, score) for name, score in zip(names, scores, strict=True) if name >= 0 and score > -torch.inf]
        for names, scores in zip(name_NW.tolist(), score_NW.cpu().tolist(), strict=True)
    ]
