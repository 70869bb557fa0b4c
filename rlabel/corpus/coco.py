"""Reads COCO-like files (COCO, LVIS, V3Det, bare proposals) as images with their regions, in flat memory and one pass.

What is wrong with single rows is kept as data: as `Region.problem`, and as `Problem` for a person. `read_corpus` drops
categories and captions while reading; only `read_labeled`, for training, gives them.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import Literal, cast

from rlabel.corpus.json_stream import Member, parse_row, stream_members
from rlabel.corpus.labeled import LabeledImage, LabeledRegion
from rlabel.corpus.rows import (
    LABEL_KEYS,
    canonical_text,
    image_key,
    image_record,
    region_id_key,
    region_of,
    row_text,
    spooled_content,
    stray_problem,
    usable_file_name,
    verbatim_text,
)
from rlabel.corpus.spool import ImageRow, JoinedRow, RegionRow, Spool
from rlabel.errors import InputError, RlabelError
from rlabel.records import ImageRecord, JsonObject, JsonValue, Region
from rlabel.storage import open_url

_BATCH_ROWS = 2000
_MAX_PROBLEMS = 1000
# What is not written to the temporary file is held in memory: categories, licenses, info.
_WHOLE = ("info", "licenses", "categories")
_LONGEST_WHOLE = 1 << 28  # characters of them all together
_ROW_CHARACTERS = 200  # what holding even an empty one costs
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a corpus file that a person should know. where: the row; what: the cause, and what follows from it.

    severity: "error" if images or regions cannot be labeled because of it, else "warning".
    """

    where: str
    what: str
    severity: Literal["error", "warning"] = "error"


class Corpus:
    """A corpus file, read once. `close` it, or use it in a `with`, to free its temporary file.

    num_images: images that `images` gives, each id once. num_regions: annotation rows, strays included.
    sha256: hex digest of image rows and annotation rows (without categories and captions) in file order, info and
    licenses; blanks and the order of keys do not count. problems: at most 1000, the last saying how many more. info,
    licenses, categories: verbatim.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        num_regions: int,
        sha256: str,
        problems: list[Problem],
        info: JsonValue,
        licenses: JsonValue,
        categories: JsonValue,
    ) -> None:
        self._spool = spool
        self.num_images = spool.count_images()
        self.num_regions = num_regions
        self.num_stray_regions = spool.count_strays()
        self.sha256 = sha256
        self.problems = problems
        self.info = info
        self.licenses = licenses
        self.categories = categories

    def images(self, limit: int | None = None) -> Iterator[ImageRecord]:
        """Return the images in file order, each with its regions in file order; the first `limit` of them."""
        return (record for record, _ in self._joined(limit))

    def contents(self, limit: int | None = None) -> Iterator[tuple[str, list[str]]]:
        """Return the canonical texts of the images of `images`: of the row, and of each region as `rows.region_content` gives it."""
        for _, group in islice(groupby(self._spool.joined(), key=attrgetter("image_seq")), limit):
            rows = list(group)
            contents = [spooled_content(row, row.twin_note) for row in rows if row.region_seq is not None]
            yield canonical_text(parse_row(rows[0].image_text)), contents

    def stray_regions(self) -> Iterator[Region]:
        """Return the regions of no image, in file order, each with its `problem`."""
        for joined in self._spool.strays():
            yield region_of(joined, joined.twin_note or stray_problem(cast(str, joined.region_text)))

    def close(self) -> None:
        self._spool.close()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _joined(self, limit: int | None) -> Iterator[tuple[ImageRecord, list[JoinedRow]]]:
        for _, group in islice(groupby(self._spool.joined(), key=attrgetter("image_seq")), limit):
            rows = list(group)
            having = [row for row in rows if row.region_seq is not None]
            regions = tuple(region_of(row, row.twin_note) for row in having)
            yield image_record(rows[0].image_text, regions), having


class LabeledCorpus:
    """A corpus with its truth, for training and evaluation; never handed to a labeler.

    corpus: the same file without its truth. categories: verbatim.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.categories = corpus.categories

    def images(self, limit: int | None = None) -> Iterator[LabeledImage]:
        """Return the images in file order with their labeled regions; the first `limit` of them."""
        for record, rows in self.corpus._joined(limit):
            yield LabeledImage(record=record, labels=tuple(map(_labeled, record.regions, rows)))

    def regions(self) -> Iterator[LabeledRegion]:
        """Return all labeled regions that have an image, in the order of `images`."""
        for image in self.images():
            yield from image.labels

    def close(self) -> None:
        self.corpus.close()

    def __enter__(self) -> LabeledCorpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_corpus(url: str | os.PathLike[str], spool_dir: str | None = None) -> Corpus:
    """Return the corpus of a COCO-like JSON file at a path or fsspec URL, without categories and captions.

    spool_dir: where the temporary file lies, about as large as the JSON; by default the system's temporary folder.

    Raises InputError when the file is missing, is no JSON object, or lacks a list of images or annotations.
    """
    return _read(url, spool_dir, keep_labels=False)


def read_labeled(url: str | os.PathLike[str], spool_dir: str | None = None) -> LabeledCorpus:
    """Return the corpus of a COCO-like JSON file with each region's category id and caption.

    Arguments and errors are those of `read_corpus`.
    """
    return LabeledCorpus(_read(url, spool_dir, keep_labels=True))


def _labeled(region: Region, joined: JoinedRow) -> LabeledRegion:
    label = parse_row(joined.label) if joined.label else None
    values: JsonObject = label if isinstance(label, dict) else {}
    category_id, caption = values.get("category_id"), values.get("caption")
    return LabeledRegion(
        region=region,
        category_id=category_id if type(category_id) is int else None,
        caption=caption.strip() if isinstance(caption, str) and caption.strip() else None,
    )


def _read(url: str | os.PathLike[str], spool_dir: str | None, keep_labels: bool) -> Corpus:
    where = os.fspath(url)
    try:
        spool = Spool(spool_dir)
    except OSError as error:
        raise InputError(
            f"{spool_dir or 'the temporary folder'}: cannot hold the temporary file of the corpus ({error}). "
            "Name another folder for it, or set TMPDIR."
        ) from error
    try:
        try:
            stream = open_url(where)
        except FileNotFoundError as error:
            raise InputError(f"{where}: there is no such file. Give the path or URL of a COCO JSON file.") from error
        with stream:
            reading = Reading(spool, where, keep_labels)
            for member in stream_members(stream, where):
                reading.take(member)
            return reading.corpus()
    except (sqlite3.Error, OSError) as error:
        spool.close()
        if isinstance(error, RlabelError):
            raise
        raise InputError(
            f"{where}: reading it stopped ({error}). The temporary file needs about as much space as the JSON file in "
            f"{spool_dir or 'the temporary folder (TMPDIR)'}; free some, or name another folder."
        ) from error
    except BaseException:
        spool.close()
        raise


class Reading:
    """The state of one pass over a file. Readers of other layouts hand it rows in COCO's form."""

    def __init__(self, spool: Spool, where: str, keep_labels: bool) -> None:
        self.spool, self.where, self.keep_labels = spool, where, keep_labels
        self.problems: list[Problem] = []
        self.num_unlisted_problems = 0
        self.image_batch: list[ImageRow] = []
        self.region_batch: list[RegionRow] = []
        self.num_image_rows = self.num_regions = 0
        self.image_digest, self.region_digest = hashlib.sha256(), hashlib.sha256()
        self.seen: set[str] = set()
        self.whole: JsonObject = {}
        self.lists: dict[str, list[JsonValue]] = {"licenses": [], "categories": []}
        self.takers: dict[str, Callable[[JsonValue], None]] = {
            "annotations": self.take_region,
            "images": self.take_image,
            "licenses": lambda row: self.keep("licenses", row),
            "categories": lambda row: self.keep("categories", row),
        }
        self.num_whole = 0

    def take(self, member: Member) -> None:
        if member.name in self.takers or len(self.seen) < _MOST_NAMES:
            self.seen.add(member.name)
        if member.index is None:
            if member.name in ("images", "annotations") and member.value != []:
                raise InputError(f"{self.where}: {member.name} is not a list. Expected a COCO file: a list of objects.")
            if member.name in _WHOLE:
                self.whole[member.name] = member.value if self.has_room(member.name, member.value) else None
        elif member.name in self.takers:
            self.takers[member.name](member.value)

    def keep(self, name: str, row: JsonValue) -> None:
        if self.has_room(name, row):
            self.lists[name].append(row)

    def has_room(self, name: str, value: JsonValue) -> bool:
        """Return whether a value can be kept in memory. Raises InputError where all of them together are too long for that."""
        text = row_text(value)
        if text is None:
            self.report(name, "nested too deeply; left out")
            return False
        self.num_whole += len(text) + _ROW_CHARACTERS
        if self.num_whole > _LONGEST_WHOLE:
            raise InputError(
                f"{self.where}: expected at most {_LONGEST_WHOLE} characters of {', '.join(_WHOLE)}, got more. Leave out what is not needed."
            )
        return True

    def take_image(self, row: JsonValue) -> None:
        self.num_image_rows += 1
        seq = self.num_image_rows
        text = row_text(row)
        self.image_digest.update((text or "null").encode() + b"\n")
        if not isinstance(row, dict) or text is None:
            return self.report(f"images row {seq}", "not a JSON object, or nested too deeply; left out")
        key = image_key(row.get("id"))
        if key is None:
            return self.report(f"images row {seq}", f"no usable id (got {str(row.get('id'))[:60]}); left out")
        self.image_batch.append(ImageRow(seq, key, verbatim_text(row)))
        if len(self.image_batch) >= _BATCH_ROWS:
            self.flush()
        return None

    def take_region(self, row: JsonValue) -> None:
        self.num_regions += 1
        label, of_image, identity = None, None, None
        label_values: JsonObject = {}
        if isinstance(row, dict):
            for name in LABEL_KEYS:
                if name in row:
                    label_values[name] = row.pop(name)
        text = row_text(row)
        if isinstance(row, dict) and text is not None:
            of_image, identity = image_key(row.get("image_id")), region_id_key(row.get("id"))
            if self.keep_labels:
                label = row_text(label_values)
        self.region_batch.append(RegionRow(self.num_regions, of_image, identity, text or "null", label))
        if len(self.region_batch) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        self.spool.add_images(self.image_batch)
        self.spool.add_regions(self.region_batch)
        self.region_digest.update("".join(row.text + "\n" for row in self.region_batch).encode())
        self.image_batch, self.region_batch = [], []

    def corpus(self) -> Corpus:
        missing = sorted({"images", "annotations"} - self.seen)
        if missing:
            raise InputError(
                f"{self.where}: no list of {' or '.join(missing)} in it (found: {', '.join(sorted(self.seen))[:200]}). "
                "Expected a COCO file: an object with the lists images and annotations."
            )
        self.flush()
        self.spool.finish()
        self.find_repeated_images()
        self.name_regions()
        for joined in islice(self.spool.strays(), _MAX_PROBLEMS + 1):
            self.report(_region_where(joined), joined.twin_note or stray_problem(cast(str, joined.region_text)))
        info: JsonValue = self.whole.get("info")
        licenses: JsonValue = self.lists["licenses"] or self.whole.get("licenses")
        others = canonical_text([info, licenses, self.image_digest.hexdigest(), self.region_digest.hexdigest()])
        return Corpus(
            spool=self.spool,
            num_regions=self.num_regions,
            sha256=hashlib.sha256(others.encode()).hexdigest(),
            problems=self.listed_problems(),
            info=info,
            licenses=licenses,
            categories=self.lists["categories"] or self.whole.get("categories"),
        )

    def find_repeated_images(self) -> None:
        for key, count, texts in self.spool.repeated_images():
            rows = [cast(JsonObject, parse_row(text)) for text in texts]
            names = ", ".join(repr(usable_file_name(row))[:80] for row in rows) + (", ..." if count > len(rows) else "")
            shown = verbatim_text(rows[0].get("id"))[:80]
            self.report(
                f"images, id {shown}",
                f"{count} image rows have this id ({names}); the first is kept, and no region of it can be labeled",
            )
            note = f"its image id {shown} belongs to {count} image rows ({names}), so its picture is not known"
            self.spool.add_twin(key, note)

    def name_regions(self) -> None:
        """Give keys to rows whose own id cannot be theirs alone; see `records.Region.key`."""
        names: list[tuple[int, str]] = []
        for identity, group in groupby(self.spool.repeated_regions(), key=lambda row: row[1]):
            suffix = 1
            seqs: list[int] = []
            for seq, _ in group:
                name = str(identity)
                if seqs:
                    suffix += 1
                    while self.spool.has_id(f"{identity}#{suffix}"):
                        suffix += 1
                    name = f"{identity}#{suffix}"
                if len(seqs) < 3:
                    seqs.append(seq)
                names.append((seq, name))
                if len(names) >= _BATCH_ROWS:
                    self.spool.add_names(names)
                    names = []
            rows = ", ".join(map(str, seqs))
            what = (
                f"several rows have this id (rows {rows}{', ...' if suffix > len(seqs) else ''}); none of them keeps it"
            )
            self.report(f"annotations, id {str(identity)[:80]}", what, "warning")
        if self.spool.has_id_from("row ", "row!"):  # an id that looks like the key of a row without one
            for (seq,) in self.spool.unnamed_regions():
                name = f"row {seq}"
                while self.spool.has_id(name):
                    name += "#"
                names.append((seq, name))
        self.spool.add_names(names)

    def report(self, where: str, what: str, severity: Literal["error", "warning"] = "error") -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(where=where, what=what, severity=severity))
        else:
            self.num_unlisted_problems += 1

    def listed_problems(self) -> list[Problem]:
        if self.num_unlisted_problems:
            what = f"at least {self.num_unlisted_problems} more problems, not listed"
            return [*self.problems, Problem(where=self.where, what=what)]
        return self.problems


def _region_where(joined: JoinedRow) -> str:
    shown = "no id" if joined.id_key is None else f"id {str(joined.id_key)[:80]}"
    return f"annotations row {joined.region_seq} ({shown})"
