"""Turns the elements of Visual Genome's files into rows of a COCO-like corpus, and relationships into pairs of its rows.

Rows go into the temporary file as they are read: one element is in memory at a time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from rlabel.corpus.coco import Corpus, Reading
from rlabel.corpus.coco_source import ProblemList
from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.json_stream import Member
from rlabel.corpus.labeled import LabeledRegion, why_unusable
from rlabel.corpus.layouts import IMAGE_DATA, VISUAL_GENOME_FILES, folder_names, visual_genome_part
from rlabel.corpus.limits import Limits
from rlabel.corpus.rows import image_key, region_id_key, region_of, row_text, usable_file_name
from rlabel.corpus.spool import JoinedRow, Key, Spool
from rlabel.errors import InputError, RlabelError
from rlabel.records import JsonObject, JsonValue
from rlabel.storage import open_url, split_url

_TABLES = (
    "CREATE TABLE known_images (image_key PRIMARY KEY) WITHOUT ROWID",
    # Under which row of `regions` an object of an image is kept, also for the ids of those merged into it.
    "CREATE TABLE objects (image_key, object_id, region_seq INTEGER, PRIMARY KEY (image_key, object_id)) WITHOUT ROWID",
    "CREATE TABLE relations (image_key, seq INTEGER, subject_seq INTEGER, predicate TEXT, object_seq INTEGER, "
    "PRIMARY KEY (image_key, seq)) WITHOUT ROWID",
)
# The keys of a relation's regions: a row's own where the reader gave it one, else its id (see coco.Reading.name_regions).
RELATIONS_OF = """
SELECT coalesce(sn.key, s.id_key), l.predicate, coalesce(tn.key, t.id_key) FROM relations l
JOIN regions s ON s.seq = l.subject_seq LEFT JOIN names sn ON sn.seq = s.seq
JOIN regions t ON t.seq = l.object_seq LEFT JOIN names tn ON tn.seq = t.seq
WHERE l.image_key = ? ORDER BY l.seq
"""


class GenomeReading:
    """One pass over the files. files: their names; problems: rows left out."""

    def __init__(self, url: str, spool_dir: str | None, limits: Limits) -> None:
        self.url, self.limits = url, limits
        self.folder, self.files = _files(url)
        self.problems = ProblemList(url)
        self.num_relations = 0
        self.file = IMAGE_DATA  # the one being read
        try:
            self.spool = Spool(spool_dir)
        except OSError as error:
            raise InputError(
                f"{spool_dir or 'the temporary folder'}: cannot hold the temporary file of the corpus ({error}). "
                "Name another folder for it, or set TMPDIR."
            ) from error
        self.rows = Reading(self.spool, url, True)

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Remove the temporary file when reading fails, and say what a full disk means."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.spool.close()
            if isinstance(error, RlabelError):
                raise
            raise InputError(
                f"{self.url}: reading it stopped ({error}). The temporary file needs about as much space as the JSON files; "
                "free some, or set TMPDIR to another folder."
            ) from error
        except BaseException:
            self.spool.close()
            raise

    def read(self) -> None:
        for table in _TABLES:
            self.spool.database.execute(table)
        self.read_images()
        for name in self.files:
            self.file = name
            where = f"{self.folder}/{name}"
            with open_url(where) as stream:
                for number, row in enumerate(stream_elements(stream, where), start=1):
                    self.take_element(number, row)

    def take_element(self, number: int, row: JsonValue) -> None:
        part = visual_genome_part(row)
        if part is None or not isinstance(row, dict) or (number == 1 and not self.file_holds(part)):
            return self.refuse_or_skip(number, row)
        found = row["regions" if part == "region_descriptions" else part]
        assert isinstance(found, list)  # visual_genome_part looked
        image_id = row.get("image_id", row.get("id"))  # descriptions have it as "id"
        of_image = image_key(image_id)
        if not self.is_known(of_image):
            return self.skip(number, f"its image is not in {IMAGE_DATA}", len(found))
        num_over = len(found) - self.limits.max_regions_per_image
        if num_over > 0:
            self.skip(number, f"{num_over} of its rows are beyond max_regions_per_image", num_over)
        rows = found[: self.limits.max_regions_per_image]
        if part == "region_descriptions":
            self.take_descriptions(image_id, rows)
        elif part == "objects":
            self.take_objects(of_image, image_id, rows)
        else:
            self.take_relations(of_image, image_id, rows)
        return None

    def corpus(self) -> Corpus:
        if not self.rows.num_regions:
            first = (
                f"; first, {self.problems.listed[0].where}: {self.problems.listed[0].what}"
                if self.problems.listed
                else ""
            )
            raise InputError(
                f"{self.url}: expected at least one usable region in {', '.join(self.files)}, got none{first}. "
                "Check that the files belong together and are whole."
            )
        return self.rows.corpus()

    def read_images(self) -> None:
        where = f"{self.folder}/{IMAGE_DATA}"
        try:
            stream = open_url(where)
        except FileNotFoundError as error:
            raise InputError(
                f"{where}: there is no such file, and Visual Genome's file names and sizes are in it. Put it beside {self.files[0]}."
            ) from error
        with stream:
            for number, row in enumerate(stream_elements(stream, where), start=1):
                values: JsonObject = row if isinstance(row, dict) else {}
                image_id = values.get("image_id", values.get("id"))  # "id" in the first releases
                key = image_key(image_id)
                file_name = usable_file_name({"coco_url": values.get("url")})
                if key is None or file_name is None:
                    self.skip(number, "expected an object with image_id and url")
                    continue
                image: JsonObject = {**values, "id": image_id, "file_name": file_name}
                if row_text(image) is None:
                    self.skip(number, "it is nested too deeply")
                    continue
                self.rows.take(Member("images", number - 1, image))
                self.spool.database.execute("INSERT OR IGNORE INTO known_images VALUES (?)", (key,))

    def take_descriptions(self, image_id: JsonValue, rows: list[JsonValue]) -> None:
        for row in rows:
            values: JsonObject = row if isinstance(row, dict) else {}
            region_id = values.get("region_id", values.get("id"))
            phrase = values.get("phrase")
            region: JsonObject = {"id": region_id, "image_id": image_id, "bbox": _box(values), "caption": phrase}
            reason = _why_bad(region, phrase if isinstance(phrase, str) and phrase.strip() else None)
            if reason is None:
                self.rows.take(Member("annotations", self.rows.num_regions, region))
            else:
                self.skip_region(f"region {str(region_id)[:40]}", reason)

    def take_objects(self, of_image: Key, image_id: JsonValue, rows: list[JsonValue]) -> None:
        for row in rows:
            values: JsonObject = row if isinstance(row, dict) else {}
            identity = region_id_key(values.get("object_id"))
            if self.object_seq(of_image, identity) is not None:
                self.skip_region(f"object {identity}", f"the image {str(image_id)[:40]} has it already")
            elif (seq := self.add_object(image_id, values)) is not None:
                merged = values.get("merged_object_ids")
                ids = [identity, *(map(region_id_key, merged) if isinstance(merged, list) else ())]
                self.spool.database.executemany(
                    "INSERT OR IGNORE INTO objects VALUES (?,?,?)",
                    [(of_image, item, seq) for item in ids if item is not None],
                )

    def take_relations(self, of_image: Key, image_id: JsonValue, rows: list[JsonValue]) -> None:
        for row in rows:
            values: JsonObject = row if isinstance(row, dict) else {}
            where = f"relationship {str(values.get('relationship_id', values.get('id')))[:40]}"
            predicate = values.get("predicate")
            if not isinstance(predicate, str) or not predicate.strip():
                self.skip_region(where, "it has no predicate")
                continue
            subject = self.end_of(of_image, image_id, values.get("subject"))
            object_ = self.end_of(of_image, image_id, values.get("object"))
            if subject is None or object_ is None:
                self.skip_region(where, f"its {'subject' if subject is None else 'object'} has no usable id and box")
            elif subject == object_:
                self.skip_region(where, "its subject and its object are one")
            else:
                self.num_relations += 1
                self.spool.database.execute(
                    "INSERT INTO relations VALUES (?,?,?,?,?)",
                    (of_image, self.num_relations, subject, _plain_text(" ".join(predicate.split())), object_),
                )

    def end_of(self, of_image: Key, image_id: JsonValue, value: JsonValue) -> int | None:
        """Return the row of a relationship's subject or object, adding one where objects.json had none."""
        if not isinstance(value, dict):
            return None
        merged = value.get("merged_object_ids")
        identity = region_id_key(value.get("object_id"))
        for item in [identity, *(map(region_id_key, merged) if isinstance(merged, list) else ())]:
            seq = self.object_seq(of_image, item)
            if seq is not None:
                return seq
        seq = self.add_object(image_id, value, report=False)
        if seq is not None:
            self.spool.database.execute("INSERT INTO objects VALUES (?,?,?)", (of_image, identity, seq))
        return seq

    def add_object(self, image_id: JsonValue, values: JsonObject, report: bool = True) -> int | None:
        object_id = values.get("object_id")
        identity = region_id_key(object_id)
        listed = values.get("names")
        found = listed if isinstance(listed, list) else [values.get("name")]
        names: list[JsonValue] = [name.strip() for name in found if isinstance(name, str) and name.strip()]
        region: JsonObject = {
            "id": f"object {identity}",
            "image_id": image_id,
            "bbox": _box(values),
            "object_id": object_id,
            "names": names,
        }
        reason = "it has no usable object_id" if identity is None else _why_bad(region, "named" if names else None)
        if reason is not None:
            if report:
                self.skip_region(f"object {str(object_id)[:40]}", reason)
            return None
        self.rows.take(Member("annotations", self.rows.num_regions, region))
        return self.rows.num_regions

    def object_seq(self, of_image: Key, identity: Key) -> int | None:
        if identity is None:
            return None
        query = "SELECT region_seq FROM objects WHERE image_key = ? AND object_id = ?"
        row = self.spool.database.execute(query, (of_image, identity)).fetchone()
        return None if row is None else int(row[0])

    def is_known(self, of_image: Key) -> bool:
        query = "SELECT 1 FROM known_images WHERE image_key = ?"
        return of_image is not None and self.spool.database.execute(query, (of_image,)).fetchone() is not None

    def file_holds(self, part: str) -> bool:
        return self.file not in VISUAL_GENOME_FILES or self.file == f"{part}.json"

    def refuse_or_skip(self, number: int, row: JsonValue) -> None:
        if number > 1:
            return self.skip(number, "expected an object with image_id and a list of regions, objects or relationships")
        keys = ", ".join(list(row)[:5])[:80] if isinstance(row, dict) else str(row)[:60]
        raise InputError(
            f"{self.folder}/{self.file}, row 1: expected Visual Genome's layout, an image's id beside its list, got {keys}. "
            "Take the files as Visual Genome publishes them."
        )

    def skip(self, number: int, what: str, num_rows: int = 1) -> None:
        self.problems.skip(f"{self.file}, row {number}", what, num_rows)

    def skip_region(self, which: str, what: str) -> None:
        self.problems.skip(f"{self.file}, {which}", what)


def _files(url: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder, and the names of the annotation files to read from it."""
    names = folder_names(url)
    if names is None:
        store, name = split_url(url)
        return store.url.rstrip("/"), (name,)
    found = tuple(name for name in VISUAL_GENOME_FILES if name in names)
    if not found:
        raise InputError(
            f"{url}: expected {' or '.join(VISUAL_GENOME_FILES)} in the folder, got {', '.join(names[:5]) or 'nothing'}. "
            "Unpack Visual Genome's archives there."
        )
    return url.rstrip("/"), found


def _box(values: JsonObject) -> list[JsonValue]:
    width, height = values.get("width", values.get("w")), values.get("height", values.get("h"))
    return [values.get("x"), values.get("y"), width, height]


def _why_bad(row: JsonObject, text: str | None) -> str | None:
    """Return why a row is of no use, by the rule of every layout. text: what is said of it, if anything."""
    encoded = row_text(row)
    if encoded is None:
        return "it is nested too deeply"
    region = region_of(JoinedRow(0, "", None, 1, None, None, encoded, None), None)
    return why_unusable(LabeledRegion(region=region, category_id=None, caption=text))


def _plain_text(text: str) -> str:
    # A lone surrogate is legal in a JSON escape and has no UTF-8, which SQLite wants.
    return text.encode("utf-8", "replace").decode("utf-8")
