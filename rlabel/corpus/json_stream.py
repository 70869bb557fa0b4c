"""Reads a large JSON object in flat memory: the elements of its arrays one at a time.

Why the standard library's decoder and not an event parser: the members may come in any order and several are wanted in
one pass; and a NaN, a 400-digit integer or 1e400 in one row, all of which Python's own json writes, must cost that row
and not the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from rlabel.errors import InputError
from rlabel.records import JsonValue

_CHUNK_BYTES = 1 << 20
_LONGEST_VALUE = 1 << 25  # characters of one array element: a limit on memory, which takes up to 25 times as much
_BLANKS = re.compile(r"[ \t\n\r]*")
# A value cut off by the end of the buffer shows its error this near to it: the longest of "-Infinity" and
# "\ud83d\ude00".
_NEAR_END = 16
_NUMBER_GOES_ON = ("", ".", "e", "E")


class Member(NamedTuple):
    """One value of the top-level object.

    index: None for a whole member (also for an empty array), else the element's position in the array, from 0.
    """

    name: str
    index: int | None  # type: ignore[assignment]  # a tuple has a method of that name, which nobody calls
    value: JsonValue


def _integer(digits: str) -> int | float:
    # Python refuses to convert integers of more than 4300 digits; no field can use one, so a float (inf) will do.
    return int(digits) if len(digits) < 4000 else float(digits)


# NaN and infinities are not JSON and mean nothing in any field: null, as JavaScript's JSON.stringify writes them.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
_LENIENT_DECODER = json.JSONDecoder(parse_constant=lambda _: None, parse_int=_integer)


def parse_row(text: str) -> JsonValue:
    """Return the value of a JSON text that this module read before, by the same rules."""
    try:
        value: JsonValue = _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        value = _LENIENT_DECODER.decode(text)
    return value


def stream_members(stream: BinaryIO, where: str) -> Iterator[Member]:
    """Return the members of the JSON object in a stream, in file order: arrays element by element, others whole.

    where: the file, for messages. UTF-8 with or without a byte order mark. NaN and infinities come out as None.

    Raises InputError, with the line, where the text is no JSON object.
    """
    yield from _Reader(stream, where).members()


class _Reader:
    def __init__(self, stream: BinaryIO, where: str) -> None:
        self.stream, self.where = stream, where
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at = "", 0
        self.lines_dropped = 0
        self.ended = False

    def members(self) -> Iterator[Member]:
        if self.peek() != "{":
            raise self.error("expected a JSON object ({...}) with the keys images and annotations")
        self.at += 1
        if self.peek() != "}":
            while True:
                if self.peek() != '"':
                    raise self.error("expected a key in double quotes")
                name = str(self.value())
                self.expect(":")
                if self.peek() == "[":
                    index = -1
                    for index, element in enumerate(self.elements()):
                        yield Member(name, index, element)
                    if index < 0:
                        yield Member(name, None, [])
                else:
                    yield Member(name, None, self.value())
                if self.expect(",}") == "}":
                    break
        else:
            self.at += 1
        if self.peek():
            raise self.error("expected the end of the file after the closing brace")

    def elements(self) -> Iterator[JsonValue]:
        self.at += 1
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.peek()
            yield self.value()
            # The usual separators without a function call each: this loop runs once a row.
            following = self.text[self.at : self.at + 2]
            if following == ", ":
                self.at += 2
            elif self.expect(",]") == "]":
                return

    def value(self) -> JsonValue:
        """Return the value that begins here, reading on while it is cut off."""
        while True:
            try:
                value, end = self.decode()
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _NEAR_END
                if self.ended or not unfinished:
                    self.at = error.pos
                    raise self.error(f"not valid JSON: {error.msg}") from error
            except RecursionError as error:
                raise self.error("arrays or objects nested too deeply") from error
            else:
                # At the end of the buffer a number may be cut off where it reads as a shorter one: "-0" of "-0.5".
                is_cut = end > len(self.text) - _NEAR_END and self.text[end : end + 1] in _NUMBER_GOES_ON
                if self.ended or not is_cut:
                    self.at = end
                    return value
            if len(self.text) - self.at > _LONGEST_VALUE:
                raise self.error(f"one value is longer than {_LONGEST_VALUE} characters")
            # Doubled at every turn, so that a long value is not scanned from its start again and again.
            self.fill(max(_CHUNK_BYTES, len(self.text) - self.at))

    def decode(self) -> tuple[JsonValue, int]:
        try:
            return _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _LENIENT_DECODER.raw_decode(self.text, self.at)

    def peek(self) -> str:
        """Return the next character that is not blank, standing on it; "" at the end of the file."""
        while True:
            self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches anywhere
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.fill(_CHUNK_BYTES)

    def expect(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(f"'{character}'" for character in allowed)
            raise self.error(f"expected {wanted}, got {f'{found!r}' if found else 'the end of the file'}")
        self.at += 1
        return found

    def fill(self, num_bytes: int) -> None:
        data = self.stream.read(num_bytes)
        try:
            more = self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text: {error.reason}. Save the file as UTF-8") from error
        self.lines_dropped += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + more, 0
        self.ended = not data

    def error(self, what: str) -> InputError:
        line = 1 + self.lines_dropped + self.text.count("\n", 0, self.at)
        near = self.text[max(0, self.at - 20) : self.at + 40]
        return InputError(f"{self.where}, line {line}: {what}" + (f", near {near!r}." if near else "."))
