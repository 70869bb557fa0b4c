"""Questions about one region, as data. `<region>` marks where the region's tokens go.

Labeling asks the first of a list, always; training draws from the whole list with a seed, so that the labeler does not hang on one wording.
"""

from __future__ import annotations

from collections.abc import Sequence

IMAGE = "<image>"
REGION = "<region>"

CLASSIFY: tuple[str, ...] = (
    f"Name the object in {REGION}.",
    f"Which object does {REGION} show?",
    f"Give the category of {REGION}.",
    f"Say in a word or two what {REGION} is.",
    f"What kind of thing is marked by {REGION}?",
    f"Look at {REGION} and name it.",
    f"Tell me the name of what lies inside {REGION}.",
    f"To which category does {REGION} belong?",
)


def question_text(question: str) -> str:
    """Return the user's turn: the image first, so that its tokens are a prefix shared by all regions of the image."""
    return f"{IMAGE}\n{question}"


def pick(templates: Sequence[str], draw: int) -> str:
    """Return one template for a non-negative random integer."""
    return templates[draw % len(templates)]
