"""Gets the rows of a vocabulary file out of any fsspec URL, in flat memory. Their meaning is left to `vocabulary`."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import ijson

from rlabel.errors import InputError

MAX_JSON_BYTES = 16 * 2**30
MAX_TEXT_BYTES = 16 * 2**20
MAX_CATEGORIES = 200_000
_CHUNK_BYTES = 2**20
_JSON_STARTS = (b"{", b"[")
_UTF8_MARK = b"\xef\xbb\xbf"


def read_vocabulary_rows(url: str) -> tuple[object | None, list[object]]:
    """Return the name a vocabulary file gives itself (None if it has none) and its category rows as parsed, unchecked.

    A JSON object gives its `categories` and the `name` in its first megabyte, a JSON list itself, and text one row
    {"id", "name"} for each line that is neither blank nor a comment ("#"), with ids from 1. Numbers may be Decimals.

    Raises InputError where the file cannot be opened or parsed, is too large, or holds no category.
    """
    first = next(_chunks(url), b"")
    start = first.lstrip()[:1]
    name: object | None = None
    if start in _JSON_STARTS:
        name, rows = _json_rows(url, is_object=start == b"{")
    elif ".json" in url.rsplit("/", 1)[-1]:
        raise InputError(
            f"{url}: expected JSON (an object with `categories`), got a file that starts with {first[:20]!r}. "
            "Check the file; a list of names, one a line, belongs in a .txt file."
        )
    else:
        rows = _text_rows(url)
    if not rows:
        raise InputError(
            f"{url}: expected categories, got none. A vocabulary is JSON with a list `categories` of objects with "
            "`id` and `name`, or text with one name a line."
        )
    return name, rows


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with fsspec.open(url, "rb", compression="infer") as file:
            chunk = file.read(_CHUNK_BYTES).removeprefix(_UTF8_MARK)
            while chunk:
                yield chunk
                chunk = file.read(_CHUNK_BYTES)
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: expected a vocabulary file, got nothing: there is no such file. Check the path."
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{url}: expected a vocabulary file, got a folder. Name the file inside it.") from error
    except Exception as error:  # every filesystem and every compression raises its own kinds
        raise InputError(
            f"{url}: expected a readable vocabulary file, got {type(error).__name__}: {error}. "
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
    num_bytes = 0
    try:
        for chunk in _chunks(url):
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


class _NumberTooLarge(Exception):
    """A number beyond 64 bits; never leaves this module."""


def _text_rows(url: str) -> list[object]:
    content = bytearray()
    for chunk in _chunks(url):
        content += chunk
        if len(content) > MAX_TEXT_BYTES:
            raise InputError(
                f"{url}: expected a text of at most {MAX_TEXT_BYTES} bytes, one name a line, got more. Check the path."
            )
    rows: list[object] = []
    for number, line in enumerate(bytes(content).splitlines(), start=1):
        try:
            name = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{url}, line {number}: expected UTF-8 text, got byte 0x{line[error.start]:02x}. Save the file "
                f"as UTF-8."
            ) from error
        if any(ord(character) < 32 and character != "\t" for character in name):
            raise InputError(f"{url}, line {number}: expected a name, got control characters. Is this a text file?")
        if name and not name.startswith("#"):
            rows.append({"id": len(rows) + 1, "name": name})
    return rows
