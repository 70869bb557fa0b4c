"""Work in parts that fit: so many questions at a time as a budget of tokens allows, and fewer where memory did not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from rlabel.labeling.encoding import only_regions
from rlabel.regiongpt.processing import RegionInputs

log = logging.getLogger(__name__)

Mentions = tuple[int, ...]
_T = TypeVar("_T")
# One image with some of the questions about it: its place among the inputs, the places of the questions.
_Piece = tuple[int, list[int]]
# What torch's allocator says on a CPU; it has no class of its own there.
_FULL = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def in_parts(
    inputs: Sequence[RegionInputs],
    asked: Sequence[Sequence[Mentions]],
    answer: Callable[[list[RegionInputs], list[list[Mentions]]], list[list[_T]]],
    failed: Callable[[str], _T],
    *,
    tokens_an_image: int,
    tokens_a_question: int,
    most_tokens: int,
) -> list[list[_T]]:
    """Return one answer for each question about each of the images.

    asked: for each image, the regions that each question names. answer: gives them for a part. most_tokens: of a part; one question may exceed it.
    Where memory does not suffice, a part is halved and tried again, down to one question; that one gets what `failed` makes of the reason.
    Parts are formed by the inputs and the budget alone, so the same inputs are answered by the same computation wherever memory suffices.
    """
    results: list[list[_T | None]] = [[None] * len(rows) for rows in asked]

    def run(part: list[_Piece]) -> None:
        try:
            answered = answer(*_cut(inputs, asked, part))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
        else:
            for (image, questions), own in zip(part, answered, strict=True):
                for question, one in zip(questions, own, strict=True):
                    results[image][question] = one
            return
        # Outside the handler: the error holds what the failed try had allocated.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        num_questions = sum(len(questions) for _, questions in part)
        if num_questions == 1:
            ((image, (question,)),) = part
            results[image][question] = failed(f"memory did not suffice for one region alone: {reason}")
            return
        log.warning("memory did not suffice for %d questions at once; trying halves", num_questions)
        for half in _halves(part):
            run(half)

    for part in _parts(asked, tokens_an_image, tokens_a_question, most_tokens):
        run(part)
    done = [[one for one in rows if one is not None] for rows in results]
    assert [len(rows) for rows in done] == [len(rows) for rows in asked]
    return done


def _parts(
    asked: Sequence[Sequence[Mentions]], tokens_an_image: int, tokens_a_question: int, most_tokens: int
) -> list[list[_Piece]]:
    """Return the questions in their order, in parts of at most so many tokens each."""
    parts: list[list[_Piece]] = [[]]
    used = 0
    for image, rows in enumerate(asked):
        left = list(range(len(rows)))
        while left:
            room = (most_tokens - used - tokens_an_image) // tokens_a_question
            # An image is begun where all of it fits, or at the beginning of a part: its prefix is computed once a part.
            if parts[-1] and room < len(left):
                parts.append([])
                used = 0
                continue
            count = max(1, min(room, len(left)))
            parts[-1].append((image, left[:count]))
            used += tokens_an_image + count * tokens_a_question
            left = left[count:]
    return [part for part in parts if part]


def _halves(part: list[_Piece]) -> list[list[_Piece]]:
    if len(part) > 1:
        return [part[: len(part) // 2], part[len(part) // 2 :]]
    ((image, questions),) = part
    middle = len(questions) // 2
    return [[(image, questions[:middle])], [(image, questions[middle:])]]


def _cut(
    inputs: Sequence[RegionInputs], asked: Sequence[Sequence[Mentions]], part: list[_Piece]
) -> tuple[list[RegionInputs], list[list[Mentions]]]:
    """Return the images of a part with the regions that its questions name, numbered anew, and the questions."""
    items, rows = [], []
    for image, questions in part:
        own = [asked[image][question] for question in questions]
        if len(questions) == len(asked[image]):
            items.append(inputs[image])
            rows.append(own)
            continue
        named = sorted({region for mentions in own for region in mentions})
        place = {region: i for i, region in enumerate(named)}
        items.append(only_regions(inputs[image], named))
        rows.append([tuple(place[region] for region in mentions) for mentions in own])
    return items, rows
