"""What the writers of all layouts share: their options, JSON written row by row, pictures copied along."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from xml.sax.saxutils import escape as _escape

from rlabel.corpus.limits import Limits
from rlabel.formats.found import Notes
from rlabel.formats.shapes import Shapes, safe_stem
from rlabel.formats.shown import ShownLabels, ShownPicture
from rlabel.records import JsonObject
from rlabel.run.canonical import canonical_bytes
from rlabel.storage import MissingFile, PathRefused, Store

_CHUNK_BYTES = 1 << 20
_WRITERS, _MOST_WAITING, _MOST_WAITING_BYTES = 16, 256, 1 << 26
_MOST_KNOWN = 1 << 14

Value = TypeVar("Value")


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


class Files:
    """Writes many small files side by side, since each waits for its disk or store; use it in a `with`, which ends when all are there.

    Errors of the store come out of `put` or at the end.
    """

    def __init__(self, out: Store) -> None:
        self.out = out
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="rlabel-export")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._num_bytes = 0

    def put(self, name: str, data: bytes) -> None:
        self._waiting.append((len(data), self._pool.submit(self.out.put, name, data)))
        self._num_bytes += len(data)
        while len(self._waiting) > _MOST_WAITING or self._num_bytes > _MOST_WAITING_BYTES:
            self._settle()

    def copy_picture(self, export: Export, picture: ShownPicture, folder: str) -> None:
        """Put a picture below a folder under its own name, where the pictures are given and it is there."""
        data = picture_bytes(export, picture)
        if data is not None:
            self.put(f"{folder}/{picture.file_name}", data)

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._settle()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _settle(self) -> None:
        size, future = self._waiting.popleft()
        self._num_bytes -= size
        future.result()


def sized_pictures(export: Export) -> Iterator[ShownPicture]:
    """Yield the pictures whose size is known; others are noted."""
    for picture in export.labels.pictures():
        if picture.width_px is None or picture.height_px is None:
            export.notes.say("pictures left out, since their size is nowhere stated", picture.file_name)
        else:
            yield picture


def named_pictures(export: Export) -> Iterator[tuple[str, ShownPicture]]:
    """Yield the pictures whose size is known, each with a stem of its own for files named after it; others are noted."""
    used: set[str] = set()
    for picture in sized_pictures(export):
        stem = safe_stem(picture, used, export.notes)
        if stem is not None:
            yield stem, picture


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


def made_once(numbers: list[int], known: dict[int, Value], make: Callable[[list[int]], Iterable[Value]]) -> list[Value]:
    """Return what `make` makes of each number. known: what it made before, which is taken from there and added to."""
    new = set(numbers).difference(known)
    if len(known) + len(new) > _MOST_KNOWN:
        known.clear()
        new = set(numbers)
    if new:
        known.update(zip(new, make(list(new)), strict=True))
    return [known[number] for number in numbers]


def short(value: float) -> str:
    """Return a number with at most two digits after the point, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
