"""Points, scribbles and boxes that a person gave, each prompt of which becomes one mask."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlabel.corpus.rows import canonical_text
from rlabel.errors import InputError
from rlabel.records import ImageRecord, JsonValue
from rlabel.storage import open_url

_LONGEST_FILE = 1 << 26
_MOST_POINTS = 1000
# Points along a scribble, evenly spaced: more say nothing new to a mask decoder.
SCRIBBLE_POINTS = 16
_KEYS = {"image_id", "file_name", "points", "labels", "scribbles", "box"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One region's prompt, in upright image pixels. points_xy with a label each: 1 inside, 0 outside. box_xyxy: around it, or None."""

    points_xy: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box_xyxy: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """of_pictures: by `file NAME` or `id ID`."""

    of_pictures: Mapping[str, tuple[Prompt, ...]]
    sha256: str


def prompts_of(record: ImageRecord, of_pictures: Mapping[str, tuple[Prompt, ...]]) -> tuple[Prompt, ...]:
    """Return the prompts of a picture, those by its file name first."""
    by_id = of_pictures.get(_id_key(record.row.get("id")), ())
    return (*of_pictures.get(f"file {record.file_name}", ()), *by_id)


def read_prompts(url: str) -> Prompts:
    """Return the prompts of a JSON list of {image_id or file_name, points, labels, scribbles, box}.

    points: [[x, y], ...], labels: 1 or 0 each, all 1 if left out; scribbles: [[[x, y], ...], ...] inside; box: [x, y, width, height].

    Raises InputError naming the row and what is wrong with it.
    """
    where = f"--prompts {url}"
    try:
        with open_url(url) as stream:
            data = stream.read(_LONGEST_FILE + 1)
    except FileNotFoundError as error:
        raise InputError(f"{where}: there is no such file. Give a JSON list of prompts.") from error
    if len(data) > _LONGEST_FILE:
        raise InputError(f"{where}: expected at most {_LONGEST_FILE} bytes, got more. Cut it into several runs.")
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, got: {str(error)[:200]}.") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where}: expected a JSON list with at least one prompt, got {type(rows).__name__}.")
    of_pictures: dict[str, list[Prompt]] = {}
    for index, row in enumerate(rows):
        key, prompt = _row(row, f"{where}, row {index}")
        of_pictures.setdefault(key, []).append(prompt)
    return Prompts(
        of_pictures={key: tuple(own) for key, own in of_pictures.items()}, sha256=hashlib.sha256(data).hexdigest()
    )


def _row(row: JsonValue, where: str) -> tuple[str, Prompt]:
    if not isinstance(row, dict) or not row.keys() <= _KEYS:
        raise InputError(f"{where}: expected an object with keys of {', '.join(sorted(_KEYS))}, got {str(row)[:80]}.")
    name, image_id = row.get("file_name"), row.get("image_id")
    if isinstance(name, str):
        key = f"file {name}"
    elif isinstance(image_id, int | str):
        key = _id_key(image_id)
    else:
        raise InputError(f"{where}: expected image_id or file_name, got neither. Say which picture it is of.")
    points = _points(row.get("points", []), f"{where}, points")
    given = row.get("labels", [1] * len(points))
    if not isinstance(given, list) or len(given) != len(points) or any(label not in (0, 1) for label in given):
        raise InputError(f"{where}, labels: expected 1 (inside) or 0 (outside) for each point, got {str(given)[:80]}.")
    labels = [int(bool(label)) for label in given]
    scribbles = row.get("scribbles", [])
    if not isinstance(scribbles, list) or len(scribbles) > _MOST_POINTS:
        raise InputError(f"{where}, scribbles: expected a list of lines, each a list of points.")
    for scribble in scribbles:
        along = along_line(_points(scribble, f"{where}, scribbles"), SCRIBBLE_POINTS)
        points += along
        labels += [1] * len(along)
    box = _box(row.get("box"), f"{where}, box")
    if not points and box is None:
        raise InputError(f"{where}: expected points, scribbles or a box, got none of them.")
    return key, Prompt(points_xy=tuple(points), labels=tuple(labels), box_xyxy=box)


def along_line(points: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Return so many points evenly spaced along a line through points, its ends among them; one point where it has no length."""
    steps = [math.dist(one, other) for one, other in zip(points, points[1:], strict=False)]
    length = sum(steps)
    if length == 0 or count < 2:
        return points[:1]
    found, place, passed = [], 0, 0.0
    for index in range(count):
        wanted = length * index / (count - 1)
        while place < len(steps) - 1 and passed + steps[place] < wanted:
            passed += steps[place]
            place += 1
        share = 0.0 if steps[place] == 0 else min(max((wanted - passed) / steps[place], 0.0), 1.0)
        (x0, y0), (x1, y1) = points[place], points[place + 1]
        found.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
    return found


def _points(value: JsonValue, where: str) -> list[tuple[float, float]]:
    if not isinstance(value, list) or len(value) > _MOST_POINTS:
        raise InputError(f"{where}: expected a list of at most {_MOST_POINTS} points [x, y].")
    points = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            raise InputError(f"{where}: expected [x, y] in pixels, got {str(point)[:80]}.")
        x, y = (_number(side, where) for side in point)
        points.append((x, y))
    return points


def _box(value: JsonValue, where: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{where}: expected [x, y, width, height] in pixels, got {str(value)[:80]}.")
    x, y, width, height = (_number(side, where) for side in value)
    if width <= 0 or height <= 0:
        raise InputError(f"{where}: expected a positive width and height, got {width:g} and {height:g}.")
    return x, y, x + width, y + height


def _number(value: JsonValue, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e6:
        raise InputError(f"{where}: expected a number of pixels, got {str(value)[:40]}.")
    return float(value)


def _id_key(image_id: JsonValue) -> str:
    return f"id {canonical_text(image_id)}"
