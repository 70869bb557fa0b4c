"""LVIS files, versions 0.5 and 1: COCO's layout with federated fields, which are kept.

Facts of the layout: lvis-api's loader (neg_category_ids, not_exhaustive_category_ids on images; frequency, synonyms, def
and synset on categories; coco_url instead of file_name from version 1 on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from rlabel.corpus.coco import LabeledCorpus
from rlabel.corpus.coco_source import CocoSource, image_where
from rlabel.corpus.labeled import Federated, LabeledImage
from rlabel.corpus.rows import usable_file_name
from rlabel.errors import InputError
from rlabel.records import ImageRecord, JsonObject, JsonValue

IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
CATEGORY_KEYS = ("frequency", "synonyms")
_REMEDY = "Take the file as LVIS publishes it (lvis_v1_train.json), or read this one as coco."


def lvis_source(labeled: LabeledCorpus, where: str, guess: str | None = None) -> CocoSource:
    """Return the source of an LVIS file that was read as a labeled corpus, which it takes over.

    Every image has `federated` set; pictures are found by the end of coco_url ("train2017/000000391895.jpg").

    Raises InputError, after closing `labeled`, for the first row without LVIS's fields, and as `CocoSource` does.
    """
    rows = labeled.categories if isinstance(labeled.categories, list) else []
    known = frozenset(row["id"] for row in rows if isinstance(row, dict) and type(row.get("id")) is int)
    source = CocoSource(labeled, where, "lvis", guess, _with_federated(where, cast("frozenset[int]", known)))
    # After the images: a plain COCO file is best told by its first image.
    for row in rows:
        if isinstance(row, dict) and (missing := [key for key in CATEGORY_KEYS if key not in row]):
            source.close()
            raise InputError(
                f"{where}, category {row.get('id')} ({row.get('name')!r}): expected {' and '.join(missing)}, as LVIS has "
                f"it, got no such key. {_REMEDY}"
            )
    return source


def _with_federated(where: str, known: frozenset[int]) -> Callable[[LabeledImage], LabeledImage]:
    def adapt(image: LabeledImage) -> LabeledImage:
        row = image.record.row
        if missing := [key for key in IMAGE_KEYS if key not in row]:
            raise InputError(
                f"{where}, {image_where(image.record)}: expected {' and '.join(missing)}, as LVIS has them, got no such key. {_REMEDY}"
            )
        negative, not_exhaustive = (_ids(row[key], known, key, where, image.record) for key in IMAGE_KEYS)
        federated = Federated(negative_ids=negative, not_exhaustive_ids=not_exhaustive)
        return replace(image, record=replace(image.record, file_name=_file_name(row)), federated=federated)

    return adapt


def _ids(value: JsonValue, known: frozenset[int], key: str, where: str, record: ImageRecord) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    for item in ids:
        if type(item) is not int or item not in known:
            raise InputError(
                f"{where}, {image_where(record)}: expected {key} to be a list of ids that the file's categories define, got "
                f"{str(item)[:80]}. Add the category, or take the id out."
            )
    return tuple(cast("list[int]", ids))


def _file_name(row: JsonObject) -> str | None:
    """Return the picture's path. Version 0.5 also has COCO 2014's file name, which names no file of 2017's folders."""
    from_url = usable_file_name({"coco_url": row.get("coco_url")})
    return from_url if from_url is not None else usable_file_name(row)
