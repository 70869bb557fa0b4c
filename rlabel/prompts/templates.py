"""Texts around questions, and the turns of a conversation. `<region>` marks where a region's tokens go, `<image>` those of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

IMAGE = "<image>"
REGION = "<region>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One question of a conversation and its answer, once there is one. mentions: the region of each `<region>`, counted from 0."""

    question: str
    mentions: tuple[int, ...] = ()
    answer: str | None = None

    def answered(self, answer: str) -> Turn:
        return replace(self, answer=answer)

    def unanswered(self) -> Turn:
        return replace(self, answer=None)


def question_text(question: str) -> str:
    """Return the user's turn: the image first, so that its tokens are a prefix shared by all regions of the image."""
    return f"{IMAGE}\n{question}"


def numbered_choices(count: int) -> str:
    """Return `1: <region> 2: <region> ...`."""
    return " ".join(f"{number}: {REGION}" for number in range(1, count + 1))


def numbered_names(names: Sequence[str]) -> str:
    """Return `1: cat 2: fire hydrant ...`, the answer to a question about all regions at once."""
    return " ".join(f"{number}: {name}" for number, name in enumerate(names, start=1))
