"""Free questions over one or many regions: which regions a text names, in which order.

`<region1>`, `<region2>`, ... name the regions of a picture by their number, from 1; `<region>` is allowed where there is only one. Every mention becomes
the region's own tokens, so a region may be named more than once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlabel.errors import InputError
from rlabel.prompts.templates import IMAGE, REGION

_MENTION = re.compile(r"<region(\d*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """text: with a plain `<region>` at every mention. mentions: the region that each one means, counted from 0, in order."""

    text: str
    mentions: tuple[int, ...]


def parse_question(text: str, num_regions: int) -> Question:
    """Return the question that a text asks about num_regions regions.

    Raises InputError for an empty text, a number that no region has, and a bare `<region>` where it could mean several.
    """
    if not text.strip():
        raise InputError("question: expected a sentence, got an empty one.")
    if IMAGE in text:
        raise InputError(f"question {text!r}: the picture is put first by itself. Leave {IMAGE} out.")
    mentions = []
    for found in _MENTION.finditer(text):
        number = found.group(1)
        if not number and num_regions != 1:
            raise InputError(
                f"question {text!r}: {REGION} could be any of {num_regions} regions. Give its number: <region1>."
            )
        index = int(number or 1) - 1 if len(number) < 10 else num_regions
        if not 0 <= index < num_regions:
            raise InputError(
                f"question {text!r}: {found.group()} names a region that is not there; {num_regions} given, counted from 1."
            )
        mentions.append(index)
    return Question(text=_MENTION.sub(REGION, text.strip()), mentions=tuple(mentions))


def without_marks(text: str) -> str:
    """Return a text in which nothing stands for a picture or a region: an answer is repeated to the model as plain words."""
    return _MENTION.sub("", text).replace(IMAGE, "")
