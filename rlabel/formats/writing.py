"""What the writers of all layouts share: their options, JSON written row by row, pictures copied along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape as _escape

from rlabel.corpus.limits import Limits
from rlabel.formats.found import Notes
from rlabel.formats.shapes import Shapes
from rlabel.formats.shown import ShownLabels, ShownPicture
from rlabel.records import JsonObject
from rlabel.run.canonical import canonical_bytes
from rlabel.storage import MissingFile, PathRefused, Store

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export: what to write, where, and how.

    out: the folder. images: the pictures, to copy or to embed; None leaves them where they are. boxes_only: no masks.
    image_prefix: what stands before a file name where a layout wants an address (Label Studio). notes: the losses.
    """

    labels: ShownLabels
    out: Store
    shapes: Shapes
    images: Store | None
    boxes_only: bool
    image_prefix: str
    notes: Notes

    @property
    def with_masks(self) -> bool:
        return self.labels.has_masks and not self.boxes_only


def json_list(rows: Iterable[JsonObject]) -> Iterator[bytes]:
    """Yield a JSON list, one row a line."""
    yield b"["
    is_first = True
    for row in rows:
        yield (b"\n" if is_first else b",\n") + canonical_bytes(row)
        is_first = False
    yield b"\n]"


def buffered(parts: Iterable[bytes | str]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about a megabyte."""
    held: list[bytes] = []
    num_bytes = 0
    for part in parts:
        data = part.encode("utf-8", "backslashreplace") if isinstance(part, str) else part
        held.append(data)
        num_bytes += len(data)
        if num_bytes >= _CHUNK_BYTES:
            yield b"".join(held)
            held, num_bytes = [], 0
    yield b"".join(held)


def xml_text(text: str) -> str:
    """Return a text for XML: markup escaped, characters that XML 1.0 forbids (its section 2.2) as question marks."""
    legal = "".join(
        letter
        if letter in "\t\n\r" or " " <= letter <= "\ud7ff" or "\ue000" <= letter <= "\ufffd" or letter >= "\U00010000"
        else "?"
        for letter in text
    )
    return _escape(legal, {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def picture_bytes(export: Export, picture: ShownPicture) -> bytes | None:
    """Return a picture's file as it is; None, noted, where it is missing or beyond the limit."""
    most = Limits().max_file_bytes
    if export.images is None or picture.file_name is None:
        return None
    try:
        with export.images.open_read(picture.file_name) as stream:
            data = stream.read(most + 1)
    except (MissingFile, PathRefused):
        data = b""
    if not data or len(data) > most:
        export.notes.say("pictures that are not copied, since they are missing or too large", picture.file_name)
        return None
    return data


def short(value: float) -> str:
    """Return a number with at most two digits after the point, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
