"""The question that a run asks: the task's own first one, or that of --question. Knows nothing of models."""

from __future__ import annotations

from rlabel.config import LabelSettings
from rlabel.prompts import instructions
from rlabel.prompts.tasks import from_vocabulary, pair_turn
from rlabel.prompts.templates import numbered_choices

_RELATIONS = {
    "free": instructions.RELATE,
    "left_right": instructions.HORIZONTAL,
    "above_below": instructions.VERTICAL,
    "size": instructions.SIZE,
    "overlap": instructions.OVERLAP,
}


def task_question(settings: LabelSettings) -> str:
    """Return the question as it is written: with `<region1>` and `<region2>` of a pair, `{choices}` where regions are listed, `{expression}`."""
    if settings.question is not None:
        return settings.question
    if settings.task == "relate":
        return _RELATIONS[settings.relation][0]
    if settings.task == "describe":
        return instructions.DESCRIBE[0]
    if settings.task == "classify":
        return name_questions(settings)[0]
    return (instructions.REFER if settings.refer_by == "number" else instructions.CAPTION)[0]


def name_questions(settings: LabelSettings) -> list[str]:
    """Return the wordings in which names are asked for, as many as the settings say."""
    texts = instructions.CLASSIFY_ALL if settings.mode == "one_turn" else instructions.CLASSIFY
    return [from_vocabulary(text, settings.vocabulary_name) for text in texts[: settings.num_questions]]


def example_question(settings: LabelSettings) -> str:
    """Return the question as the model's processor takes it, of two regions where there may be any number, about an unnamed expression."""
    question = task_question(settings)
    if settings.task == "relate":
        return pair_turn(question, 0, 1, None).question
    return question.replace("{choices}", numbered_choices(2)).replace("{expression}", "...")
