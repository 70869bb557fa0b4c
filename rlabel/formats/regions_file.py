"""Writes found pictures as the COCO file that `rlabel label`, `train` and `evaluate` read: in flat memory, ids from 1."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, rasterise
from rlabel.errors import InputError
from rlabel.formats.found import FoundPicture, FoundRegion, Layout
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.storage import split_url

_CHUNK_BYTES = 1 << 20
_MOST_NAMES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a regions file holds. num_known: regions with a category; num_dropped: regions whose category was left out."""

    num_images: int
    num_regions: int
    num_known: int
    num_categories: int
    num_dropped: int = 0


def write_regions(layout: Layout, out: str, *, class_free: bool, source: str, description: str) -> Written:
    """Write a layout's pictures and regions as one COCO file, and return what is in it.

    out: path or URL. class_free: leave out categories, known or listed. source: for messages. description: the file's `info`. Categories get
    ids from 1: those that the layout lists in its order, others as they come. Box and area are those of the drawn mask
    where the layout states none. A region that cannot be drawn stays in the file, for `validate` to name, and is counted.

    Raises InputError where no picture comes out, and what the layout's reader raises.
    """
    store, name = split_url(out)
    folder = store.local_path("")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(prefix=".rlabel-tmp-", dir=folder) as rows:
        writer = _Writer(layout, rows, class_free, source)
        store.put_stream(name, writer.chunks(description))
    return writer.written()


class _Writer:
    def __init__(self, layout: Layout, rows: IO[bytes], class_free: bool, source: str) -> None:
        self.layout, self.rows, self.class_free, self.source = layout, rows, class_free, source
        self.ids: dict[str, int] = {}
        self.limits = Limits()
        self.num_images = self.num_regions = self.num_known = self.num_dropped = 0

    def written(self) -> Written:
        return Written(
            num_images=self.num_images,
            num_regions=self.num_regions,
            num_known=self.num_known,
            num_categories=len(self.ids),
            num_dropped=self.num_dropped,
        )

    def chunks(self, description: str) -> Iterator[bytes]:
        """Yield the file: images straight away, annotations from the spool, categories when all are known."""
        if not self.class_free:
            for name in self.layout.names:
                self.category_id(name)
        yield b'{"info":' + canonical_bytes({"description": description}) + b',\n"images":['
        for picture in self.layout.pictures():
            self.num_images += 1
            yield (b"\n" if self.num_images == 1 else b",\n") + canonical_bytes(json_safe(self.image(picture)))
            for region in picture.regions:
                self.num_regions += 1
                row = self.annotation(picture, region)
                self.rows.write((b"\n" if self.num_regions == 1 else b",\n") + canonical_bytes(json_safe(row)))
        if not self.num_images:
            lines = "".join(f"\n  {line}" for line in self.layout.notes.lines())
            raise InputError(
                f"{self.source}: found no picture to write. Name another layout, or check the paths.{lines}"
            )
        yield b'],\n"annotations":['
        self.rows.seek(0)
        while chunk := self.rows.read(_CHUNK_BYTES):
            yield chunk
        categories: list[JsonValue] = [{"id": identity, "name": name} for name, identity in self.ids.items()]
        yield b'],\n"categories":' + canonical_bytes(categories) + b"}\n"

    def image(self, picture: FoundPicture) -> JsonObject:
        row: JsonObject = {"id": self.num_images, "file_name": picture.file_name}
        if picture.width_px is not None and picture.height_px is not None:
            row |= {"width": picture.width_px, "height": picture.height_px}
        return row

    def annotation(self, picture: FoundPicture, region: FoundRegion) -> JsonObject:
        row: JsonObject = {"id": self.num_regions, "image_id": self.num_images, "iscrowd": int(region.is_crowd)}
        if region.segmentation:
            row["segmentation"] = region.segmentation
        if region.box_xywh is not None:
            row["bbox"] = list(region.box_xywh)
        if picture.width_px and picture.height_px:
            try:
                mask = rasterise(
                    region.segmentation or None, region.box_xywh, picture.height_px, picture.width_px, self.limits
                )
            except BadRegion as bad:
                self.layout.notes.say(
                    "regions that cannot be labeled as they are",
                    f"{picture.file_name}, annotation {self.num_regions}: {bad}",
                )
            else:
                row.setdefault("bbox", list(mask.box_xywh))
                row["area"] = mask.area_px
        if region.name and self.class_free:
            self.num_dropped += 1
        elif region.name:
            row["category_id"] = self.category_id(region.name)
            self.num_known += 1
        if region.attributes:
            row["attributes"] = region.attributes
        return row

    def category_id(self, name: str) -> int:
        if name not in self.ids and len(self.ids) >= _MOST_NAMES:
            raise InputError(
                f"more than {_MOST_NAMES} different category names, the last {name[:60]!r}. Use --class-free."
            )
        return self.ids.setdefault(name, len(self.ids) + 1)
