"""One question in several wordings: every answer that any of them brings is judged by all of them, and the likeliest on the mean is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.budget import Mentions
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.encoding import Encoded
from rlabel.labeling.engine import Decoded, Engine, each_region
from rlabel.regiongpt.processing import PromptTokens, RegionInputs

_T = TypeVar("_T")


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

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        """Return, for each region, the answer with the highest mean log-probability; its only log-probability is that mean, of the whole answer.

        agreement: the share of the wordings that brought it.
        """
        return self.engine.in_parts(inputs, each_region(inputs), self._describe, self.prompts)

    @torch.inference_mode()
    def _describe(self, inputs: list[RegionInputs], asked: list[list[Mentions]]) -> list[list[Decoded]]:
        encoded = self.engine.encode(inputs)
        by_prompt = [
            self.engine.decode(encoded.image_tokens_BTD, encoded.regions_RKD, encoded.image_index_R, prompt)
            for prompt in self.prompts
        ]
        answers = iter(likeliest_answers(self.engine, encoded, self.prompts, by_prompt))
        return [[next(answers) for _ in rows] for rows in asked]


def likeliest_answers(
    engine: Engine, encoded: Encoded, prompts: Sequence[PromptTokens], by_prompt: Sequence[Sequence[Decoded]]
) -> list[Decoded]:
    """Return, for each region, the answer that all wordings together find likeliest, of those that any of them gave."""
    said = [{answer.text: answer for answer in answers} for answers in zip(*by_prompt, strict=True)]
    votes = [Counter(answer.text for answer in answers) for answers in zip(*by_prompt, strict=True)]
    texts = by_image(encoded, [list(own) for own in said])
    scores = [sum(engine.score_encoded(encoded, texts, prompt), []) for prompt in prompts]
    result = []
    for r, own in enumerate(said):
        best = _best(own, [scored[r] for scored in scores])
        result.append(replace(best, agreement=votes[r][best.text] / len(prompts)))
    return result


def by_image(encoded: Encoded, regions: Sequence[_T]) -> list[list[_T]]:
    """Return what there is for each region of some images as a list an image."""
    left = iter(regions)
    return [[next(left) for _ in range(count)] for count in encoded.counts]


def _best(said: dict[str, Decoded], scores: Sequence[Sequence[float]]) -> Decoded:
    """Return the likeliest of some answers to one region, the first of equals. scores: of each prompt, in the answers' order."""
    means = [sum(column) / len(column) for column in zip(*scores, strict=True)]
    best = max(range(len(means)), key=lambda i: means[i])
    answer = list(said.values())[best]
    return Decoded(text=answer.text, token_logprobs=(means[best],), token_ids=answer.token_ids)
