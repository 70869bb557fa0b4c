"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions of COCO's regions, joined with their instances.json.

Facts of the layout: the datasets' loader (refer.py) and its README. The references, refs(unc).p and the like, are a pickled
list of {ref_id, ann_id, image_id, split, sentences: [{sent, raw, ...}], ...}; the same list as JSON is read too. `ann_id` is
an annotation of instances.json; the references' own file_name names no picture.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice

from rlabel.corpus.coco import Problem, read_labeled
from rlabel.corpus.coco_source import CocoSource, ProblemList
from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.labeled import Format, LabeledCategory, LabeledImage, LabeledRegion, why_unusable
from rlabel.corpus.layouts import INSTANCES, folder_names, is_pickle, is_refs_file
from rlabel.corpus.limits import Limits
from rlabel.corpus.plain_pickle import load_plain
from rlabel.corpus.rows import image_key, region_id_key, region_of
from rlabel.corpus.spool import JoinedRow, Spool
from rlabel.errors import InputError, UsageError
from rlabel.records import JsonValue
from rlabel.storage import open_url, split_url

_LONGEST_EXPRESSION = 2000
_MOST_SPLITS = 20
_TABLE = "CREATE TABLE expressions (image_key, seq INTEGER, region_key TEXT, text TEXT, PRIMARY KEY (image_key, seq)) WITHOUT ROWID"
_EXPRESSIONS_OF = "SELECT region_key, text FROM expressions WHERE image_key = ? ORDER BY region_key, seq"
_REGION = "SELECT seq, image_key, row FROM regions WHERE id_key = ? AND id_key IS NOT NULL LIMIT 2"
_IMAGE = "SELECT 1 FROM images WHERE image_key = ?"


class RefCocoSource:
    """The images of one split that have expressions, each with all its regions; see `LabeledSource`.

    Regions that nobody refers to are the ones an expression must tell its own region from.
    """

    format: Format = "refcoco"

    def __init__(self, instances: CocoSource, spool: Spool, problems: ProblemList, guess: str | None) -> None:
        self.guess = guess
        self.categories: dict[int, LabeledCategory] = instances.categories
        self.problems: list[Problem] = [*problems.all(), *instances.problems]
        self.num_skipped = problems.num_skipped + instances.num_skipped
        self._instances, self._spool = instances, spool

    def images(self, limit: int | None = None) -> Iterator[LabeledImage]:
        """Return the images with expressions in the split, in the order of instances.json; the first `limit` of them."""
        return islice(self._images(), limit)

    def close(self) -> None:
        self._instances.close()

    def __enter__(self) -> RefCocoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _images(self) -> Iterator[LabeledImage]:
        for image in self._instances.images():
            rows = self._spool.database.execute(_EXPRESSIONS_OF, (image_key(image.record.row.get("id")),))
            found = {
                key: tuple(dict.fromkeys(text for _, text in group)) for key, group in groupby(rows, lambda row: row[0])
            }
            if found:
                labels = (replace(label, expressions=found.get(label.region.key, ())) for label in image.labels)
                yield replace(image, labels=tuple(labels))


def open_refcoco(
    url: str, split: str | None, spool_dir: str | None = None, limits: Limits | None = None, guess: str | None = None
) -> RefCocoSource:
    """Return one split of the references at `url`, or of the only references in a folder, with instances.json beside them.

    split: train, val, test, testA or testB, as the file has them. limits: a pickle larger than max_file_bytes is refused.

    Raises UsageError without a split, InputError for a split that the file does not have, a file that is missing or of
    another layout, and when no reference of the split has a usable region.
    """
    folder, name = _refs_file(url)
    where = f"{folder}/{name}"
    labeled = read_labeled(_checked_instances(folder), spool_dir)
    try:
        spool = labeled.corpus._spool
        spool.database.execute(_TABLE)
        reading = _RefsReading(where, split, spool)
        reading.read(_references(where, limits if limits is not None else Limits()))
    except sqlite3.Error as error:
        labeled.close()
        raise InputError(
            f"{where}: reading it stopped ({error}). The temporary file needs space; set TMPDIR to another folder."
        ) from error
    except BaseException:
        labeled.close()
        raise
    instances = CocoSource(labeled, f"{folder}/{INSTANCES}", "refcoco")
    return RefCocoSource(instances, spool, reading.problems, guess)


class _RefsReading:
    """One pass over the references: those of the split go into the temporary file, beside the regions they are of."""

    def __init__(self, where: str, split: str | None, spool: Spool) -> None:
        self.where, self.split, self.spool = where, split, spool
        self.problems = ProblemList(where)
        self.splits: Counter[str] = Counter()
        self.num_expressions = 0

    def read(self, references: Iterator[tuple[JsonValue, int]]) -> None:
        num_walked = 0
        for number, (row, most_walked) in enumerate(references, start=1):
            if not isinstance(row, dict):
                self.problems.skip(f"{self.where}, row {number}", "it is no object")
                continue
            split, sentences = row.get("split"), row.get("sentences")
            if not isinstance(split, str) or not isinstance(sentences, list):
                self.refuse_or_skip(number, row.keys())
                continue
            if split == self.split or split in self.splits or len(self.splits) < _MOST_SPLITS:
                self.splits[split] += 1
            if split == self.split:
                num_walked += 1 + len(sentences)
                if num_walked > most_walked:
                    raise InputError(
                        f"{self.where}: expected references that are each in the file once, got a pickle that repeats its values "
                        "more often than it has bytes. Download the file again."
                    )
                self.take(f"{self.where}, ref {_shown(row.get('ref_id'))}", row, sentences)
        self.check()

    def take(self, which: str, row: dict[str, JsonValue], sentences: list[JsonValue]) -> None:
        texts = [text for text in map(_expression, sentences) if text is not None]
        if not texts:
            return self.problems.skip(which, f"it has no sentence of at most {_LONGEST_EXPRESSION} characters")
        identity = region_id_key(row.get("ann_id"))
        found = self.spool.database.execute(_REGION, (identity,)).fetchall()
        shown = _shown(row.get("ann_id"))
        if len(found) != 1:
            return self.problems.skip(
                which, f"{'several' if found else 'no'} annotations of {INSTANCES} have its ann_id {shown}"
            )
        ((seq, of_image, text),) = found
        if self.spool.database.execute(_IMAGE, (of_image,)).fetchone() is None:
            return self.problems.skip(which, f"the image of its annotation {shown} is not in {INSTANCES}")
        if image_key(row.get("image_id")) not in (None, of_image):
            return self.problems.skip(which, f"its image_id is not that of its annotation {shown}")
        region = region_of(JoinedRow(0, "", None, seq, identity, None, text, None), None)
        reason = why_unusable(LabeledRegion(region=region, category_id=None, caption=texts[0]))
        if reason is not None:
            return self.problems.skip(which, f"annotation {shown}: {reason}")
        rows = []
        for expression in texts:
            self.num_expressions += 1
            rows.append((of_image, self.num_expressions, str(identity), expression))
        self.spool.database.executemany("INSERT INTO expressions VALUES (?,?,?,?)", rows)
        return None

    def check(self) -> None:
        there = ", ".join(f"{name[:40]} ({count} references)" for name, count in self.splits.items()) or "none"
        if not self.splits:
            raise InputError(
                f"{self.where}: expected a list of references with split, ann_id and sentences, got none. Take the file as published."
            )
        if self.split is None:
            raise UsageError(f"{self.where}: expected the split to read, got none. Name one of: {there}.")
        if self.split not in self.splits:
            raise InputError(
                f"{self.where}: expected the split {self.split!r}, got a file without it. It has: {there}."
            )
        if not self.num_expressions:
            first = self.problems.listed[0]
            raise InputError(
                f"{self.where}, split {self.split}: expected at least one usable region, got none of {self.splits[self.split]} "
                f"references; first, {first.where}: {first.what}. Put the {INSTANCES} that belongs to them beside them."
            )

    def refuse_or_skip(self, number: int, keys: object) -> None:
        if self.splits:
            return self.problems.skip(f"{self.where}, row {number}", "it has no split or no list of sentences")
        raise InputError(
            f"{self.where}, row {number}: expected a reference with split, ann_id and sentences, got {str(keys)[:120]}. "
            "Take the file as RefCOCO publishes it, or as JSON with the same keys."
        )


def _shown(value: object) -> str:
    """Return an id for a message. A list of a pickle may hold itself many times over, and would be printed for days."""
    return str(value)[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _expression(sentence: JsonValue) -> str | None:
    """Return a sentence as cleaned by the authors, else as written; None if it has none, or one that nobody would say."""
    values = sentence if isinstance(sentence, dict) else {}
    for key in ("sent", "raw"):
        text = values.get(key)
        if isinstance(text, str) and text.strip() and len(text) <= _LONGEST_EXPRESSION:
            return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return None


def _references(where: str, limits: Limits) -> Iterator[tuple[JsonValue, int]]:
    """Return the rows of a references file, each with how many values a file of its size can hold."""
    with open_url(where) as stream:
        head = stream.read(64)
    with open_url(where) as stream:
        if is_pickle(head):
            data = stream.read(limits.max_file_bytes + 1)
            if len(data) > limits.max_file_bytes:
                raise InputError(
                    f"{where}: expected a pickle of at most {limits.max_file_bytes} bytes, got more. A pickle must be read whole; "
                    "write its list as JSON, which is not."
                )
            rows = load_plain(data, where)
            if isinstance(rows, dict):
                rows = rows.get("refs")
            if not isinstance(rows, list):
                raise InputError(
                    f"{where}: expected a pickled list of references, got a {type(rows).__name__}. Take the file as published."
                )
            for row in rows:
                yield row, len(data)
        elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
            for member in stream_members(stream, where):
                if member.name == "refs" and member.index is not None:
                    yield member.value, 1 << 62  # text has no shared values: the file's own length bounds it
        else:
            for row in stream_elements(stream, where):
                yield row, 1 << 62


def _refs_file(url: str) -> tuple[str, str]:
    """Return the folder and the name of the references file."""
    names = folder_names(url)
    if names is None:
        store, name = split_url(url)
        return store.url.rstrip("/"), name
    found = [name for name in names if is_refs_file(name)]
    if len(found) != 1:
        shown = ", ".join(found[:5] or names[:5]) or "nothing"
        raise InputError(
            f"{url}: expected one file of references in the folder, such as refs(unc).p, got {shown}. Name the file itself."
        )
    return url.rstrip("/"), found[0]


def _checked_instances(folder: str) -> str:
    where = f"{folder}/{INSTANCES}"
    try:
        open_url(where).close()
    except FileNotFoundError as error:
        raise InputError(
            f"{where}: there is no such file, and the regions of the references are in it. Put it beside them."
        ) from error
    return where
