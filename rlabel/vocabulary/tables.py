"""Rows of vocabularies that are no JSON of categories: CSV and TSV tables, and label maps as Hugging Face writes them. Opens nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from rlabel.errors import InputError

# What a header may call the columns that mean something here; others are kept as they are.
_COLUMN_OF = {
    **dict.fromkeys(("name", "label", "class", "category", "class_name", "category_name", "display_name"), "name"),
    **dict.fromkeys(("id", "class_id", "category_id"), "id"),
    **dict.fromkeys(("synonyms", "synonym", "aliases"), "synonyms"),
    **dict.fromkeys(("def", "definition", "description"), "def"),
}
_DELIMITERS = (",", ";", "\t")
_SYNONYM_MARKS = ";|"
_MAX_MAP_DEPTH = 8
_MAX_SHOWN = 60


def table_to_rows(text: str, where: str, *, tabs: bool, max_rows: int) -> list[object]:
    """Return category rows of a table: a header with `name` and, if wanted, `id`, `synonyms`, `def`, `supercategory`,
    `parent` and others; or, without a header, a single column of names.

    tabs: columns are parted by tabs; else by whichever of comma, semicolon and tab is the most frequent in the header.
    Synonyms are parted by "|" or ";" within their cell. Without a column `id` rows are numbered from 1.

    Raises InputError with the line of the first row that cannot be used.
    """
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if tabs else max(_DELIMITERS, key=first_line.count)
    lines = _lines(text, delimiter, where)
    number, header = next(lines, (1, []))
    columns = [_COLUMN_OF.get(cell.strip().lower(), cell.strip()) for cell in header]
    rows: list[object] = []
    if "name" not in columns:
        if len(columns) > 1:
            raise InputError(
                f"{where}, line {number}: expected a header with a column `name`, got {_shown(delimiter.join(header))}. "
                "Write one: name, and as you like id, synonyms (parted by |), def, supercategory, parent."
            )
        lines, columns = _one_more((number, header), lines), ["name"]
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise InputError(
            f"{where}, line {number}: expected columns that differ, got {_shown(repeated[0])} more than once. Rename one."
        )
    for number, cells in lines:
        if len(cells) > len(columns):
            raise InputError(
                f"{where}, line {number}: expected at most {len(columns)} columns as in the header, got {len(cells)}. "
                "Put quotes around a cell that holds the separator."
            )
        row = _cells_to_row(dict(zip(columns, (cell.strip() for cell in cells), strict=False)), where, number)
        if "id" not in columns:
            row["id"] = len(rows) + 1
        rows.append(row)
        if len(rows) > max_rows:
            raise InputError(f"{where}: expected at most {max_rows} categories, got more. Leave some out.")
    return rows


def label_map_to_rows(content: bytes, where: str, *, max_rows: int) -> list[object]:
    """Return category rows of a label map, [] where the JSON holds none: `id2label` or `label2id` of a model's config,
    a bare {"0": "tench"}, a list `names`, or the ClassLabel features of a data set's info.

    Ids are kept, and lists are numbered from 0, as everywhere in that world. A label such as "tench, Tinca tinca" keeps its
    name whole; its parts become synonyms.

    Raises InputError where the map holds something else than texts under whole numbers, or several different maps.
    """
    try:
        document = json.loads(content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected JSON, got something that does not parse ({' '.join(str(error).split())[:160]}). "
            "Check that the file is whole."
        ) from error
    found: dict[tuple[tuple[object, object], ...], str] = {}
    for place, pairs in _maps_in(document, ""):
        found.setdefault(pairs, place)
    if len(found) > 1:
        raise InputError(
            f"{where}: expected one label map, got {len(found)} different ones ({', '.join(list(found.values())[:3])}). "
            "Copy the one that is meant into a file of its own."
        )
    if not found:
        return []
    ((pairs, place),) = found.items()
    if len(pairs) > max_rows:
        raise InputError(f"{where}: expected at most {max_rows} categories, got more. Leave some out.")
    return [_label_to_row(key, label, f"{where}, {place}") for key, label in pairs]


class _Pairs(list[tuple[str, object]]):
    """A JSON object with all its keys, repeated ones too."""


def _maps_in(value: object, place: str, depth: int = 0) -> Iterator[tuple[str, tuple[tuple[object, object], ...]]]:
    if not isinstance(value, _Pairs) or depth > _MAX_MAP_DEPTH:
        return
    if value and not depth and all(key.isdecimal() and isinstance(label, str) for key, label in value):
        yield "the object", tuple(value)
        return
    is_feature = any(key == "_type" and kind == "ClassLabel" for key, kind in value)
    for key, inner in value:
        inside = f"{place}.{key}" if place else key
        if key == "names" and isinstance(inner, list) and not isinstance(inner, _Pairs) and (is_feature or not depth):
            yield inside, tuple(enumerate(inner)) if all(isinstance(name, str) for name in inner) else ((inside, None),)
        elif key == "id2label" and isinstance(inner, _Pairs):
            yield inside, tuple((number, _hashable(label)) for number, label in inner)
        elif key == "label2id" and isinstance(inner, _Pairs):
            if not any(other == "id2label" for other, _ in value):
                yield inside, tuple((_hashable(number), label) for label, number in inner)
        else:
            yield from _maps_in(inner, inside, depth + 1)


def _hashable(value: object) -> object:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _label_to_row(key: object, label: object, where: str) -> dict[str, object]:
    number = str(key)
    if not isinstance(label, str) or not number.isdecimal() or not number.isascii() or len(number) > 16:
        raise InputError(
            f"{where}: expected a text for each whole number from 0 on, got {_shown(label)} for {_shown(key)}. "
            'Write it as {"0": "tench", "1": "goldfish"}.'
        )
    row: dict[str, object] = {"id": int(number), "name": label}
    parts = [part.strip() for part in label.split(",")]
    if len(parts) > 1 and all(parts):
        row["synonyms"] = parts
    return row


def _lines(text: str, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Give the rows that are not blank, with the number of their last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(
            f"{where}, line {reader.line_num}: expected a table, got one that does not parse ({error}). "
            "Check its quotes: a quote inside a cell is written twice."
        ) from error


def _cells_to_row(cells: dict[str, str], where: str, number: int) -> dict[str, object]:
    row: dict[str, object] = {column: cell for column, cell in cells.items() if column and cell}
    if not cells.get("name"):
        raise InputError(
            f"{where}, line {number}: expected a name, got an empty cell. Write one, or leave the line out."
        )
    if "id" in cells:
        digits = cells["id"]
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 16):
            raise InputError(
                f"{where}, line {number}: expected a whole number in the column `id`, got {_shown(digits)}. "
                "Write one, or leave the column out: then rows are numbered from 1."
            )
        row["id"] = int(digits)
    if synonyms := cells.get("synonyms"):
        for mark in _SYNONYM_MARKS:
            synonyms = synonyms.replace(mark, "\n")
        row["synonyms"] = [synonym.strip() for synonym in synonyms.split("\n") if synonym.strip()]
    return row


def _one_more(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    if first[1]:
        yield first
    yield from rest


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
