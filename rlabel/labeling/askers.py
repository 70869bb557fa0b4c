"""Asks a RegionGPT engine about several regions at once: how two are related, and which one an expression means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.conversation import Conversation
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.engine import Decoded, Engine
from rlabel.labeling.modes import numbered_mentions
from rlabel.prompts.questions import without_marks
from rlabel.prompts.tasks import pair_turn
from rlabel.regiongpt.processing import RegionInputs
from rlabel.vocabulary.scores import text_score

ReferBy = Literal["likelihood", "mixture", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about some of the prepared regions, counted from 0: subject and object, or the candidates of an expression. text: the expression."""

    mentions: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """place: of the chosen region among the mentions; None, with a problem, where none was chosen. score: in [0, 1].

    scores: of every mention, or () where they are not compared. text: the model's own words where it was asked for words.
    """

    place: int | None
    score: float = 0.0
    scores: tuple[float, ...] = ()
    text: str | None = None
    problem: str | None = None


class Asker(Protocol):
    """Answers questions about several regions of an image. `prepare` runs on CPU threads ahead of `ask`, which owns the model."""

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> Any:
        """Return the model's inputs for some regions of one image, pixels at hand."""

    def ask(self, inputs: Sequence[Any], asked: Sequence[Sequence[Asked]]) -> Sequence[Sequence[Decoded | Chosen]]:
        """Return one answer for each question about each of the inputs, in order."""


class PairAsker:
    """Asks one question about every pair; all pairs of a batch of images are answered together.

    engine: its question is `question` with a plain `<region>` at each mention; `question` says which of the two is meant where.
    """

    def __init__(self, engine: Engine, question: str) -> None:
        self.engine = engine
        self.order = pair_turn(question, 0, 1, None).mentions

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def ask(self, inputs: Sequence[RegionInputs], asked: Sequence[Sequence[Asked]]) -> list[list[Decoded]]:
        mentions = [[tuple(item.mentions[i] for i in self.order) for item in items] for items in asked]
        return self.engine.answer(inputs, mentions)


class LikelihoodChooser:
    """Chooses the candidate about which the model would most probably say the expression.

    questions: to which the expression would be the answer; of several, the mean of its probabilities is taken. Candidates are equally probable before.
    """

    def __init__(self, engine: Engine, questions: Sequence[str]) -> None:
        self.engine = engine
        self.questions = tuple(questions)

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def ask(self, inputs: Sequence[RegionInputs], asked: Sequence[Sequence[Asked]]) -> list[list[Chosen]]:
        texts = [
            [[item.text for item in items if region in item.mentions] for region in range(len(image.region_masks_RGG))]
            for image, items in zip(inputs, asked, strict=True)
        ]
        scored = [self.engine.score_answers(inputs, texts, question) for question in self.questions]
        chosen: list[list[Chosen]] = []
        for i, items in enumerate(asked):
            next_of_region = [0] * len(texts[i])
            rows: list[Chosen] = []
            for item in items:
                logprobs = []
                for region in item.mentions:
                    place = next_of_region[region]
                    next_of_region[region] += 1
                    logprobs.append(_log_sum([by_question[i][region][place] for by_question in scored]))
                rows.append(choose(logprobs))
            chosen.append(rows)
        return chosen


class NumberChooser:
    """Lists the candidates by number and asks for the number. question: holds `{expression}` and `{choices}`."""

    def __init__(self, engine: Engine, question: str) -> None:
        self.engine = engine
        self.question = question

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def ask(self, inputs: Sequence[RegionInputs], asked: Sequence[Sequence[Asked]]) -> list[list[Chosen]]:
        return [self._of_image(image, items) if items else [] for image, items in zip(inputs, asked, strict=True)]

    def _of_image(self, image: RegionInputs, items: Sequence[Asked]) -> list[Chosen]:
        first = Conversation(self.engine.model, self.engine.processor, image, self.engine.options.max_new_tokens)
        chosen: list[Chosen] = []
        for item in items:
            expression = without_marks(item.text).strip().rstrip(".")
            text = self.question.replace("{choices}", numbered_mentions(item.mentions))
            answer = first.fresh().ask(text.replace("{expression}", expression))
            chosen.append(read_number(answer, len(item.mentions)))
        return chosen


def choose(logprobs: Sequence[float]) -> Chosen:
    """Return the likeliest of some candidates; the scores are the softmax of their log-probabilities, to 6 decimals. Of equals, the first."""
    if not all(math.isfinite(value) for value in logprobs):
        return Chosen(place=None, problem="the model gave no finite probabilities")
    total = _log_sum(logprobs)
    scores = tuple(round(math.exp(value - total), 6) for value in logprobs)
    place = max(range(len(logprobs)), key=lambda i: logprobs[i])
    return Chosen(place=place, score=scores[place], scores=scores)


def read_number(answer: Decoded, count: int) -> Chosen:
    """Return the candidate whose number an answer begins with or holds as its only number."""
    numbers = [int(digits) for digits in re.findall(r"(?<!\d)\d{1,6}(?!\d)", answer.text)]
    if len(set(numbers)) == 1 and 1 <= numbers[0] <= count:
        return Chosen(place=numbers[0] - 1, score=text_score(answer.token_logprobs), text=answer.text)
    problem = f"expected one number from 1 to {count}, the answer is {answer.text[:200]!r}"
    return Chosen(place=None, text=answer.text, problem=problem)


def _log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of exponentials. Any constant (the number of questions) falls out of the softmax."""
    largest = max(values)
    if not math.isfinite(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
