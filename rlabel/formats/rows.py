"""Rows of regions that are COCO's or nearly: SA-1B's annotations, `objects` of Hugging Face's data sets, JSON in tar archives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rlabel.formats.found import FoundRegion
from rlabel.records import BoxXywh, JsonObject, JsonValue
from rlabel.run.canonical import object_of

Boxes = Literal["xywh", "xyxy"]

_BOX_KEYS = ("bbox", "box", "boxes", "bboxes")
_SHAPE_KEYS = ("segmentation", "segmentations", "mask", "rle", "polygon", "polygons")
_NAME_KEYS = (
    "category_name",
    "category",
    "categories",
    "label",
    "labels",
    "class",
    "class_name",
    "name",
    "category_id",
    "class_id",
)
_LIST_KEYS = ("annotations", "objects", "regions", "instances")
_CONFIDENCES = ("predicted_iou", "stability_score", "confidence", "score")
_MOST_ATTRIBUTE_CHARACTERS = 200


def finite(value: JsonValue) -> float | None:
    """Return a finite number; None for anything else, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def side(value: JsonValue) -> int | None:
    """Return the side of a picture: a positive whole number below 2^31; None for anything else."""
    number = finite(value)
    return int(number) if number is not None and number.is_integer() and 0 < number < 2**31 else None


def rows_of(document: JsonObject) -> list[JsonObject] | None:
    """Return the regions of one picture's object: a list of objects, or an object of equally long lists; None without one."""
    for key in _LIST_KEYS:
        value = document.get(key)
        if isinstance(value, list):
            return [object_of(row) for row in value]
        if isinstance(value, dict):
            return _rows_of_columns(value)
    if any(isinstance(document.get(key), list) for key in _BOX_KEYS):
        return _rows_of_columns(document)
    return None


def _rows_of_columns(columns: JsonObject) -> list[JsonObject]:
    """Return an object of lists as a list of objects; of lists of other lengths than the boxes' nothing is taken."""
    key = next((key for key in (*_BOX_KEYS, *_SHAPE_KEYS, *columns) if isinstance(columns.get(key), list)), None)
    first = columns.get(key) if key is not None else None
    if not isinstance(first, list):
        return []
    lists = {name: value for name, value in columns.items() if isinstance(value, list) and len(value) == len(first)}
    return [{name: value[index] for name, value in lists.items()} for index in range(len(first))]


def region_of_row(row: JsonObject, names: Sequence[str], boxes: Boxes) -> FoundRegion | str:
    """Return the region of one row, or why it is left out.

    names: what whole numbers in place of a name mean. boxes: how its box is meant.
    """
    segmentation = next((row[key] for key in _SHAPE_KEYS if isinstance(row.get(key), list | dict) and row[key]), None)
    if (
        isinstance(segmentation, list)
        and segmentation
        and all(isinstance(point, int | float) for point in segmentation)
    ):
        segmentation = [segmentation]
    box = _box(next((row[key] for key in _BOX_KEYS if row.get(key) is not None), None), boxes)
    if segmentation is None and box is None:
        return "regions left out, since they have neither a segmentation nor a box of four numbers"
    attributes: JsonObject = {}
    for key in _CONFIDENCES:
        value = finite(row.get(key))
        if value is not None:
            attributes[key] = value
    source_id = row.get("id")
    if type(source_id) is int or (isinstance(source_id, str) and len(source_id) <= _MOST_ATTRIBUTE_CHARACTERS):
        attributes["source_id"] = source_id
    return FoundRegion(
        segmentation=segmentation,
        box_xywh=box,
        name=_name(row, names),
        is_crowd=row.get("iscrowd") in (1, True),
        attributes=attributes,
    )


def is_corner_box(value: JsonValue, width: int, height: int) -> bool:
    """Return whether four numbers can only be two corners: read as corner and sides they would leave the picture."""
    sides = [finite(item) for item in value] if isinstance(value, list) and len(value) == 4 else []
    if len(sides) != 4 or any(item is None for item in sides):
        return False
    x, y, right, bottom = (item for item in sides if item is not None)
    # A pixel of slack: boxes are rounded.
    return x < right <= width + 1 and y < bottom <= height + 1 and (x + right > width + 1 or y + bottom > height + 1)


def _box(value: JsonValue, boxes: Boxes) -> BoxXywh | None:
    sides = [finite(item) for item in value] if isinstance(value, list) and len(value) == 4 else []
    if len(sides) != 4 or any(item is None for item in sides):
        return None
    x, y, third, fourth = (item for item in sides if item is not None)
    return (x, y, third - x, fourth - y) if boxes == "xyxy" else (x, y, third, fourth)


def _name(row: JsonObject, names: Sequence[str]) -> str | None:
    for key in _NAME_KEYS:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if type(value) is int and 0 <= value < len(names):
            return names[value]
        if type(value) is int and not names:
            return f"class {value}"
    return None
