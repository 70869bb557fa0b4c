"""From one row of a COCO file to a record: what of it is usable, what is not and why. Knows nothing of files.

A caption, a category or a score of the input never gets into a `Region`: a labeler must not see what it is to find.
"""

from __future__ import annotations

import json
import math
import re
from typing import cast

from rlabel.corpus.json_stream import parse_row
from rlabel.corpus.spool import JoinedRow, Key
from rlabel.records import ImageRecord, JsonObject, JsonValue, Region, RegionId

# What a truth file says of a region; read by `read_labeled` alone.
LABEL_KEYS = ("category_id", "category_name", "caption", "score")
_REGION_KEYS = frozenset({"id", "image_id", "segmentation", "bbox", "iscrowd", "area", *LABEL_KEYS})
_INT64 = 2**63
_DEEPEST = 32

# A spooled row (our own canonical text) with COCO's keys alone and an id that it may keep.
_NUMBER = r"-?[0-9]{1,18}(?:\.[0-9]+)?"
_PLAIN_ROW = re.compile(
    rf'\{{(?:"area":(?:null|{_NUMBER})(?:,|(?=\}})))?(?:"bbox":(null|\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\])(?:,|(?=\}})))?'
    r'"id":([1-9][0-9]{0,17}),"image_id":(?:-?[0-9]+|"[^"\\]*")(?:,"iscrowd":(0|1))?'
    r'(?:,"segmentation":(null|\[[-0-9.eE+,\[\]]*+|\{"counts":"[^"\\]*+(?:\\.[^"\\]*+)*+","size":\[[0-9]+,[0-9]+\]\}))?\}'
)

_encode_sorted = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_encode_as_is = json.JSONEncoder(separators=(",", ":")).encode


def canonical_text(value: JsonValue) -> str:
    """Return the value as ASCII JSON with sorted keys and no blanks: the same for the same content."""
    return _encode_sorted(value)


def verbatim_text(value: JsonValue) -> str:
    """Return the value as ASCII JSON without blanks, keys in their own order."""
    return _encode_as_is(value)


def row_text(row: JsonValue) -> str | None:
    """Return a row's canonical text; None if it nests too deeply for code that walks it by recursion."""
    try:
        text = _encode_sorted(row)
    except RecursionError:
        return None
    # Brackets in the text bound the depth: for nearly every row two fast counts are enough.
    return text if text.count("[") + text.count("{") <= _DEEPEST or _is_shallow(row) else None


def _is_shallow(value: JsonValue) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(_DEEPEST):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if type(item) is list or type(item) is dict
        ]
        if not level:
            return True
    return False


def image_key(value: JsonValue) -> Key:
    """Return the key of an image id, equal for equal ids (5 and 5.0, not 5 and "5"); None for an unusable one."""
    if type(value) is int:
        return value if -_INT64 <= value < _INT64 else f"int {value}"
    if isinstance(value, str):
        return "str " + (value if value.isascii() else _encode_as_is(value))
    if isinstance(value, float) and math.isfinite(value):
        return image_key(int(value)) if value.is_integer() else f"float {value!r}"
    return None


def region_id_key(value: JsonValue) -> Key:
    """Return the key of an annotation id, equal for ids whose text is equal (5 and "5"); None if the row has none."""
    if type(value) is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, str):
        if not value.isascii():
            return value if _is_encodable(value) else _encode_as_is(value)
        # Only texts that an integer would print as: "05" and "+5" are other ids than 5.
        is_integer = len(value) <= 18 and value.removeprefix("-").isdigit() and str(int(value)) == value
        return int(value) if is_integer else value
    return None if value is None or isinstance(value, list | dict) else _encode_as_is(value)


def usable_file_name(row: JsonObject) -> str | None:
    """Return the row's path below the image root: its file_name, or, as LVIS has it, the end of its coco_url."""
    name = row.get("file_name")
    if isinstance(name, str) and name.strip():
        return name
    url = row.get("coco_url")
    if isinstance(url, str) and url.rstrip("/").count("/") >= 2:
        return "/".join(url.rstrip("/").split("/")[-2:])
    return None


def image_record(text: str, regions: tuple[Region, ...]) -> ImageRecord:
    """Return the record of an image row that the reader found to be an object."""
    row = cast(JsonObject, parse_row(text))
    return ImageRecord(
        row=row,
        file_name=usable_file_name(row),
        width_px=_side(row.get("width")),
        height_px=_side(row.get("height")),
        regions=regions,
    )


def region_of(joined: JoinedRow, problem: str | None) -> Region:
    """Return the region of a spooled row, whatever is in it.

    problem: why it cannot be labeled, if the reader knows already.
    """
    position = cast(int, joined.region_seq)
    parsed = parse_row(cast(str, joined.region_text))
    row: JsonObject = parsed if isinstance(parsed, dict) else {}
    key = joined.name or (f"row {position}" if joined.id_key is None else str(joined.id_key))
    identity = row.get("id")
    is_own = type(identity) is int and 0 < identity < _INT64 and joined.name is None
    box_xywh = _box(row.get("bbox"))
    extra = {name: value for name, value in row.items() if name not in _REGION_KEYS}
    if box_xywh is None and row.get("bbox") is not None:
        extra["bbox"] = row["bbox"]  # unusable, but what the row says
    return Region(
        key=key,
        region_id=_region_id(identity),
        annotation_id=cast(int, identity) if is_own else None,
        segmentation=row.get("segmentation"),
        box_xywh=box_xywh,
        is_crowd=row.get("iscrowd") in (1, "1"),
        extra=extra,
        problem=problem,
    )


def region_content(region: Region) -> str:
    """Return the canonical text of all that a region is: what the digest of a shard is made of."""
    return canonical_text(
        {
            "key": region.key,
            "region_id": region.region_id,
            "annotation_id": region.annotation_id,
            "segmentation": region.segmentation,
            "box_xywh": None if region.box_xywh is None else list(region.box_xywh),
            "is_crowd": region.is_crowd,
            "extra": region.extra,
            "problem": region.problem,
        }
    )


def spooled_content(joined: JoinedRow, problem: str | None) -> str:
    """Return `region_content` of the region of a spooled row; a row of COCO's own keys is not parsed for it."""
    plain = _PLAIN_ROW.fullmatch(joined.region_text or "") if problem is None and joined.name is None else None
    if plain is None:
        return region_content(region_of(joined, problem))
    box, identity, crowd, shape = plain.groups()
    return (
        f'{{"annotation_id":{identity},"box_xywh":{box or "null"},"extra":{{}},"is_crowd":{"true" if crowd == "1" else "false"},'
        f'"key":"{identity}","problem":null,"region_id":{identity},"segmentation":{shape or "null"}}}'
    )


def stray_problem(text: str) -> str:
    """Return why a region that no image has cannot be labeled."""
    row = parse_row(text)
    if not isinstance(row, dict):
        return f"the row is not a JSON object but {text[:60]}"
    if image_key(row.get("image_id")) is None:
        return "the row has no usable image_id"
    return f"its image_id {_encode_as_is(row['image_id'])[:80]} is in no image row"


def _region_id(value: JsonValue) -> RegionId:
    if type(value) is int or isinstance(value, str):
        return value
    return None if value is None or isinstance(value, list | dict) else _encode_as_is(value)


def _box(value: JsonValue) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    for side in value:
        if type(side) is float:
            if not math.isfinite(side):
                return None
        elif type(side) is not int or not -_INT64 <= side < _INT64:
            return None
    return cast("tuple[float, float, float, float]", tuple(value))


def _side(value: JsonValue) -> int | None:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value < _INT64 else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
