"""Keeps control characters of strangers away from the terminal: file names, category names and answers are printed as text, whatever is in them.

A name may hold ESC and so move the cursor, colour or rewrite what was printed before; or a sign that turns the direction of writing, so that a
line reads as another. Such characters are printed as JSON writes them, \\u001b, which keeps a line of JSON what it was.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# C0 but for tab and line feed, DEL, C1 (some terminals take 0x9b for ESC [), line and paragraph separators, marks, overrides and
# isolates of direction (Unicode, annex 9), and lone surrogates, which no encoding can print.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return a text with each character that steers a terminal, and each that cannot be printed, written as \\uXXXX."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _PlainStream:
    """A text stream whose `write` is plain; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(plain(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Print plainly on stdout and stderr meanwhile."""
    before = sys.stdout, sys.stderr
    mine = tuple(one if isinstance(one, _PlainStream) else _PlainStream(one) for one in before)
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        # Not what others have put there meanwhile.
        if sys.stdout is mine[0]:
            sys.stdout = before[0]
        if sys.stderr is mine[1]:
            sys.stderr = before[1]
