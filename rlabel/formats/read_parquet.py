"""Hugging Face data sets as parquet: a column of pictures and a column `objects` of boxes, masks and categories.

Hugging Face's documentation, "Object detection" (datasets, image dataset guides): `objects` is a struct of lists or a list of
structs; the names of a ClassLabel stand in the schema's metadata under `huggingface`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from rlabel.corpus.limits import Limits
from rlabel.errors import InputError
from rlabel.formats.folders import files_below
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.json_files import parse_document
from rlabel.formats.kept_pictures import Keep, KeptPictures
from rlabel.formats.rows import Boxes, is_corner_box, region_of_row, rows_of
from rlabel.records import JsonValue
from rlabel.run.canonical import object_of

_PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png")
_OBJECT_COLUMNS = ("objects", "annotations", "regions", "instances", "bbox", "bboxes")
_BATCH_ROWS = 16
_DEEPEST = 8
_MOST_GROUP_BYTES = 8 * 1024**3


class ParquetLayout:
    """One parquet file, or a folder of them (data/train-00000-of-00002.parquet ...). images: where the pictures are written."""

    def __init__(self, source: Path, images: str | None, boxes: Boxes, keep: Keep = "new") -> None:
        self.notes = Notes()
        self.files = [source] if source.is_file() else [source / name for name in files_below(source, (".parquet",))]
        self.boxes = boxes
        if not self.files:
            raise InputError(f"{source}: no parquet file in it. Check the path.")
        self.names = self._opened(self.files[0])[1]
        self.kept = KeptPictures(images, f"the table {self.files[0].name}", keep)
        self.num_corner_boxes = 0

    def pictures(self) -> Iterator[FoundPicture]:
        import pyarrow as pa

        for path in self.files:
            table, names = self._opened(path)
            columns = [
                name
                for name in table.schema_arrow.names
                if name in (*_PICTURE_COLUMNS, *_OBJECT_COLUMNS, "image_id", "file_name")
            ]
            index = 0
            try:
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                    for row in batch.to_pylist():
                        index += 1
                        yield from self._picture(row, names, f"{path.name}, row {index}")
            except (pa.ArrowException, OSError, MemoryError) as error:
                raise InputError(f"{path}: cannot be read on from row {index + 1} ({error}). Fetch it anew.") from error
        self.notes.say(
            "boxes that leave their picture if they are left, top, width and height, and fit it as two corners: give --boxes xyxy "
            "(rlabel label: --regions-boxes xyxy) if they are those",
            None,
            self.num_corner_boxes,
        )

    def _opened(self, path: Path) -> tuple[Any, list[str]]:
        """Return an opened file and the names of its categories, which its own metadata lists."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise InputError(f"{path}: not a parquet file that can be read ({error}). Fetch it anew.") from error
        schema = table.schema_arrow
        if not set(schema.names) & set(_PICTURE_COLUMNS) or not set(schema.names) & set(_OBJECT_COLUMNS):
            raise InputError(
                f"{path}: expected a column of pictures ({', '.join(_PICTURE_COLUMNS[:2])}) and one of regions "
                f"({', '.join(_OBJECT_COLUMNS[:3])}), got {', '.join(schema.names[:12])}. Rename them, or convert another file."
            )
        largest = max(
            (table.metadata.row_group(index).total_byte_size for index in range(table.num_row_groups)), default=0
        )
        if largest > _MOST_GROUP_BYTES:
            raise InputError(
                f"{path}: a row group of {largest} bytes, the limit is {_MOST_GROUP_BYTES}. Write it with smaller ones."
            )
        return table, _class_names((schema.metadata or {}).get(b"huggingface", b""))

    def _picture(self, row: dict[str, Any], names: list[str], where: str) -> Iterator[FoundPicture]:
        value = next((row[key] for key in _PICTURE_COLUMNS if row.get(key) is not None), None)
        cell = value if isinstance(value, dict) else {"bytes": value}
        data, path = cell.get("bytes"), cell.get("path")
        if not isinstance(data, bytes):
            self.notes.say("rows left out, since the picture's bytes are not in the table", where)
            return
        own = row.get("file_name") or path or f"image-{row.get('image_id', where.rpartition(' ')[2])}"
        kept = self.kept.keep(str(own), data)
        if isinstance(kept, str):
            self.notes.say(kept, where)
            return
        name, size = kept
        regions: list[FoundRegion] = []
        for item in (rows_of(object_of(_plain(row))) or [])[: Limits().max_regions_per_image]:
            if isinstance(item.get("rle"), str) and item["rle"]:  # as `rlabel export --to huggingface` writes masks
                item["rle"] = {"size": [size[1], size[0]], "counts": item["rle"]}
            region = region_of_row(item, names, self.boxes)
            if isinstance(region, str):
                self.notes.say(region, where)
                continue
            if self.boxes == "xywh" and region.segmentation is None:
                self.num_corner_boxes += is_corner_box(item.get("bbox", item.get("bboxes")), *size)
            regions.append(region)
        yield FoundPicture(file_name=name, width_px=size[0], height_px=size[1], regions=tuple(regions))


def _plain(value: Any, depth: int = 0) -> JsonValue:
    """Return a cell as JSON has it: bytes as text (an RLE's counts), dates and the like as nothing."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes) and depth > 1:  # not the picture's own
        return value.decode("ascii", "replace")
    if isinstance(value, list) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < _DEEPEST:
        return {str(key): _plain(item, depth + 1) for key, item in value.items() if key not in _PICTURE_COLUMNS}
    return None


def _class_names(metadata: bytes) -> list[str]:
    """Return the names of the first ClassLabel below the regions' column of a `huggingface` metadata; [] without one."""
    try:
        document = object_of(parse_document(metadata.decode("utf-8"))) if metadata else {}
    except (ValueError, RecursionError):
        return []
    features = object_of(object_of(document.get("info")).get("features"))
    level: list[JsonValue] = [features.get(key) for key in _OBJECT_COLUMNS if key in features]
    for _ in range(8):
        for value in level:
            if isinstance(value, dict) and value.get("_type") == "ClassLabel" and isinstance(value.get("names"), list):
                return [str(name) for name in cast("list[JsonValue]", value["names"])]
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
    return []
