"""Tables: one row a region as parquet or CSV, and the parquet that Hugging Face's `datasets` loads, one row a picture."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any, cast

from rlabel.formats.rows import finite
from rlabel.formats.shapes import safe_stem
from rlabel.formats.shown import LeftOut, ShownLabel, ShownPicture
from rlabel.formats.writing import Export, buffered, picture_bytes
from rlabel.records import BoxXywh, JsonObject, JsonValue

_ROWS_A_GROUP = 20_000
_PICTURES_A_GROUP, _BYTES_A_GROUP = 1000, 64 * 1024 * 1024
_BYTES_A_SHARD = 500 * 1024 * 1024
_CHUNK_BYTES = 1 << 20

# Columns of the region table: name and type; text unless told.
_NUMBERS = (
    "score",
    "text_score",
    "similarity",
    "margin",
    "mean_logprob",
    "min_logprob",
    "raw_score",
    "x",
    "y",
    "width",
    "height",
    "area",
)
_COLUMNS = (
    "image_id", "file_name", "image_width", "image_height", "annotation_id", "region_id", "status", "category_id", "category", *_NUMBERS[:1],
    "text", *_NUMBERS[1:7], "num_tokens", "decided_by", *_NUMBERS[7:], "rle", "reason", "nearest_name", "run_id",
)  # fmt: skip
_WHOLE = ("image_width", "image_height", "category_id", "num_tokens")
# What a spreadsheet takes for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_parquet(export: Export) -> list[str]:
    """Write regions.parquet: one row a region, labels first, then a run's abstentions and failures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.float64() for name in _NUMBERS} | {name: pa.int64() for name in _WHOLE}
    schema = pa.schema(
        [(name, types.get(name, pa.string())) for name in _COLUMNS], metadata={"made_by": export.labels.made_by}
    )
    with tempfile.NamedTemporaryFile(prefix=".rlabel-tmp-") as spool:
        with pq.ParquetWriter(spool.name, schema, compression="zstd") as writer:
            rows = _region_rows(export)
            is_first = True
            while (held := list(islice(rows, _ROWS_A_GROUP))) or is_first:
                is_first = False  # a table without a row is a table all the same
                columns = [pa.array([row.get(field.name) for row in held], field.type) for field in schema]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        export.out.put_stream("regions.parquet", _chunks(spool.file))
    return ["regions.parquet"]


def write_csv(export: Export) -> list[str]:
    """Write regions.csv, the same table for spreadsheets (RFC 4180): texts that one would take for a formula get a ' before them."""

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(_COLUMNS)
        for row in _region_rows(export):
            writer.writerow(_cell(export, row.get(name)) for name in _COLUMNS)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
        yield buffer.getvalue()

    export.out.put_stream("regions.csv", buffered(lines()))
    return ["regions.csv"]


def _cell(export: Export, value: JsonValue) -> JsonValue:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        export.notes.say(
            "texts written with a ' before them, since a spreadsheet would take them for formulas", value[:20]
        )
        return f"'{value}"
    return value


def _region_rows(export: Export) -> Iterator[JsonObject]:
    for picture in export.labels.pictures():
        for label in picture.labels:
            yield _label_row(export, picture, label)
    for left_out in export.labels.left_out():
        yield _left_out_row(left_out)


def _label_row(export: Export, picture: ShownPicture, label: ShownLabel) -> JsonObject:
    row: JsonObject = {
        "image_id": _text(picture.image_id),
        "file_name": picture.file_name,
        "image_width": picture.width_px,
        "image_height": picture.height_px,
        "annotation_id": _text(label.annotation_id),
        "status": "labeled",
        "category_id": label.category.category_id,
        "category": label.category.name,
        "score": label.score,
        "area": label.area_px,
        **_sides(label.box_xywh),
        **_known(label.attributes),
    }
    if label.segmentation is not None and not export.boxes_only:
        rle = export.shapes.rle(picture, label)
        row["rle"] = None if rle is None else rle["counts"]
    return row


def _left_out_row(left_out: LeftOut) -> JsonObject:
    fields = left_out.fields
    box = fields.get("bbox")
    sides = [finite(side) for side in box] if isinstance(box, list) and len(box) == 4 else []
    return {
        **_known(fields),
        **(_sides(cast(BoxXywh, tuple(sides))) if sides and None not in sides else {}),
        "image_id": _text(fields.get("image_id")),
        "file_name": _text(fields.get("file_name")),
        "status": left_out.status,
        "area": finite(fields.get("area")),
        "reason": _text(fields.get("reason")),
        "nearest_name": _text(fields.get("nearest_name")),
    }


def _known(fields: JsonObject) -> JsonObject:
    """Return what attributes and lines of abstained.jsonl say by the same names, as the table's types."""
    numbers = ("text_score", "similarity", "margin", "mean_logprob", "min_logprob", "raw_score")
    found: JsonObject = {name: finite(fields.get(name)) for name in numbers}
    tokens = fields.get("num_tokens")
    found["num_tokens"] = tokens if type(tokens) is int else None
    return found | {name: _text(fields.get(name)) for name in ("region_id", "text", "decided_by", "run_id")}


def _sides(box: BoxXywh) -> JsonObject:
    return dict(zip(("x", "y", "width", "height"), box, strict=True))


def _text(value: JsonValue) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()  # a lone surrogate has no place in a table


def write_huggingface(export: Export) -> list[str]:
    """Write data/train-NNNNN.parquet: a picture a row, its regions as lists in `objects`, categories as a ClassLabel.

    image: the file's bytes where --images is given, else its path. bbox: left, top, width, height in pixels. rle: COCO's
    compressed counts, for a picture of height x width; empty for a box.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects: dict[str, Any] = {
        "id": pa.string(), "category": pa.int64(), "category_id": pa.int64(), "bbox": pa.list_(pa.float64()), "area": pa.float64(),
        "iscrowd": pa.bool_(), "score": pa.float64(), "text": pa.string(), "rle": pa.string(),
    }  # fmt: skip
    names = [category.name for category in export.labels.categories.values()]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("image_id", pa.string()),
            ("width", pa.int64()),
            ("height", pa.int64()),
            ("objects", pa.struct([(name, pa.list_(kind)) for name, kind in objects.items()])),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": _features(names)}})},
    )
    if export.images is None:
        export.notes.say(
            "pictures written as paths alone: give --images to put them into the table", None, export.labels.num_images
        )
    used: set[str] = set()
    pictures = _picture_rows(export, list(objects), used)
    files: list[str] = []
    pending = next(pictures, None)
    while pending is not None:
        with tempfile.NamedTemporaryFile(prefix=".rlabel-tmp-") as spool:
            num_bytes = 0
            with pq.ParquetWriter(spool.name, schema, compression="zstd") as writer:
                while pending is not None and num_bytes < _BYTES_A_SHARD:
                    held: list[dict[str, Any]] = []
                    in_group = 0
                    while pending is not None and len(held) < _PICTURES_A_GROUP and in_group < _BYTES_A_GROUP:
                        held.append(pending)
                        in_group += len(pending["image"]["bytes"] or b"") + 200 * len(pending["objects"]["id"])
                        pending = next(pictures, None)
                    writer.write_table(pa.Table.from_pylist(held, schema))
                    num_bytes += in_group
            files.append(f"data/train-{len(files):05d}.parquet")
            export.out.put_stream(files[-1], _chunks(spool.file))
    return files


def _picture_rows(export: Export, columns: list[str], used: set[str]) -> Iterator[dict[str, Any]]:
    for picture in export.labels.pictures():
        if safe_stem(picture, used, export.notes) is None:
            continue
        rows: list[dict[str, Any]] = []
        for label in picture.labels:
            row = _label_row(export, picture, label)
            rows.append(
                {
                    "id": row["annotation_id"], "category": label.category.index, "category_id": label.category.category_id,
                    "bbox": list(label.box_xywh), "area": label.area_px, "iscrowd": label.is_crowd, "score": label.score,
                    "text": row.get("text"), "rle": row.get("rle"),
                }
            )  # fmt: skip
        yield {
            "image": {"bytes": picture_bytes(export, picture), "path": picture.file_name},
            "image_id": _text(picture.image_id),
            "width": picture.width_px,
            "height": picture.height_px,
            "objects": {name: [row[name] for row in rows] for name in columns},
        }


def _features(names: list[str]) -> JsonObject:
    """Return the types of the columns in the words of `datasets` (datasets/features/features.py)."""

    def of(kind: str) -> JsonObject:
        return {"dtype": kind, "_type": "Value"}

    def many(feature: JsonObject) -> JsonObject:
        return {"feature": feature, "_type": "List"}

    label: JsonObject = {"names": list(names), "_type": "ClassLabel"}
    texts = {name: many(of("string")) for name in ("id", "text", "rle")}
    numbers = {name: many(of("float64")) for name in ("area", "score")}
    return {
        "image": {"_type": "Image"},
        "image_id": of("string"),
        "width": of("int64"),
        "height": of("int64"),
        "objects": {
            "id": texts["id"],
            "category": many(label),
            "category_id": many(of("int64")),
            "bbox": many(many(of("float64"))),
            "area": numbers["area"],
            "iscrowd": many(of("bool")),
            "score": numbers["score"],
            "text": texts["text"],
            "rle": texts["rle"],
        },
    }


def _chunks(spool: IO[bytes] | Any) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
