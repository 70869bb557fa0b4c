"""One question in several wordings: every answer that any of them brings is judged by all of them, and the likeliest on the mean is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.engine import Decoded, Engine
from rlabel.regiongpt.processing import RegionInputs


class EnsembleDescriber:
    """Asks `questions` about each region. Images are encoded once, whatever the number of questions.

    Raises InputError for a question that does not name exactly one region.
    """

    def __init__(self, engine: Engine, questions: Sequence[str]) -> None:
        self.engine = engine
        self.prompts = [engine.processor.prompt(question) for question in questions]
        for prompt in self.prompts:
            engine.check_mentions([[(0,)]], prompt)

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    @torch.inference_mode()
    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        """Return, for each region, the answer with the highest mean log-probability; its only log-probability is that mean, of the whole answer.

        agreement: the share of the wordings that brought it.
        """
        counts = [len(item.region_masks_RGG) for item in inputs]
        if not any(counts):
            return [[] for _ in inputs]
        engine = self.engine
        encoded = engine.encode(inputs)
        image_index_R = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor(counts)).to(engine.device)
        by_prompt = [
            engine.decode(encoded.image_tokens_BTD, encoded.regions_RKD, image_index_R, prompt)
            for prompt in self.prompts
        ]
        said = [{answer.text: answer for answer in answers} for answers in zip(*by_prompt, strict=True)]
        votes = [Counter(answer.text for answer in answers) for answers in zip(*by_prompt, strict=True)]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        texts = [
            [list(own) for own in said[start : start + count]] for start, count in zip(starts, counts, strict=True)
        ]
        scores = [engine.score_encoded(encoded, texts, prompt) for prompt in self.prompts]
        result: list[list[Decoded]] = []
        for i, own in enumerate(texts):
            rows = [[scored[i][r] for scored in scores] for r in range(len(own))]
            best = [self._best(said[starts[i] + r], rows[r]) for r in range(len(own))]
            shares = [votes[starts[i] + r][answer.text] / len(self.prompts) for r, answer in enumerate(best)]
            result.append([replace(answer, agreement=share) for answer, share in zip(best, shares, strict=True)])
        return result

    @staticmethod
    def _best(said: dict[str, Decoded], scores: Sequence[Sequence[float]]) -> Decoded:
        """Return the likeliest of some answers to one region, the first of equals. scores: of each prompt, in the answers' order."""
        means = [sum(column) / len(column) for column in zip(*scores, strict=True)]
        best = max(range(len(means)), key=lambda i: means[i])
        answer = list(said.values())[best]
        return Decoded(text=answer.text, token_logprobs=(means[best],), token_ids=answer.token_ids)
