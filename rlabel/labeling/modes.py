"""Naming all regions of an image in one conversation: one question a region, or one question for all of them.

Both answer what `Describer` asks for, so the Labeler does not know of them. One image at a time; batches make nothing faster here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.errors import InputError
from rlabel.labeling.conversation import Conversation
from rlabel.labeling.describer import inputs_of
from rlabel.labeling.engine import Decoded, Engine
from rlabel.prompts.questions import without_marks
from rlabel.prompts.tasks import MAX_AT_ONCE
from rlabel.prompts.templates import REGION
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs


class MultiTurnDescriber:
    """Asks the engine's question about each region in turn, in one conversation an image: each answer is there for the next.

    A conversation that no longer fits the language model is followed by a new one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        return [self._of_image(item) for item in inputs]

    def _of_image(self, item: RegionInputs) -> list[Decoded]:
        if not len(item.region_masks_RGG):
            return []
        options = self.engine.options
        conversation = Conversation(self.engine.model, self.engine.processor, item, options.max_new_tokens)
        answers: list[Decoded] = []
        for number in range(1, len(item.region_masks_RGG) + 1):
            question = options.question.replace(REGION, f"<region{number}>")
            try:
                answers.append(conversation.ask(question))
            except InputError:
                if not conversation.turns:
                    raise
                conversation = conversation.fresh()
                answers.append(conversation.ask(question))
        return answers


class OneTurnDescriber:
    """Asks one question about up to 16 regions of an image at once, and reads a name for each from the answer.

    question: holds `{choices}`, the place of the numbered regions. max_new_tokens: of each name.
    """

    def __init__(self, engine: Engine, question: str) -> None:
        self.engine = engine
        self.question = question

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        return [self._of_image(item) for item in inputs]

    def _of_image(self, item: RegionInputs) -> list[Decoded]:
        answers: list[Decoded] = []
        num_regions = len(item.region_masks_RGG)
        first: Conversation | None = None
        for start in range(0, num_regions, MAX_AT_ONCE):
            count = min(MAX_AT_ONCE, num_regions - start)
            if first is None:
                first = Conversation(self.engine.model, self.engine.processor, item)
            conversation = first.fresh()
            conversation.max_new_tokens = self.engine.options.max_new_tokens * count
            choices = numbered_mentions(range(start, start + count))
            answer = conversation.ask(self.question.replace("{choices}", choices))
            answers += split_answer(answer, count, self.engine.processor)
        return answers


def numbered_mentions(regions: Sequence[int]) -> str:
    """Return `1: <region3> 2: <region4> ...` for regions counted from 0."""
    return " ".join(f"{number}: <region{region + 1}>" for number, region in enumerate(regions, start=1))


def split_answer(answer: Decoded, count: int, processor: RegionGPTProcessor) -> list[Decoded]:
    """Return what an answer about `count` numbered regions says of each, with the log-probabilities of that part's own tokens."""
    ids = list(answer.token_ids)
    ends = [len(_decoded(processor, ids[: i + 1])) for i in range(len(ids))]
    text = _decoded(processor, ids)
    parts = split_names(text, count)
    said: list[Decoded] = []
    for number, part in enumerate(parts, start=1):
        if part is None:
            problem = f"the answer for all regions names none for number {number}: {without_marks(answer.text)[:200]!r}"
            said.append(Decoded(text="", token_logprobs=(), problem=problem))
            continue
        start, end = part
        begins = [0, *ends[:-1]]
        own = [i for i in range(len(ends)) if begins[i] < end and ends[i] > start]
        if end >= len(text.rstrip()):  # the end token closes the last part
            own += range(len(ends), len(answer.token_logprobs))
        said.append(
            Decoded(
                text=str(text[start:end]),
                token_logprobs=tuple(answer.token_logprobs[i] for i in own),
                token_ids=tuple(answer.token_ids[i] for i in own if i < len(ends)),
            )
        )
    return said


def _decoded(processor: RegionGPTProcessor, ids: list[int]) -> str:
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True))


def split_names(text: str, count: int) -> list[tuple[int, int] | None]:
    """Return where in a text each of `count` numbered regions is named, as (start, end) without blanks; None where it is not.

    Read are `1: cat 2: dog`, `1. cat, 2. dog` and the like, numbers rising; or `cat, dog` where there are exactly as many parts as regions.
    """
    marks: list[tuple[int, int, int]] = []  # number, where the mark begins, where it ends
    for found in re.finditer(r"(?<![^\s,;.])(\d{1,4})\s*[:.)]\s*", text):
        number = int(found.group(1))
        if number <= count and number > (marks[-1][0] if marks else 0):
            marks.append((number, found.start(), found.end()))
    spans: list[tuple[int, int] | None] = [None] * count
    if marks:
        for (number, _, start), end in zip(marks, [*(mark[1] for mark in marks[1:]), len(text)], strict=True):
            spans[number - 1] = _trimmed(text, start, end)
        return spans
    pieces = list(re.finditer(r"[^,;]+", text))
    if len(pieces) == count:
        return [_trimmed(text, piece.start(), piece.end()) for piece in pieces]
    return spans


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    kept = text[start:end].strip().rstrip(",;").rstrip()
    if not any(character.isalnum() for character in kept):
        return None
    begin = text.index(kept, start)
    return begin, begin + len(kept)
