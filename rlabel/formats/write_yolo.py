"""YOLO: labels/STEM.txt with one line a label in shares of the picture's sides, and data.yaml with the names.

Ultralytics' documentation, "Object Detection Datasets" and "Instance Segmentation Datasets". One line holds one polygon, so pieces
are joined and holes cut open by lines of no width, as Ultralytics' own converter of COCO joins pieces.
"""

from __future__ import annotations

import re
from functools import lru_cache

import yaml

from rlabel.formats.outlines import Loop
from rlabel.formats.shapes import whole_numbers
from rlabel.formats.shown import ShownLabel, ShownPicture
from rlabel.formats.writing import Export, Files, made_once, named_pictures

_ZEROS = re.compile(r"\.?0+(?= |$)")


def write_yolo(export: Export) -> list[str]:
    """Write labels/, data.yaml, and images/ where the pictures' folder is given.

    Lines are boxes, or, where any label has a mask, polygons: Ultralytics drops one kind where a file has both. Classes count
    from 0 in the order of the categories; data.yaml names the categories' own ids.
    """
    with Files(export.out) as files:
        for stem, picture in named_pictures(export):
            lines = [line for label in picture.labels if (line := _line(export, picture, label)) is not None]
            files.put(f"labels/{stem}.txt", "".join(lines).encode())
            files.copy_picture(export, picture, "images")
    categories = export.labels.categories.values()
    document = {
        "path": ".",
        "train": "images",
        "val": "images",
        "names": {category.index: category.name for category in categories},
        "category_ids": {category.index: category.category_id for category in categories},
    }
    export.out.put("data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())
    if export.images is None:
        export.notes.say("pictures not copied: give --images, or put them into images/", None, export.labels.num_images)
    return ["data.yaml", "labels/", *(["images/"] if export.images is not None else [])]


def _line(export: Export, picture: ShownPicture, label: ShownLabel) -> str | None:
    if label.is_crowd:
        export.notes.say("labels left out, since they are crowds, which YOLO has not")
        return None
    mask = export.shapes.mask(picture, label)
    if mask is None:
        return None
    if label.score is not None:
        export.notes.say("scores left out, which YOLO's training labels have not")
    width, height = mask.width_px, mask.height_px
    x, y, w, h = label.box_xywh
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if not export.with_masks:
        numbers = [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
    elif label.segmentation is None:
        numbers = [
            left / width,
            top / height,
            right / width,
            top / height,
            right / width,
            bottom / height,
            left / width,
            bottom / height,
        ]
    else:
        return f"{label.category.index} {_polygon(export.shapes.polygon(label, mask), width, height)}\n"
    return f"{label.category.index} {_shares(numbers)}\n"


def _polygon(loop: Loop, width_px: int, height_px: int) -> str:
    """Return the shares of a polygon's points; those of whole pixels, as traced ones are, have been written before."""
    whole = whole_numbers(loop)
    if whole is None:
        return _shares((loop / (width_px, height_px)).ravel().tolist())
    texts = [""] * len(whole)
    texts[::2], texts[1::2] = _whole_shares(whole[::2], width_px), _whole_shares(whole[1::2], height_px)
    return " ".join(texts)


def _whole_shares(places: list[int], side_px: int) -> list[str]:
    return made_once(places, _known_shares(side_px), lambda new: _shares([px / side_px for px in new]).split(" "))


@lru_cache(maxsize=256)
def _known_shares(side_px: int) -> dict[int, str]:
    return {}


def _shares(numbers: list[float]) -> str:
    """Return shares of a side with eight digits, a thousandth of a pixel of the largest picture, without zeros at their ends."""
    text = " ".join(["%.8f"] * len(numbers)) % tuple(min(max(number, 0.0), 1.0) for number in numbers)
    return _ZEROS.sub("", text)
