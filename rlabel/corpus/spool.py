"""A temporary SQLite file that puts a corpus file's rows in order.

Files of any length, with their parts in any order, so need little memory. It knows rows as texts and ids as keys, and
nothing of what is in a row.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rlabel.corpus.limits import MOST_REGIONS_READ

_TABLES = """
CREATE TABLE images (seq INTEGER PRIMARY KEY, image_key, row TEXT NOT NULL);
CREATE TABLE regions (seq INTEGER PRIMARY KEY, image_key, id_key, row TEXT NOT NULL, label TEXT);
CREATE TABLE twins (image_key PRIMARY KEY, first_seq INTEGER NOT NULL, note TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE names (seq INTEGER PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE strays (seq INTEGER PRIMARY KEY);
CREATE TABLE long_rows (seq INTEGER PRIMARY KEY, row TEXT NOT NULL);
"""
# Rows of images longer than this many characters lie apart: the join gives an image's row with each of its regions, and
# 10,000 copies of a megabyte would fill any memory.
_LONG_ROW = 2000
_INDEXES = """
CREATE INDEX images_key ON images (image_key);
CREATE INDEX regions_image ON regions (image_key);
CREATE INDEX regions_id ON regions (id_key) WHERE id_key IS NOT NULL;
"""
_FIND_STRAYS = """
INSERT INTO strays SELECT seq FROM regions
    WHERE NOT EXISTS (SELECT 1 FROM images WHERE images.image_key = regions.image_key)
"""
_CROWDED = "SELECT image_key FROM regions WHERE image_key IS NOT NULL GROUP BY image_key HAVING count(*) > ?"
_LAST_READ = "SELECT seq FROM regions INDEXED BY regions_image WHERE image_key = ? ORDER BY seq LIMIT 1 OFFSET ?"
# Images by seq on the outside, their regions through the index on the inside: both come in file order without any
# sorting.
JOINED = """
SELECT i.seq, i.row, t.note, r.seq, r.id_key, n.key, r.row, r.label
FROM images i LEFT JOIN twins t ON t.image_key = i.image_key
LEFT JOIN regions r INDEXED BY regions_image ON r.image_key = i.image_key
LEFT JOIN names n ON n.seq = r.seq
WHERE t.first_seq IS NULL OR t.first_seq = i.seq
ORDER BY i.seq, r.seq
"""
# No key of an image is that text: see `rows.image_key`.
_STRAYS = """
SELECT 0, '', CASE r.image_key WHEN 'surplus' THEN 'its image has more regions than the {most} that are read' END, r.seq, r.id_key, n.key, r.row, r.label
FROM strays s JOIN regions r ON r.seq = s.seq LEFT JOIN names n ON n.seq = r.seq ORDER BY s.seq
"""


Key = int | str | None


class ImageRow(NamedTuple):
    """seq: 1-based position in the file. key: equal for equal ids. text: the row as JSON."""

    seq: int
    key: Key
    text: str


class RegionRow(NamedTuple):
    """id_key: equal for equal ids, None without one. label: what only training may see, as JSON, where it is kept."""

    seq: int
    image_key: Key
    id_key: Key
    text: str
    label: str | None


class JoinedRow(NamedTuple):
    """One region beside its image; an image without regions comes once, with region_seq None.

    name: the region's key where it is not simply its id. twin_note: why the image is not known, where rows share its
    id.
    """

    image_seq: int
    image_text: str
    twin_note: str | None
    region_seq: int | None
    id_key: Key
    name: str | None
    region_text: str | None
    label: str | None


class Spool:
    """Rows in, in batches; then `finish`; then the join out. Its file is gone on `close` or when the process ends."""

    def __init__(self, folder: str | None) -> None:
        handle, self.path = tempfile.mkstemp(prefix="rlabel-corpus-", suffix=".sqlite", dir=folder)
        os.close(handle)
        self.has_long_rows = False
        try:
            self.database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            # Nobody reads this file after a crash: no journal, no syncing.
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-32768"):
                self.database.execute(f"PRAGMA {pragma}")
            self.database.executescript(_TABLES)
        except BaseException:
            os.unlink(self.path)
            raise
        # Without a name the file goes with the process, however that ends. Where an open file keeps its name (Windows),
        # `close` removes it.
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self.database.execute("BEGIN")

    def add_images(self, rows: Iterable[ImageRow]) -> None:
        short = []
        for row in rows:
            if len(row.text) > _LONG_ROW:
                self.database.execute("INSERT INTO long_rows VALUES (?,?)", (row.seq, row.text))
                self.has_long_rows = True
                row = row._replace(text="")
            short.append(row)
        self.database.executemany("INSERT INTO images VALUES (?,?,?)", short)

    def add_regions(self, rows: Iterable[RegionRow]) -> None:
        self.database.executemany("INSERT INTO regions VALUES (?,?,?,?,?)", rows)

    def finish(self) -> None:
        """Index what was added; after this `add_twin` and `add_names`, and the reading."""
        for statement in _INDEXES.split(";"):
            self.database.execute(statement)
        for (key,) in self.database.execute(_CROWDED, (MOST_REGIONS_READ,)).fetchall():
            ((last,),) = self.database.execute(_LAST_READ, (key, MOST_REGIONS_READ - 1))
            self.database.execute(
                "UPDATE regions SET image_key = 'surplus' WHERE image_key = ? AND seq > ?", (key, last)
            )
        self.database.execute(_FIND_STRAYS)

    def repeated_images(self) -> Iterator[tuple[Key, int, list[str]]]:
        """Return key, number of rows and the first row texts of each image id that several rows share."""
        query = (
            "SELECT image_key, count(*), min(seq) FROM images GROUP BY image_key HAVING count(*) > 1 ORDER BY min(seq)"
        )
        for key, count, _ in self.database.execute(query):
            rows = self.database.execute("SELECT row, seq FROM images WHERE image_key = ? ORDER BY seq LIMIT 3", (key,))
            yield key, count, [text or self._long_row(seq) for text, seq in rows]

    def add_twin(self, key: Key, note: str) -> None:
        self.database.execute(
            "INSERT INTO twins SELECT image_key, min(seq), ? FROM images WHERE image_key = ?", (note, key)
        )

    def repeated_regions(self) -> Iterator[tuple[int, Key]]:
        """Return the position and id of each region row whose id several rows have, by id, then in file order."""
        return self.database.execute(
            "SELECT r.seq, r.id_key FROM (SELECT id_key FROM regions WHERE id_key IS NOT NULL GROUP BY id_key "
            "HAVING count(*) > 1) d CROSS JOIN regions r INDEXED BY regions_id ON r.id_key = d.id_key "
            "AND r.id_key IS NOT NULL ORDER BY d.id_key, r.seq"
        )

    def unnamed_regions(self) -> Iterator[tuple[int]]:
        """Return the positions of region rows without an id."""
        return self.database.execute("SELECT seq FROM regions WHERE id_key IS NULL ORDER BY seq")

    def has_id(self, text: str) -> bool:
        query = "SELECT 1 FROM regions WHERE id_key = ? AND id_key IS NOT NULL LIMIT 1"
        return self.database.execute(query, (text,)).fetchone() is not None

    def has_id_from(self, start: str, stop: str) -> bool:
        """Return whether a text id lies in [start, stop)."""
        query = "SELECT 1 FROM regions WHERE id_key >= ? AND id_key < ? LIMIT 1"
        return self.database.execute(query, (start, stop)).fetchone() is not None

    def add_names(self, rows: Iterable[tuple[int, str]]) -> None:
        self.database.executemany("INSERT INTO names VALUES (?,?)", rows)

    def count_images(self) -> int:
        """Return the number of images that `joined` gives: each id once."""
        return int(self.database.execute("SELECT count(DISTINCT image_key) FROM images").fetchone()[0])

    def count_strays(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM strays").fetchone()[0])

    def joined(self) -> Iterator[JoinedRow]:
        """Return images in file order, each with its regions in file order."""
        rows = map(JoinedRow._make, self.database.execute(JOINED))
        return self._with_long_rows(rows) if self.has_long_rows else rows

    def _with_long_rows(self, rows: Iterator[JoinedRow]) -> Iterator[JoinedRow]:
        """Yield the rows of the join with long texts of images put in, one text for all regions of an image."""
        seq, text = 0, ""
        for row in rows:
            if not row.image_text:
                if row.image_seq != seq:
                    seq, text = row.image_seq, self._long_row(row.image_seq)
                row = row._replace(image_text=text)
            yield row

    def _long_row(self, seq: int) -> str:
        return str(self.database.execute("SELECT row FROM long_rows WHERE seq = ?", (seq,)).fetchone()[0])

    def strays(self) -> Iterator[JoinedRow]:
        """Return the regions that no image has, or no image can hold, in file order; their image fields are empty.

        twin_note: why an image that is there has no room for it.
        """
        return map(JoinedRow._make, self.database.execute(_STRAYS.format(most=MOST_REGIONS_READ)))

    def close(self) -> None:
        self.database.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
