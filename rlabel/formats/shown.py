"""Reads what is to be exported, picture by picture, in flat memory: a run's labels.json, or any COCO file.

Annotations may lie in any order: their rows go to a temporary file, and only where each begins is remembered.
"""

from __future__ import annotations

import json
import marshal
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.rows import image_key, usable_file_name
from rlabel.errors import InputError, RunError
from rlabel.formats.found import Notes
from rlabel.formats.rows import finite, side
from rlabel.records import BoxXywh, JsonObject, JsonValue
from rlabel.run.canonical import json_safe, object_of
from rlabel.run.merge import ABSTAINED, FAILURES, LABELS
from rlabel.storage import MissingFile, Store, open_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A category of the file. index: its position from 0, for layouts that number so. row: all that the file says."""

    category_id: int
    name: str
    index: int
    row: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLabel:
    """One label. segmentation: polygons or RLE; None where the region was given as a box. score: None where the file has none."""

    annotation_id: JsonValue
    category: Category
    box_xywh: BoxXywh
    segmentation: JsonValue
    area_px: float | None
    score: float | None
    is_crowd: bool
    attributes: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPicture:
    """A picture with its labels in file order. Sides None where neither its row nor an RLE states them."""

    index: int
    image_id: JsonValue
    file_name: str | None
    width_px: int | None
    height_px: int | None
    row: JsonObject
    labels: tuple[ShownLabel, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A line of abstained.jsonl or failures.jsonl, as the run has it."""

    status: str
    fields: JsonObject = field(default_factory=dict)


class ShownLabels:
    """An opened file of labels; `close` it, or use it in a `with`.

    categories: by id, in file order. notes: labels that no layout can be given. has_masks: a label has more than a box.
    run: the store of the run directory; None for a file.
    """

    def __init__(self, url: str) -> None:
        self.notes = Notes()
        self.run: Store | None = None
        self.info: JsonObject = {}
        self.categories: dict[int, Category] = {}
        self.num_labels = 0
        self.has_masks = False
        self._image_rows: list[bytes] = []
        self._image_of_key: dict[int | str, int] = {}
        self._rows: IO[bytes] = tempfile.TemporaryFile(prefix=".rlabel-tmp-")  # noqa: SIM115
        # Of each row; the last is where the next would begin.
        self._begins, self._image_keys = array("q", [0]), array("q")
        self._late_keys: list[int | str] = []
        try:
            self._read(self._file(url))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._rows.close()

    def __enter__(self) -> ShownLabels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_images(self) -> int:
        return len(self._image_rows)

    @property
    def made_by(self) -> str:
        """A short name of what made the labels: rlabel and the beginning of its run's id."""
        run = object_of(self.info.get("rlabel")).get("run")
        return f"rlabel-{run[:12]}" if isinstance(run, str) else "rlabel"

    def pictures(self) -> Iterator[ShownPicture]:
        """Yield every picture with its labels, in the order of the file's images. May be called again."""
        images = np.frombuffer(self._image_keys, dtype=np.int64)
        order = np.argsort(images, kind="stable")
        stops = np.searchsorted(images[order], np.arange(self.num_images), side="right").tolist()
        at = int(np.searchsorted(images[order], 0)) if len(order) else 0
        expected = -1
        for index, text in enumerate(self._image_rows):
            rows: list[JsonObject] = []
            for position in order[at : stops[index]].tolist():
                begin, end = self._begins[position], self._begins[position + 1]
                if begin != expected:
                    self._rows.seek(begin)
                rows.append(marshal.loads(self._rows.read(end - begin)))
                expected = end
            at = stops[index]
            yield self._picture(index, json.loads(text), rows)

    def left_out(self) -> Iterator[LeftOut]:
        """Yield a run's abstentions and failures, in order; nothing for a file."""
        for name, status in ((ABSTAINED, "abstained"), (FAILURES, "failed")):
            if self.run is None:
                return
            try:
                with self.run.open_read(name) as stream:
                    for line in stream:
                        yield LeftOut(status=status, fields=object_of(json.loads(line)))
            except MissingFile:
                continue
            except ValueError as error:
                raise RunError(
                    f"{self.run.join(name)}: not JSON lines ({error}). Run the label command again to make it anew."
                ) from error

    def _file(self, url: str) -> str:
        store = Store.open(url)
        if url.endswith(".json") or (store.local_path("") is not None and not store.local_path("").is_dir()):  # type: ignore[union-attr]
            return url
        self.run = store
        if not store.exists(LABELS):
            raise InputError(
                f"{url}: expected the directory of a finished run of classify, or a COCO file, got no {LABELS} in it. Let the "
                "run end, or name the file."
            )
        return store.join(LABELS)

    def _read(self, where: str) -> None:
        """Read the file once; annotations may come before images."""
        try:
            stream = open_url(where)
        except FileNotFoundError as error:
            raise InputError(f"{where}: there is no such file. Give a run directory or a COCO file.") from error
        categories: list[JsonValue] = []
        with stream:
            for name, index, value in stream_members(stream, where):
                if name == "info":
                    self.info = object_of(value)
                elif name == "categories" and index is not None:
                    categories.append(value)
                elif name == "images" and index is not None:
                    self._take_image(value)
                elif name == "annotations" and index is not None:
                    self._take_annotation(value)
        for row in categories:
            identity, title = object_of(row).get("id"), object_of(row).get("name")
            if type(identity) is int and isinstance(title, str) and identity not in self.categories:
                self.categories[identity] = Category(
                    category_id=identity, name=title, index=len(self.categories), row=object_of(row)
                )
        if not self._image_rows:
            raise InputError(f"{where}: expected a COCO file with images, got none. Name another file.")
        if not self.categories and self.num_labels:
            raise InputError(
                f"{where}: expected categories, got none: nothing says what its labels mean. Name another file."
            )
        if self._late_keys:
            self._image_keys = array("q", (self._image_of_key.get(key, -1) for key in self._late_keys))
        num_strays = self._image_keys.count(-1)
        self.notes.say("labels left out, since no image has their image_id", None, num_strays)

    def _take_image(self, row: JsonValue) -> None:
        key = image_key(row.get("id")) if isinstance(row, dict) else None
        if key is None or key in self._image_of_key:
            self.notes.say("image rows left out, since they have no id of their own", str(row)[:60])
            return
        self._image_of_key[key] = len(self._image_rows)
        self._image_rows.append(json.dumps(json_safe(row), separators=(",", ":")).encode())

    def _take_annotation(self, row: JsonValue) -> None:
        if not isinstance(row, dict):
            self.notes.say("labels left out, since their rows are no objects")
            return
        key = image_key(row.get("image_id"))
        if not self._image_of_key or self._late_keys:  # annotations stand before images in this file
            self._late_keys.append("" if key is None else key)
        self._image_keys.append(-1 if key is None else self._image_of_key.get(key, -1))
        self.num_labels += 1
        segmentation = row.get("segmentation")
        if segmentation and object_of(row.get("attributes")).get("segmentation_from") != "box":
            self.has_masks = True
        try:  # twice as fast as JSON, and read back by this process alone
            num_bytes = self._rows.write(marshal.dumps(row))
        except ValueError as error:  # from 2000 levels on
            raise RecursionError from error
        self._begins.append(self._begins[-1] + num_bytes)

    def _picture(self, index: int, row: JsonObject, rows: list[JsonObject]) -> ShownPicture:
        width, height = side(row.get("width")), side(row.get("height"))
        if width is None or height is None:
            sizes = (object_of(item.get("segmentation")).get("size") for item in rows)
            size = next((pair for pair in sizes if isinstance(pair, list) and len(pair) == 2), [None, None])
            height, width = side(size[0]), side(size[1])
        labels = [label for item in rows if (label := self._label(item)) is not None]
        return ShownPicture(
            index=index,
            image_id=row.get("id"),
            file_name=usable_file_name(row),
            width_px=width,
            height_px=height,
            row=row,
            labels=tuple(labels),
        )

    def _label(self, row: JsonObject) -> ShownLabel | None:
        where = f"annotation {str(row.get('id'))[:40]}"
        identity = row.get("category_id")
        category = self.categories.get(identity) if type(identity) is int else None
        if category is None:
            self.notes.say("labels left out, since the file lists no category of their id", where)
            return None
        attributes = object_of(json_safe(row.get("attributes")))
        segmentation = row.get("segmentation") or None
        if attributes.get("segmentation_from") == "box":
            segmentation = None
        value = row.get("bbox")
        sides = [finite(item) for item in value] if isinstance(value, list) and len(value) == 4 else []
        if len(sides) == 4 and None not in sides:
            x, y, w, h = (item for item in sides if item is not None)
        else:
            self.notes.say("labels left out, since they have no box of four numbers", where)
            return None
        return ShownLabel(
            annotation_id=json_safe(row.get("id")),
            category=category,
            box_xywh=(x, y, w, h),
            segmentation=segmentation,
            area_px=finite(row.get("area")),
            score=finite(row.get("score")),
            is_crowd=row.get("iscrowd") in (1, True),
            attributes=attributes,
        )
