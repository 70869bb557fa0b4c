"""Compares the sizes that a model folder states with the weights that it holds, before anything of that size is made.

`config.json` is a few lines that anybody can write: a hidden size of a billion in it must not cost more than reading it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlabel.errors import InputError

_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json")
_LONGEST_FILE = 2**24
_LONGEST_SIDE_PX = 8192
_MOST_LAYERS = 4096
# How many times one part is made.
_COUNTS = re.compile(
    r"layers?$|depths?$|blocks?$|experts$|repeats$|stages\.\d+\.0$"
)  # of EfficientNet-Lite's stages the first number
_SIDES = re.compile(r"_px$|_side$|image_size|patch_size|crop_size|stride|kernel")
# Numbers that nothing is allocated for.
_NAME = re.compile(r"[^.]*(\.\d+)*$")  # with the places in lists that it holds
_FREE = re.compile(r"theta|position|length|window|seed|_ids?(\.\d+)*$|max_pixels|min_pixels|longest_edge|shortest_edge")
_ANEW = "Copy or download the folder again, or make it anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the safetensors of a folder hold, by their headers: tensors, and numbers in them."""

    num_tensors: int
    num_numbers: int


def stored_in(folder: Path, given: str) -> Stored:
    """Return what a folder's safetensors hold. Raises InputError for a file that is no whole safetensors."""
    from safetensors import SafetensorError, safe_open

    num_tensors = num_numbers = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                names = file.keys()
                for name in names:
                    num_tensors += 1
                    numbers = 1
                    for side in file.get_slice(name).get_shape():
                        numbers *= side
                    num_numbers += numbers
        except (SafetensorError, OSError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"{given}: {path.name}: expected whole safetensors, got: {cause}. {_ANEW}") from error
    return Stored(num_tensors=num_tensors, num_numbers=num_numbers)


def check_sizes(folder: Path, given: str) -> None:
    """Check the numbers in a model folder's JSON files against its weights.

    given: how the user named the folder. Raises InputError naming the first field that cannot be meant.
    """
    stored = stored_in(folder, given)
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        for field, value in _numbers(_read(path), ""):
            last = _NAME.search(field)[0]  # type: ignore[index]  # finds at least the end of any text
            if _FREE.search(last):
                continue
            bound, why = max(stored.num_numbers, 2**20), f"its weights hold {stored.num_numbers} numbers"
            if _COUNTS.search(last):
                bound, why = (
                    min(max(stored.num_tensors, 64), _MOST_LAYERS),
                    f"its weights hold {stored.num_tensors} tensors",
                )
            elif _SIDES.search(last):
                bound, why = _LONGEST_SIDE_PX, f"no side is longer than {_LONGEST_SIDE_PX}"
            if not -bound <= value <= bound:
                raise InputError(
                    f"{given}: {name}, {field}: expected at most {bound} ({why}), got {value:.6g}. {_ANEW}"
                )


def check_outline(outline: Any, folder: Path, given: str) -> None:
    """Check that a model made without memory (on torch's device "meta") is not far larger than the weights that are to fill it.

    Raises InputError where it is: what the files lack would be allocated, and filled with random numbers.
    """
    stored = stored_in(folder, given)
    wanted = sum(parameter.numel() for parameter in outline.parameters())
    if wanted > 2 * stored.num_numbers + 2**20:  # tied weights are stored once, and some parts may be left out
        raise InputError(
            f"{given}: config.json describes a model of {wanted:.4g} numbers, and its safetensors hold {stored.num_numbers:.4g}. {_ANEW}"
        )


def _read(path: Path) -> object:
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise InputError(f"{path}: expected at most {_LONGEST_FILE} bytes of JSON, got more. {_ANEW}")
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {str(error)[:200]}. {_ANEW}") from error
    return document


def _numbers(value: object, field: str) -> Iterator[tuple[str, int | float]]:
    """Yield each number of a document with its dotted name."""
    waiting = [(field, value)]
    while waiting:
        name, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in inner.items()]
        elif isinstance(inner, list):
            waiting += [(f"{name}.{index}", item) for index, item in enumerate(inner)]
        elif isinstance(inner, int | float) and not isinstance(inner, bool) and name:
            yield name, inner
