"""Conversations to train on, made of what is known about the regions of one picture.

Each task asks one of its questions (`instructions`) and knows the answer: the name, the caption, the relation that the data states, or a place,
size or overlap worked out from the boxes. Everything is drawn from one generator: the same picture and seed give the same conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from numpy.random import Generator

from rlabel.prompts import instructions
from rlabel.prompts.templates import Turn, numbered_choices, numbered_names

Task = Literal["classify", "caption", "relate", "place", "refer", "classify_all"]
TASKS: tuple[Task, ...] = get_args(Task)

# Choices of one question of `refer`, and regions that one question of `classify_all` names at most, in training as in labeling.
_MAX_CHOICES = 6
MAX_AT_ONCE = 16
# Two middles nearer than this share of the smaller side are neither left nor right of each other; areas within this ratio neither larger nor smaller.
_MIN_SHIFT, _MIN_RATIO = 0.5, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionFacts:
    """What is known of a region. box_xywh, area_px: pixels of the picture. expressions: that tell it from the picture's other regions."""

    box_xywh: tuple[float, float, float, float]
    area_px: float
    name: str | None = None
    caption: str | None = None
    expressions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationFact:
    """That region `subject` stands in a relation to region `object`, both counted from 0."""

    subject: int
    predicate: str
    object: int


def draw_turns(
    regions: Sequence[RegionFacts],
    relations: Sequence[RelationFact],
    mix: Mapping[Task, float],
    random: Generator,
    plain_first: float = 0.0,
    vocabulary: str | None = None,
) -> list[Turn]:
    """Return questions with their answers, in the order of tasks and regions.

    mix: how often each task is asked: of each region (classify, caption, refer), of each stated relation (relate), of a drawn pair for each region
    (place), of all named regions together (classify_all). plain_first: how often the first question of a task is taken, which is the one that
    labeling asks; else any. vocabulary: named behind every other question for names, so that the labeler knows questions with and without it.
    """
    turns: list[Turn] = []

    def wanted(task: Task) -> bool:
        return bool(random.random() < mix.get(task, 0.0))

    def question(texts: Sequence[str]) -> str:
        return texts[0] if random.random() < plain_first else texts[int(random.integers(len(texts)))]

    def question_for_names(texts: Sequence[str]) -> str:
        text = question(texts)
        return from_vocabulary(text, vocabulary) if vocabulary is not None and random.random() < 0.5 else text

    if mix.get("classify_all") and wanted("classify_all"):
        names = [region.name for region in regions]
        turns += classify_all_turns(names, lambda: question_for_names(instructions.CLASSIFY_ALL))
    for index, region in enumerate(regions):
        if region.name and wanted("classify"):
            turns.append(
                Turn(question=question_for_names(instructions.CLASSIFY), mentions=(index,), answer=region.name)
            )
        if region.caption and wanted("caption"):
            turns.append(Turn(question=question(instructions.CAPTION), mentions=(index,), answer=region.caption))
    for relation in relations:
        if wanted("relate"):
            turns.append(
                pair_turn(question(instructions.RELATE), relation.subject, relation.object, relation.predicate)
            )
    for index in range(len(regions) if len(regions) > 1 else 0):
        if wanted("place"):
            other = (index + 1 + int(random.integers(len(regions) - 1))) % len(regions)
            if asked := places(regions[index], regions[other]):
                texts, answer = asked[int(random.integers(len(asked)))]
                turns.append(pair_turn(question(texts), index, other, answer))
        if wanted("refer"):
            turn = _refer(regions, index, question(instructions.REFER), random)
            turns += [turn] if turn is not None else []
    return turns


def classify_all_turns(names: Sequence[str | None], question: Callable[[], str]) -> list[Turn]:
    """Return the questions for the names of all named regions at once, `1: cat 2: dog` being the answer; one for each MAX_AT_ONCE of them.

    question: gives one of CLASSIFY_ALL.
    """
    named = [(index, name) for index, name in enumerate(names) if name]
    turns: list[Turn] = []
    for start in range(0, len(named), MAX_AT_ONCE):
        group = named[start : start + MAX_AT_ONCE]
        text = question().replace("{choices}", numbered_choices(len(group)))
        answer = numbered_names([name for _, name in group])
        turns.append(Turn(question=text, mentions=tuple(index for index, _ in group), answer=answer))
    return turns


def from_vocabulary(question: str, vocabulary: str | None) -> str:
    """Return a question for names that says which vocabulary they are to be from; the question itself where there is none to name."""
    if vocabulary is None:
        return question
    return f"{question} {instructions.FROM_VOCABULARY.replace('{vocabulary}', vocabulary)}"


def pair_turn(question: str, first: int, second: int, answer: str | None) -> Turn:
    """Return a question about `<region1>` and `<region2>`, in whichever order it names them."""
    at_first, at_second = question.index("<region1>"), question.index("<region2>")
    mentions = (first, second) if at_first < at_second else (second, first)
    text = question.replace("<region1>", "<region>").replace("<region2>", "<region>")
    return Turn(question=text, mentions=mentions, answer=answer)


def places(one: RegionFacts, other: RegionFacts) -> list[tuple[Sequence[str], str]]:
    """Return (questions, answer) of everything that the boxes and areas of two regions decide clearly."""
    asked: list[tuple[Sequence[str], str]] = []
    for texts, axis, low, high in (
        (instructions.HORIZONTAL, 0, "left", "right"),
        (instructions.VERTICAL, 1, "above", "below"),
    ):
        shift = _middle(one, axis) - _middle(other, axis)
        if abs(shift) > _MIN_SHIFT * min(one.box_xywh[axis + 2], other.box_xywh[axis + 2]):
            asked.append((texts, low if shift < 0 else high))
    ratio = one.area_px / max(other.area_px, 1e-9)
    if not 1 / _MIN_RATIO < ratio < _MIN_RATIO:
        asked.append((instructions.SIZE, "larger" if ratio > 1 else "smaller"))
    asked.append((instructions.OVERLAP, "yes" if _overlap(one, other) else "no"))
    return asked


def _middle(region: RegionFacts, axis: int) -> float:
    return region.box_xywh[axis] + region.box_xywh[axis + 2] / 2


def _overlap(one: RegionFacts, other: RegionFacts) -> bool:
    (x, y, w, h), (u, v, s, t) = one.box_xywh, other.box_xywh
    return x < u + s and u < x + w and y < v + t and v < y + h


def _refer(regions: Sequence[RegionFacts], index: int, question: str, random: Generator) -> Turn | None:
    """Return the question which of some regions an expression means; None where the answer would not be one alone."""
    own = _expressions(regions[index])
    if not own or len(regions) < 2:
        return None
    expression = own[int(random.integers(len(own)))]
    # A region that the same words fit, or that has the same name, would be as right.
    others = [
        i
        for i, region in enumerate(regions)
        if i != index
        and expression not in _expressions(region)
        and (region.name is None or region.name != regions[index].name)
    ]
    if not others:
        return None
    chosen = [others[i] for i in random.permutation(len(others))[: _MAX_CHOICES - 1]]
    place = int(random.integers(len(chosen) + 1))
    listed = [*chosen[:place], index, *chosen[place:]]
    text = question.replace("{choices}", numbered_choices(len(listed))).replace("{expression}", expression)
    return Turn(question=text, mentions=tuple(listed), answer=str(place + 1))


def _expressions(region: RegionFacts) -> tuple[str, ...]:
    """Return what may be said of the region, fit for the middle of a sentence."""
    texts = region.expressions or ((region.caption,) if region.caption else ())
    return tuple(stripped for text in texts if (stripped := text.strip().rstrip(".")))
