"""Gets the rows of a vocabulary file out of any fsspec URL, in flat memory. Their meaning is left to `vocabulary`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import ijson
import numpy as np

from rlabel.errors import InputError, StorageError
from rlabel.storage import PathRefused, open_url, unpacked
from rlabel.vocabulary.tables import label_map_to_rows, table_to_rows

MAX_JSON_BYTES = 16 * 2**30
# A label map is parsed at once, not as a stream.
MAX_LABEL_MAP_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 16 * 2**20
MAX_TABLE_BYTES = 128 * 2**20
MAX_CATEGORIES = 200_000
MAX_DEPTH = 1000
# ijson 3.6.0 crashes the process on a whole number that Python refuses to read: more than 4300 digits.
MAX_DIGITS = 4000
_CHUNK_BYTES = 2**20
_JSON_STARTS = (b"{", b"[")
_UTF8_MARK = b"\xef\xbb\xbf"
_TOO_MANY_DIGITS = re.compile(rb"(?<![0-9])[0-9]{%d}" % (MAX_DIGITS + 1))
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f]")


def read_vocabulary_rows(url: str) -> tuple[object | None, list[object]]:
    """Return the name a vocabulary file gives itself (None if it has none) and its category rows as parsed, unchecked.

    A JSON object gives its `categories` and the `name` in its first megabyte, or, without categories, its label map
    (`tables`); a JSON list gives itself, a file called .csv or .tsv its table, and other text one row {"id", "name"} for
    each line that is neither blank nor a comment ("#"), with ids from 1. Numbers may be Decimals.

    Raises InputError where the file cannot be opened or parsed, is too large, or holds no category.
    """
    first = next(file_chunks(url), b"")
    start = first.lstrip()[:1]
    file_name = url.replace("\\", "/").rsplit("/", 1)[-1].lower()
    name: object | None = None
    if start in _JSON_STARTS:
        name, rows = _json_rows(url, is_object=start == b"{")
        if not rows and start == b"{":
            rows = _label_map_rows(url)
    elif ".json" in file_name:
        raise InputError(
            f"{url}: expected JSON (an object with `categories`), got a file that starts with {first[:20]!r}. "
            "Check the file; a list of names, one a line, belongs in a .txt file."
        )
    elif ".csv" in file_name or ".tsv" in file_name:
        text = _decoded(_whole(url, MAX_TABLE_BYTES, "a table"), url)
        rows = table_to_rows(text, url, tabs=".tsv" in file_name, max_rows=MAX_CATEGORIES)
    else:
        rows = _text_rows(url)
    if not rows:
        raise InputError(
            f"{url}: expected categories, got none. A vocabulary is JSON with a list `categories` of objects with "
            "`id` and `name`, a label map, a .csv table with a column `name`, or text with one name a line."
        )
    return name, rows


def file_chunks(url: str, what: str = "vocabulary") -> Iterator[bytes]:
    """Give the bytes of a file, a megabyte at a time, decompressed and without a byte order mark.

    what: what error messages call it. Raises InputError where it cannot be read.
    """
    try:
        with open_url(url) as packed:
            file = unpacked(packed, url)
            chunk = file.read(_CHUNK_BYTES).removeprefix(_UTF8_MARK)
            while chunk:
                yield chunk
                chunk = file.read(_CHUNK_BYTES)
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: expected a {what} file, got nothing: there is no such file. Check the path."
        ) from error
    except PathRefused as error:
        raise InputError(
            f"{url}: expected a {what} file, got a folder or a device. Name the file inside it."
        ) from error
    except StorageError:  # says what to do
        raise
    except Exception as error:  # every filesystem and every compression raises its own kinds
        raise InputError(
            f"{url}: expected a readable {what} file, got {type(error).__name__}: {error}. "
            "Check the path, the permissions and, for a URL, the credentials."
        ) from error


def _json_rows(url: str, *, is_object: bool) -> tuple[object | None, list[object]]:
    try:
        return _parsed_rows(url, is_object=is_object, use_float=True)
    except _NumberTooLarge:
        # Twice as slow, but no number is too large for it. The annotations beside the categories may hold anything.
        return _parsed_rows(url, is_object=is_object, use_float=False)


def _parsed_rows(url: str, *, is_object: bool, use_float: bool) -> tuple[object | None, list[object]]:
    rows = ijson.sendable_list()
    names = ijson.sendable_list()
    parser = ijson.items_coro(rows, "categories.item" if is_object else "item", use_float=use_float)
    nesting = Nesting(url)
    num_bytes = 0
    try:
        for chunk in file_chunks(url):
            nesting.check(chunk)
            if is_object and not num_bytes:
                ijson.items_coro(names, "name", use_float=use_float).send(chunk)
            num_bytes += len(chunk)
            parser.send(chunk)
            if num_bytes > MAX_JSON_BYTES:
                raise InputError(
                    f"{url}: expected at most {MAX_JSON_BYTES} bytes, got more. "
                    "Copy its `categories` into a file of their own."
                )
            if len(rows) > MAX_CATEGORIES:
                raise InputError(f"{url}: expected at most {MAX_CATEGORIES} categories, got more. Leave some out.")
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())[:160]
        if use_float and "overflow" in cause:
            raise _NumberTooLarge from error
        raise InputError(
            f"{url}: expected JSON, got something that does not parse ({cause}). Check that the file is whole."
        ) from error
    return (names[0] if names else None), list(rows)


class Nesting:
    """Follows how deep JSON is nested, and how long its numbers are, chunk by chunk, without parsing it.

    ijson keeps the path to where it is: 100,000 brackets in a row, a file of 100 kB, would cost it gigabytes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._depth = 0
        self._in_text = False
        self._cut = b""
        self._digits = b""

    def check(self, chunk: bytes) -> None:
        """Raise InputError where the chunk, after those before it, is nested too deeply, or holds a number without end."""
        chunk = self._cut + chunk
        num_backslashes = len(chunk) - len(chunk.rstrip(b"\\"))
        # A lone backslash at the end belongs to what the next chunk begins with.
        self._cut = chunk[len(chunk) - num_backslashes % 2 :]
        whole = chunk[: len(chunk) - num_backslashes % 2]
        pieces = whole.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        plain = self._digits + b"".join(pieces[self._in_text :: 2])
        if _TOO_MANY_DIGITS.search(plain):
            raise InputError(
                f"{self._url}: expected numbers of at most {MAX_DIGITS} digits, got a longer one. Is this the right file?"
            )
        self._digits = plain[len(plain.rstrip(b"0123456789")) :]
        outside = plain.translate(None, _NO_BRACKETS)
        self._in_text ^= len(pieces) % 2 == 0
        if not outside:
            return
        brackets = np.frombuffer(outside, dtype=np.uint8)
        # "[" and "{" open; "]" and "}" are two further in ASCII.
        depths = self._depth + np.cumsum(np.where((brackets == 0x5B) | (brackets == 0x7B), 1, -1))
        if int(depths.max()) > MAX_DEPTH:
            raise InputError(
                f"{self._url}: expected JSON nested at most {MAX_DEPTH} deep, got more. Is this the right file? Flatten it."
            )
        self._depth = int(depths[-1])


class _NumberTooLarge(Exception):
    """A number beyond 64 bits; never leaves this module."""


def _label_map_rows(url: str) -> list[object]:
    content = bytearray()
    for chunk in file_chunks(url):
        content += chunk
        if len(content) > MAX_LABEL_MAP_BYTES:  # no label map, and nothing else either
            return []
    return label_map_to_rows(bytes(content), url, max_rows=MAX_CATEGORIES)


def _whole(url: str, max_bytes: int, what: str) -> bytes:
    content = bytearray()
    for chunk in file_chunks(url):
        content += chunk
        if len(content) > max_bytes:
            raise InputError(f"{url}: expected {what} of at most {max_bytes} bytes, got more. Check the path.")
    return bytes(content)


def _decoded(content: bytes, url: str) -> str:
    """Return the text of UTF-8 bytes; raise with the line where they are none, or hold control characters."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{url}, line {line}: expected UTF-8 text, got byte 0x{content[error.start]:02x}. Save the file as UTF-8."
        ) from error
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise InputError(f"{url}, line {line}: expected a name, got control characters. Is this a text file?")
    return text


def _text_rows(url: str) -> list[object]:
    text = _decoded(_whole(url, MAX_TEXT_BYTES, "a text, one name a line,"), url)
    rows: list[object] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        name = line.strip()
        if name and not name.startswith("#"):
            rows.append({"id": len(rows) + 1, "name": name})
            if len(rows) > MAX_CATEGORIES:
                raise InputError(
                    f"{url}: expected at most {MAX_CATEGORIES} names, one a line, got more. Leave some out."
                )
    return rows
