"""WebDataset: tar archives whose neighbouring members KEY.jpg and KEY.json are one picture and its regions. SA-1B comes so too.

Format: github.com/webdataset/webdataset, "The WebDataset Format": a member's key ends at the first dot of its last part.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from rlabel.errors import InputError
from rlabel.formats.folders import PICTURE_ENDS, files_below
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.json_files import parse_document
from rlabel.formats.kept_pictures import Keep, KeptPictures
from rlabel.formats.rows import Boxes, region_of_row, rows_of
from rlabel.records import JsonObject
from rlabel.run.canonical import object_of

ENDS = (".tar", ".tar.gz", ".tgz")
_MOST_JSON_BYTES = 64 * 1024 * 1024
# What one header may claim to need: Python's tarfile reads long names and extended headers at once.
_MOST_READ_BYTES = 512 * 1024 * 1024


class TarLayout:
    """One archive, or a folder of them. images: the folder that their pictures are written into."""

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None, boxes: Boxes, keep: Keep = "new") -> None:
        self.notes = Notes()
        self.files = [source] if source.is_file() else [source / name for name in files_below(source, ENDS)]
        self.boxes = boxes
        if not self.files:
            raise InputError(f"{source}: no tar archive in it. Check the path.")
        self.kept = KeptPictures(images, f"the archive {self.files[0].name}", keep)

    def pictures(self) -> Iterator[FoundPicture]:
        for path in self.files:
            key, parts = "", dict[str, bytes]()
            for name, data in self._members(path):
                start = name.rfind("/") + 1
                dot = name.find(".", start)
                this, end = (name[:dot], name[dot:].lower()) if dot > 0 else (name, "")
                if this != key and parts:
                    yield from self._picture(key, parts, path)
                    parts = {}
                key = this
                kind = "json" if end.endswith(".json") else "picture" if end.endswith(PICTURE_ENDS) else None
                if kind is not None:
                    parts[kind] = data
            if parts:
                yield from self._picture(key, parts, path)

    def _members(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of the members that may be of use, in order; nothing is written, no link is followed."""
        try:
            with path.open("rb") as raw:
                opened: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if raw.read(2) == b"\x1f\x8b" else raw
                raw.seek(0)
                with tarfile.open(fileobj=cast(BinaryIO, _Capped(opened)), mode="r:") as archive:
                    for member in archive:
                        archive.members = []  # type: ignore[attr-defined]  # it would remember each for random access
                        name = member.name.lower()
                        most = _MOST_JSON_BYTES if name.endswith(".json") else self.kept.limits.max_file_bytes
                        if not member.isreg() or not name.endswith((".json", *PICTURE_ENDS)):
                            continue
                        if member.size > most:
                            self.notes.say(f"members left out, since they are larger than {most} bytes", member.name)
                            continue
                        stream = archive.extractfile(member)
                        if stream is not None:
                            yield member.name, stream.read(most + 1)
        except (tarfile.TarError, OSError, EOFError, zlib.error, MemoryError, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}: not a tar archive that can be read to its end ({error}). Fetch or pack it anew."
            ) from error

    def _picture(self, key: str, parts: dict[str, bytes], path: Path) -> Iterator[FoundPicture]:
        where = f"{path.name}: {key}"
        if "picture" not in parts:
            self.notes.say("samples left out, since they have no picture", where)
            return
        document: JsonObject = {}
        if "json" in parts:
            try:
                value = parse_document(parts["json"].decode("utf-8"))
                document = {"annotations": value} if isinstance(value, list) else object_of(value)
            except (ValueError, RecursionError):
                self.notes.say("samples whose JSON cannot be read, written without regions", where)
        rows = rows_of(document)
        if rows is None:
            self.notes.say(
                "samples without annotations, objects or regions in their JSON, written without regions", where
            )
        kept = self.kept.keep(key, parts["picture"])
        if isinstance(kept, str):
            self.notes.say(kept, where)
            return
        name, size = kept
        regions: list[FoundRegion] = []
        for row in (rows or [])[: self.kept.limits.max_regions_per_image]:
            region = region_of_row(row, (), self.boxes)
            if isinstance(region, str):
                self.notes.say(region, where)
            else:
                regions.append(region)
        yield FoundPicture(file_name=name, width_px=size[0], height_px=size[1], regions=tuple(regions))


class _Capped:
    """A stream that refuses to read more at once than any honest header asks for."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= _MOST_READ_BYTES:
            raise ValueError(f"a header asks for {num_bytes} bytes at once")
        return self.stream.read(num_bytes)
