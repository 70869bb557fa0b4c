"""COCO and LVIS, which rlabel reads as they are: the same file, with its labels taken out or LVIS's pictures named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.rows import LABEL_KEYS, usable_file_name
from rlabel.formats.regions_file import Written
from rlabel.records import JsonValue
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.storage import split_url

_LABELS = frozenset({*LABEL_KEYS, "attributes", "segments_info"})


class CocoCopy:
    """One pass over a COCO-like file, written again as it is read. class_free: without categories and what names them."""

    def __init__(self, source: Path, *, class_free: bool) -> None:
        self.source, self.class_free = source, class_free
        self.counts = dict.fromkeys(("images", "annotations", "categories"), 0)
        self.num_known = 0

    def write(self, out: str) -> Written:
        """Write the copy to a path or URL. Raises InputError with the line where the file is no JSON object."""
        store, name = split_url(out)
        store.put_stream(name, self._chunks())
        return Written(
            num_images=self.counts["images"],
            num_regions=self.counts["annotations"],
            num_known=self.num_known,
            num_categories=self.counts["categories"],
        )

    def _chunks(self) -> Iterator[bytes]:
        """Yield the file member by member, lists row by row, in the order that they have."""
        open_list: str | None = None
        is_first = True
        with self.source.open("rb") as stream:
            for name, index, value in stream_members(stream, str(self.source)):
                if self.class_free and name == "categories":
                    continue
                if open_list is not None and (name != open_list or not index):
                    yield b"]"
                    open_list = None
                if index is None or index == 0:
                    yield (b"{" if is_first else b",\n") + canonical_bytes(name) + b":"
                    is_first = False
                if index is None:
                    yield canonical_bytes(json_safe(value))
                    continue
                yield (b"[\n" if index == 0 else b",\n") + canonical_bytes(json_safe(self._row(name, value)))
                open_list = name
        yield (b"]" if open_list is not None else b"") + (b"{}\n" if is_first else b"}\n")

    def _row(self, name: str, row: JsonValue) -> JsonValue:
        if name in self.counts:
            self.counts[name] += 1
        if not isinstance(row, dict):
            return row
        if name == "images" and "file_name" not in row and (file_name := usable_file_name(row)) is not None:
            return {**row, "file_name": file_name}
        if name == "annotations":
            self.num_known += not self.class_free and "category_id" in row
            if self.class_free:
                return {key: item for key, item in row.items() if key not in _LABELS}
        return row
