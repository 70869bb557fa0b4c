"""Vocabularies: the categories that answers are snapped to, their files in and out. How texts are matched is
`snapping`'s business.

Files that are read: a JSON object with `categories` (our own, COCO, LVIS, V3Det; streamed, so that a gigabyte of
annotations beside them costs time but no memory), a bare JSON list of categories, a label map of Hugging Face, a CSV or
TSV table, and plain text with one name a line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import PurePosixPath

from rlabel.errors import InputError
from rlabel.records import JsonObject, JsonValue
from rlabel.schema_files import validate
from rlabel.vocabulary.reading import read_vocabulary_rows
from rlabel.vocabulary.words import fold

_OWN_KEYS = ("id", "name", "synonyms", "def", "supercategory")
# V3Det describes its categories under cat_info; LVIS under def.
_DEFINITION_KEYS = ("def", "definition", "cat_info")
_MAX_NOTES = 20
# As in schemas/vocabulary.schema.json.
_MAX_ID = 2**53 - 1
_MAX_NAME_CHARACTERS = 500
_TEXT_KEYS = ("def", "definition", "supercategory", "synset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One category of a vocabulary.

    category_id: as the file gives it, never renumbered. name, synonyms: verbatim; synonyms may repeat the name.
    definition: what the file says the category means, None where it says nothing. extra: the row's other keys,
    verbatim.
    """

    category_id: int
    name: str
    synonyms: tuple[str, ...] = ()
    definition: str | None = None
    supercategory: str | None = None
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Categories in file order; ids are unique.

    sha256: hex digest of what decides a snap (ids, names, synonyms, definitions, supercategories, in order), not of the
    file's bytes.
    notes: what a user should know of the file, one sentence each, such as names that several categories share.
    """

    name: str
    categories: tuple[Category, ...]
    sha256: str
    notes: tuple[str, ...] = ()

    def by_id(self) -> dict[int, Category]:
        """Return a new mapping of category ids to categories."""
        return {category.category_id: category for category in self.categories}


def load_vocabulary(url: str, *, keep_zero_ids: bool = False) -> Vocabulary:
    """Return the vocabulary in the file at a local path or any fsspec URL.

    keep_zero_ids: accept id 0. Off by default, since CVAT and datumaro take category 0 for "no label".

    Raises InputError where the file cannot be read, is no vocabulary, or holds ids or names that cannot be told apart.
    """
    url = str(url)
    found_name, plain_rows = read_plain_rows(url)
    document: JsonObject = {"categories": plain_rows}
    if found_name is not None:
        document["name"] = found_name
    # The schema judges only what is not plainly right: it takes 40 times as long (13,204 rows: 0.5 s).
    if not (_is_short_text(document.get("name", "v")) and all(map(row_fits, plain_rows))):
        validate(document, "vocabulary", url)
    categories = [row_to_category(row) for row in plain_rows if isinstance(row, dict)]
    return make_vocabulary(
        _stem(url) if found_name is None else str(found_name), categories, where=url, keep_zero_ids=keep_zero_ids
    )


def read_plain_rows(url: str) -> tuple[JsonValue, list[JsonValue]]:
    """Return the name a file gives itself (None if it has none) and its rows, unchecked, with numbers as `json` gives them.

    Raises InputError where the file cannot be read, holds no rows, or numbers and nesting that no JSON reader bears.
    """
    found_name, rows = read_vocabulary_rows(url)
    try:
        return _plain(found_name), [_plain(row) for row in rows]
    except OverflowError as error:
        raise InputError(
            f"{url}: expected numbers of ordinary size in a category, got one too large: {error}."
        ) from error
    except RecursionError as error:
        raise InputError(f"{url}: expected flat category rows, got one nested too deeply. Flatten it.") from error


def make_vocabulary(
    name: str, categories: Iterable[Category], *, where: str = "vocabulary", keep_zero_ids: bool = False
) -> Vocabulary:
    """Return the vocabulary of these categories, in this order, after the checks that `load_vocabulary` does.

    where: what error messages call it. Raises InputError as `load_vocabulary` does.
    """
    in_order = tuple(categories)
    if not in_order:
        raise InputError(f"{where}: expected at least one category, got none. Add categories, or name another file.")
    _check_ids(in_order, where, keep_zero_ids)
    notes = _check_names(in_order, where)
    return Vocabulary(name=name, categories=in_order, sha256=_digest(in_order), notes=notes)


def category_to_row(category: Category) -> JsonObject:
    """Return the category as a COCO category row, with the keys and values the file had."""
    row: JsonObject = {"id": category.category_id, "name": category.name}
    if category.supercategory is not None:
        row["supercategory"] = category.supercategory
    if category.synonyms:
        row["synonyms"] = list(category.synonyms)
    if category.definition is not None and category.definition not in (
        category.extra.get("definition"),
        category.extra.get("cat_info"),
    ):
        row["def"] = category.definition
    return row | category.extra


def vocabulary_to_json(vocabulary: Vocabulary) -> str:
    """Return the vocabulary as the text of a JSON file that `load_vocabulary` reads back to an equal one."""
    rows: list[JsonValue] = [category_to_row(category) for category in vocabulary.categories]
    document: JsonObject = {"name": vocabulary.name, "categories": rows}
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def row_fits(row: JsonValue) -> bool:
    """Whether a row plainly fits schemas/vocabulary.schema.json; False says no more than that the schema has to judge."""
    if not isinstance(row, dict) or not _is_short_text(row.get("name")) or not str(row["name"]).strip():
        return False
    identifier, synonyms = row.get("id"), row.get("synonyms", [])
    return (
        type(identifier) is int
        and 0 <= identifier <= _MAX_ID
        and isinstance(synonyms, list)
        and all(synonym == "" or _is_short_text(synonym) for synonym in synonyms)
        and all(row.get(key) is None or isinstance(row[key], str) for key in _TEXT_KEYS)
    )


def _is_short_text(value: JsonValue) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARACTERS


def row_to_category(row: JsonObject) -> Category:
    """Return the category of a row that fits the schema (`row_fits`, or `validate` found no fault)."""
    definition = next((row[key] for key in _DEFINITION_KEYS if isinstance(row.get(key), str) and row[key]), None)
    identifier = row["id"]
    # JSON Schema counts 1.0 as an integer.
    assert isinstance(identifier, int | float)
    synonyms = row.get("synonyms")
    supercategory = row.get("supercategory")
    return Category(
        category_id=int(identifier),
        name=str(row["name"]),
        synonyms=tuple(str(synonym) for synonym in synonyms) if isinstance(synonyms, list) else (),
        definition=None if definition is None else str(definition),
        supercategory=None if supercategory is None else str(supercategory),
        extra={key: value for key, value in row.items() if key not in _OWN_KEYS},
    )


def _check_ids(categories: tuple[Category, ...], where: str, keep_zero_ids: bool) -> None:
    first_index_of: dict[int, int] = {}
    for index, category in enumerate(categories):
        if category.category_id == 0 and not keep_zero_ids:
            raise InputError(
                f"{where}, categories[{index}] ({category.name!r}): expected an id from 1 on, got 0, which some "
                "readers take for 'no label'. Label maps of Hugging Face count from 0. "
                "Renumber the categories, or set keep_zero_ids to keep it (--keep-zero-ids)."
            )
        earlier = first_index_of.setdefault(category.category_id, index)
        if earlier != index:
            raise InputError(
                f"{where}, categories[{index}] ({category.name!r}): expected unique ids, got "
                f"{category.category_id} again, the id of "
                f"categories[{earlier}] ({categories[earlier].name!r}). Give each category an id of its own."
            )


def _check_names(categories: tuple[Category, ...], where: str) -> tuple[str, ...]:
    """Return a note on each name that several categories share; raise where nothing tells them apart."""
    first_of: dict[tuple[str, ...], int] = {}
    senses: dict[tuple[str, ...], set[tuple[str | None, ...]]] = {}
    notes: list[str] = []
    for index, category in enumerate(categories):
        # A name without a single word (an emoji, say) is compared as it stands.
        key = fold(category.name) or (category.name.strip(),)
        sense = category_sense(category)
        if key not in first_of:
            first_of[key] = index
            senses[key] = {sense}
            continue
        earlier = categories[first_of[key]]
        if sense in senses[key]:
            raise InputError(
                f"{where}, categories[{index}] (id {category.category_id}): expected names that differ, got "
                f"{category.name!r}, which says the same "
                f"as {earlier.name!r} (id {earlier.category_id}). Merge the two, or tell them apart by def, "
                f"supercategory or synset."
            )
        senses[key].add(sense)
        notes.append(
            f"the name {category.name!r} of id {category.category_id} is also that of id {earlier.category_id}, "
            "which comes first and is the one that answers snap to"
        )
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"and {len(notes) - _MAX_NOTES} more names are shared"]
    return tuple(notes)


def category_sense(category: Category) -> tuple[str | None, ...]:
    synset = category.extra.get("synset")
    return (category.definition, category.supercategory, synset if isinstance(synset, str) else None)


def _digest(categories: tuple[Category, ...]) -> str:
    content = [
        [category.category_id, category.name, list(category.synonyms), category.definition, category.supercategory]
        for category in categories
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def _plain(value: object) -> JsonValue:
    """Return what the streaming parser gave with its decimals turned into numbers that `json` writes."""
    if isinstance(value, Decimal):
        number = float(value)
        if math.isinf(number):
            raise OverflowError(f"{value} is too large for a JSON reader")
        return number
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str) else None


def _stem(url: str) -> str:
    name = PurePosixPath(url.replace("\\", "/")).name
    return name.split(".")[0] or "vocabulary"
