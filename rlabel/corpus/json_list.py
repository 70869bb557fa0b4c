"""Reads a large JSON list in flat memory, one element at a time, by the rules of `json_stream`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from rlabel.corpus.json_stream import _Reader
from rlabel.records import JsonValue


def stream_elements(stream: BinaryIO, where: str) -> Iterator[JsonValue]:
    """Return the elements of the JSON list in a stream. NaN and infinities come out as None.

    where: the file, for messages. Raises InputError, with the line, where the text is no JSON list.
    """
    reader = _Reader(stream, where)
    if reader.peek() != "[":
        raise reader.error("expected a JSON list ([...])")
    yield from reader.elements()
    if reader.peek():
        raise reader.error("expected the end of the file after the closing bracket")
