"""What a run asks of several regions at once: rows of --pairs and --expressions, or pairs that rlabel chooses. They are laid upon the shards.

A row that cannot be used (an unknown id, no text) becomes a query with its `problem`, never an exception.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, Protocol

from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.rows import image_key, row_text
from rlabel.errors import InputError
from rlabel.records import Expression, ImageRecord, JsonObject, JsonValue, Pair, Query, Region, RegionId, Shard
from rlabel.run.canonical import canonical_bytes
from rlabel.run.pairing import nearest_pairs
from rlabel.run.query_io import query_to_json
from rlabel.storage import open_url

QueryKind = Literal["pair", "expression"]
_BATCH_ROWS = 2000
_LONGEST_EXPRESSION = 2000


class Queries(Protocol):
    """Where the queries of a run come from. sha256: of the file's rows, None where there is none."""

    sha256: str | None

    def of_image(self, image: ImageRecord) -> tuple[Query, ...]:
        """Return what is asked about an image's regions, in order."""

    def strays(self) -> Iterator[Query]:
        """Return, once all images were asked for, the queries of no image."""


class NearestPairs:
    """Pairs of the regions that lie nearest to each other; see `pairing.nearest_pairs`."""

    sha256: str | None = None

    def __init__(self, max_pairs_per_image: int, *, include_crowds: bool) -> None:
        self.max_pairs_per_image = max_pairs_per_image
        self.include_crowds = include_crowds

    def of_image(self, image: ImageRecord) -> tuple[Query, ...]:
        regions = _usable(image, self.include_crowds)
        return tuple(
            Pair(
                key=json.dumps([regions[one].key, regions[other].key]),
                image_id=image.row.get("id"),
                subject=regions[one].key,
                object=regions[other].key,
            )
            for one, other in nearest_pairs(regions, self.max_pairs_per_image)
        )

    def strays(self) -> Iterator[Query]:
        return iter(())


class QueryFile:
    """A JSON list of pairs {image_id, subject, object} or expressions {image_id, expression, id?, region_ids?}, kept in a temporary file."""

    def __init__(self, url: str, kind: QueryKind, *, include_crowds: bool) -> None:
        """Read the file.

        Raises InputError when it is missing, is no JSON list, or holds no rows.
        """
        self.kind = kind
        self.include_crowds = include_crowds
        # "": a private database of SQLite's own, on disk once it is large, gone with the connection.
        self._rows = sqlite3.connect("")
        self._rows.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, image, text TEXT, used INTEGER DEFAULT 0)")
        digest = hashlib.sha256()
        batch: list[tuple[int, int | str | None, str]] = []
        number = 0
        try:
            stream = open_url(url)
        except FileNotFoundError as error:
            raise InputError(f"--{kind}s {url}: there is no such file. Give a JSON list of {kind}s.") from error
        with stream:
            for number, row in enumerate(stream_elements(stream, f"--{kind}s {url}"), start=1):
                text = row_text(row) or "null"
                digest.update(text.encode() + b"\n")
                key = image_key(row.get("image_id")) if isinstance(row, dict) else None
                batch.append((number, key, text))
                if len(batch) == _BATCH_ROWS:
                    self._add(batch)
                    batch = []
        self._add(batch)
        self._rows.execute("CREATE INDEX by_image ON rows (image)")
        if not number:
            raise InputError(f"--{kind}s {url}: expected at least one {kind}, got an empty list. Add rows to it.")
        self.sha256: str | None = digest.hexdigest()

    def of_image(self, image: ImageRecord) -> tuple[Query, ...]:
        key = image_key(image.row.get("id"))
        found = self._rows.execute("SELECT number, text FROM rows WHERE image = ? ORDER BY number", (key,)).fetchall()
        self._rows.execute("UPDATE rows SET used = 1 WHERE image = ?", (key,))
        if not found:
            return ()
        names = _Names(image.regions)
        every = tuple(region.key for region in _usable(image, self.include_crowds))
        return tuple(self._query(number, json.loads(text), names, every) for number, text in found)

    def strays(self) -> Iterator[Query]:
        for number, text in self._rows.execute("SELECT number, text FROM rows WHERE used = 0 ORDER BY number"):
            row: JsonValue = json.loads(text)
            query = self._query(number, row, _Names(()), ())
            problem = "the row is not a JSON object"
            if isinstance(row, dict):
                shown = json.dumps(row.get("image_id"))[:80]
                known = image_key(row.get("image_id")) is not None
                problem = f"its image_id {shown} is in no image row" if known else "the row has no usable image_id"
            yield replace(query, problem=problem)

    def _add(self, batch: list[tuple[int, int | str | None, str]]) -> None:
        self._rows.executemany("INSERT INTO rows (number, image, text) VALUES (?, ?, ?)", batch)

    def _query(self, number: int, row: JsonValue, names: _Names, every: tuple[str, ...]) -> Query:
        values: JsonObject = row if isinstance(row, dict) else {}
        key = f"row {number}"
        if self.kind == "pair":
            return _pair(key, values, names)
        return _expression(key, values, names, every)


class _Names:
    """Finds regions of one image by what a row calls them: their id, or their key where several have that id."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self.keys: set[str] = set()
        self.by_id: dict[str, list[str]] = {}
        for region in regions:
            self.keys.add(region.key)
            if region.region_id is not None:
                self.by_id.setdefault(str(region.region_id), []).append(region.key)

    def find(self, value: JsonValue) -> str:
        """Return the key of a region. Raises LookupError with the cause."""
        name = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise LookupError(f"expected a region's id, got {name[:80]}")
        found = self.by_id.get(name, [])
        if len(found) > 1:
            raise LookupError(f"{len(found)} regions have the id {name[:80]} ({', '.join(found[:3])})")
        if found:
            return found[0]
        if name in self.keys:
            return name
        raise LookupError(f"no region of the image has the id {name[:80]}")


def _pair(key: str, row: JsonObject, names: _Names) -> Pair:
    found: dict[str, str] = {}
    problem = None
    for side in ("subject", "object"):
        try:
            found[side] = names.find(row.get(side))
        except LookupError as error:
            problem = problem or f"{side}: {error.args[0]}"
    if problem is None and found["subject"] == found["object"]:
        problem = f"subject and object are the same region, {found['subject']}; a relation needs two"
    return Pair(
        key=key,
        image_id=row.get("image_id"),
        subject=found.get("subject", ""),
        object=found.get("object", ""),
        problem=problem,
    )


def _expression(key: str, row: JsonObject, names: _Names, every: tuple[str, ...]) -> Expression:
    text, listed, identity = row.get("expression"), row.get("region_ids"), row.get("id")
    problem = None
    candidates: list[str] = []
    if not isinstance(text, str) or not any(character.isalnum() for character in text):
        problem = f"expected an expression in words, got {json.dumps(text)[:80]}"
        text = text if isinstance(text, str) else ""
    elif len(text) > _LONGEST_EXPRESSION:
        problem = f"the expression is longer than {_LONGEST_EXPRESSION} characters"
    if listed is None:
        candidates = list(every)
        problem = problem or (None if every else "the image has no region to choose")
    elif not isinstance(listed, list) or not listed:
        problem = problem or f"region_ids: expected a list of at least one id, got {json.dumps(listed)[:80]}"
    else:
        try:
            candidates = list(dict.fromkeys(names.find(value) for value in listed))
        except LookupError as error:
            problem = problem or f"region_ids: {error.args[0]}"
    is_id = (isinstance(identity, int) and not isinstance(identity, bool)) or isinstance(identity, str)
    own: RegionId = identity if is_id else None  # type: ignore[assignment]
    return Expression(
        key=key,
        image_id=row.get("image_id"),
        expression_id=own,
        text=text.strip(),
        candidates=tuple(candidates),
        problem=problem,
    )


def _usable(image: ImageRecord, include_crowds: bool) -> list[Region]:
    return [region for region in image.regions if region.problem is None and (include_crowds or not region.is_crowd)]


def with_queries(
    shards: Iterable[Shard], queries: Queries, max_per_shard: int, *, with_strays: bool
) -> Iterator[Shard]:
    """Return the shards with the queries of their images, in order, then, where wanted, those of no image in shards without images.

    Regions of no image, which nothing can be asked about, are left out.
    """
    index = 0
    for shard in shards:
        if not shard.images:
            continue
        images = tuple(replace(image, queries=queries.of_image(image)) for image in shard.images)
        yield _digested(replace(shard, index=index, images=images, stray_regions=()))
        index += 1
    group: list[Query] = []
    for query in queries.strays() if with_strays else ():
        group.append(query)
        if len(group) == max_per_shard:
            yield _digested(Shard(index=index, content_sha256="", images=(), stray_queries=tuple(group)))
            index, group = index + 1, []
    if group:
        yield _digested(Shard(index=index, content_sha256="", images=(), stray_queries=tuple(group)))


def _digested(shard: Shard) -> Shard:
    digest = hashlib.sha256(shard.content_sha256.encode())
    for query in (*(query for image in shard.images for query in image.queries or ()), *shard.stray_queries):
        digest.update(canonical_bytes(query_to_json(query)) + b"\n")
    return replace(shard, content_sha256=digest.hexdigest())
