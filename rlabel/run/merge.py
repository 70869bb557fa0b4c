"""Makes the files people read from the committed shards: the same bytes whoever committed what, in whatever order.

Streams: a few shards are in memory at a time, however long the run. Every shard is checked before a line of it is used.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

from rlabel.errors import RunError
from rlabel.records import (
    Abstention,
    Caption,
    Failure,
    JsonObject,
    JsonValue,
    Label,
    Outcome,
    QueryFailure,
    Referral,
    Relation,
)
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.run.coco import (
    abstention_to_line,
    caption_to_annotation,
    failure_to_line,
    info_object,
    kept_header,
    label_to_annotation,
    label_to_result,
    referral_to_row,
    relation_to_row,
)
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import Manifest
from rlabel.run.merge_lines import abstention_row, caption_row, image_row, label_row
from rlabel.run.records_io import IMAGE_LINE, DamagedShard, Footer, image_lines_end, line_to_outcome

LABELS, ABSTAINED, FAILURES = "labels.json", "abstained.jsonl", "failures.jsonl"
BBOX_RESULTS, SEGM_RESULTS = "labels.bbox.json", "labels.segm.json"
_IMAGES = "images"
# The file of each task, and the name of the list of its records.
_FILES = {
    "classify": (LABELS, "annotations"),
    "caption": ("captions.json", "annotations"),
    "describe": ("captions.json", "annotations"),
    "relate": ("relations.json", "relations"),
    "refer": ("referred.json", "referrals"),
}
_RUN_ID_LENGTH = 12
_CHUNK_BYTES = 1 << 20
_IMAGE_START = IMAGE_LINE.decode()
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCounts:
    """What a merge wrote. labels + abstentions + failures == regions.

    labels: kept answers of whatever task; regions: all that was asked about (regions, pairs or expressions).
    without_segm_result: labels missing from labels.segm.json since their mask cannot be drawn from what is on record.
    """

    images: int
    regions: int
    labels: int
    abstentions: int
    failures: int
    failures_by_kind: dict[str, int] = field(default_factory=dict)
    without_segm_result: int = 0


def answers_file(manifest: Manifest) -> str:
    """Return the name of the file that holds a run's answers: labels.json, captions.json, relations.json or referred.json."""
    return _FILES[manifest.task][0]


def merge_run(run: RunDirectory, *, partial: bool = False, results_files: bool = False) -> MergeCounts:
    """Write labels.json (or what the run's task gives), abstained.jsonl and failures.jsonl of a run and return what is in them.

    partial: merge what is committed so far; without it a missing shard is an error.
    results_files: also write labels.bbox.json and labels.segm.json, the detection results that loadRes reads
    (pycocotools cannot load an empty one). The answers are put last: where they are there, the others are too.

    Raises RunError naming the file when a shard is missing or damaged, StorageError when a file cannot be written.
    """
    indexes = _indexes(run, partial)
    with ExitStack() as stack:
        # Beside the run where it is local: /tmp may be small, or memory.
        folder = run.store.local_path("")
        spools: dict[str, IO[bytes]] = {
            name: stack.enter_context(tempfile.TemporaryFile(prefix=".rlabel-tmp-", dir=folder))
            for name in (_IMAGES, ABSTAINED, FAILURES, *((BBOX_RESULTS, SEGM_RESULTS) if results_files else ()))
        }
        merge = _Merge(run, indexes, spools)
        run.store.put_stream(answers_file(run.manifest), merge.chunks())
    return merge.counts()


def _indexes(run: RunDirectory, partial: bool) -> list[int]:
    committed = run.committed()
    missing = run.num_shards - len(committed)
    if missing and not partial:
        first = next(index for index in range(run.num_shards) if index not in committed)
        raise RunError(
            f"{run.store.join('')}: expected {run.num_shards} committed shards, got {len(committed)}; the first "
            f"missing one is {first}. Run the same label command again to make the other {missing}."
        )
    return sorted(committed)


class _Merge:
    """One pass over the ends of all shards, for their images and the largest id, then one over all of each shard."""

    def __init__(self, run: RunDirectory, indexes: list[int], spools: dict[str, IO[bytes]]) -> None:
        self.run, self.indexes, self.spools = run, indexes, spools
        self.run_id = run.fingerprint[:_RUN_ID_LENGTH]
        self.results = _Results(spools) if BBOX_RESULTS in spools else None
        self.head_digests: list[bytes] = []
        self.next_new_id = 1
        self.num_images = self.num_answers = self.num_abstentions = 0
        self.failures: Counter[str] = Counter()

    def counts(self) -> MergeCounts:
        return MergeCounts(
            images=self.num_images,
            regions=self.num_answers + self.num_abstentions + self.failures.total(),
            labels=self.num_answers,
            abstentions=self.num_abstentions,
            failures=self.failures.total(),
            failures_by_kind=dict(sorted(self.failures.items())),
            without_segm_result=0 if self.results is None else self.results.num_without_segm,
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the file of answers. Before its end all others are put."""
        manifest = self.run.manifest
        head = [b'{"info":' + canonical_bytes(info_object(manifest))]
        head += [
            b",\n" + canonical_bytes(key) + b":" + canonical_bytes(value)
            for key, value in sorted(kept_header(manifest).items())
        ]
        if manifest.task == "classify":
            names = [canonical_bytes(json_safe(row)) for row in manifest.categories]
            head.append(b',\n"categories":[' + b",".join(b"\n" + row for row in names) + b"]")
        yield b"".join(head)
        yield b',\n"images":['
        self._spool_images()
        yield from _chunks(self.spools[_IMAGES])
        yield b"],\n" + canonical_bytes(_FILES[manifest.task][1]) + b":["
        bodies = self.run.read_bodies(self.indexes)
        for (index, (body, footer)), digest in zip(bodies, self.head_digests, strict=True):
            before = self.num_answers
            rows = self._answer_rows(index, body, footer, digest)
            if rows:
                yield ((",\n" if before else "\n") + ",\n".join(rows)).encode()
        if self.results is not None:
            self.results.close()
        for name, spool in self.spools.items():
            if name != _IMAGES:
                self.run.store.put_stream(name, _chunks(spool))
        yield b"\n]}\n" if self.num_answers else b"]}\n"

    def _spool_images(self) -> None:
        """Write every image row verbatim, in order, and find the largest id that is kept."""
        out, is_first = self.spools[_IMAGES], True
        for index in self.indexes:
            head, footer = self.run.read_ends(index)
            try:
                rows = [image_row(line) for line in head.split(b"\n")[:-1]]
            except _UNREADABLE as error:
                self.run.read_body(index)  # where its bytes are not those that were committed, that is what is wrong
                raise self._unreadable(index, error) from error
            if rows:
                out.write((b"\n" if is_first else b",\n") + b",\n".join(rows))
                is_first = False
            self.head_digests.append(hashlib.sha256(head).digest())
            self.next_new_id = max(self.next_new_id, footer.largest_annotation_id + 1)

    def _answer_rows(self, index: int, body: bytes, footer: Footer, head_digest: bytes) -> list[str]:
        """Return the rows of a shard's answers; what became of its other regions goes to the spools.

        Raises RunError where a line is no record, or the images are not those that were spooled.
        """
        try:
            shard = _Shard(body)
            if hashlib.sha256(body[: image_lines_end(body)]).digest() != head_digest:
                raise DamagedShard("it changed while the run was merged")
            rows = [row for line in shard.outcome_lines if (row := self._answer_row(line, shard)) is not None]
            if (len(shard.image_lines), len(shard.outcome_lines)) != (footer.images, footer.regions):
                raise DamagedShard(
                    f"its footer counts {footer.images} images and {footer.regions} regions, not what it holds"
                )
        except DamagedShard as damage:
            raise self.run.damaged(index, damage) from damage
        except _UNREADABLE as error:
            raise self._unreadable(index, error) from error
        self.num_images += len(shard.image_lines)
        self.num_answers += len(rows)
        return rows

    def _answer_row(self, line: str, shard: _Shard) -> str | None:
        """Return the row of a line's answer; None for an abstention or a failure, which is written to its spool."""
        if self.results is not None:
            outcome = line_to_outcome(line)
            if isinstance(outcome, Label):
                self.results.write(outcome, shard.images)
        try:
            moved = label_row(line, self.next_new_id, self.run_id) or caption_row(line, self.next_new_id, self.run_id)
            if moved is not None:
                row, has_own_id = moved
                self.next_new_id += not has_own_id
                return row
            abstained = abstention_row(line, shard.file_name_text)
        except ValueError:  # a number that JSON does not have, in a key of the input: records say what becomes of it
            abstained = None
        if abstained is None:
            return self._row_of_record(line_to_outcome(line), shard)
        self.num_abstentions += 1
        self.spools[ABSTAINED].write(abstained.encode() + b"\n")
        return None

    def _row_of_record(self, outcome: Outcome, shard: _Shard) -> str | None:
        if isinstance(outcome, Abstention):
            row = canonical_bytes(abstention_to_line(outcome, shard.file_name(outcome.image_id)))
            self.spools[ABSTAINED].write(row + b"\n")
            self.num_abstentions += 1
            return None
        if isinstance(outcome, Failure | QueryFailure):
            row = canonical_bytes(failure_to_line(outcome, shard.file_name(outcome.image_id)))
            self.spools[FAILURES].write(row + b"\n")
            self.failures[outcome.kind] += 1
            return None
        row_id = outcome.region.annotation_id if isinstance(outcome, Label | Caption) else None
        if row_id is None:
            row_id, self.next_new_id = self.next_new_id, self.next_new_id + 1
        return canonical_bytes(_record_row(outcome, row_id, self.run_id)).decode()

    def _unreadable(self, index: int, error: Exception) -> RunError:
        return self.run.damaged(index, DamagedShard(f"a record cannot be read ({type(error).__name__}: {error})"))


def _record_row(outcome: Label | Caption | Relation | Referral, row_id: int, run_id: str) -> JsonObject:
    if isinstance(outcome, Label):
        return label_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Caption):
        return caption_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Relation):
        return relation_to_row(outcome, row_id, run_id)
    return referral_to_row(outcome, row_id, run_id)


class _Shard:
    """The lines of a checked shard body. Its image rows are parsed only where a name or a size is asked for."""

    def __init__(self, body: bytes) -> None:
        lines = body.decode("utf-8").split("\n")[:-1]
        self.image_lines = [line for line in lines if line.startswith(_IMAGE_START)]
        self.outcome_lines = [line for line in lines if not line.startswith(_IMAGE_START)]

    @cached_property
    def images(self) -> list[JsonObject]:
        return [json.loads(line)["row"] for line in self.image_lines]

    @cached_property
    def _file_names(self) -> dict[str, JsonValue]:
        """Each image's file name by its id as JSON text (an id of a bad row may be anything, also a list).

        An id that several rows of the shard share names no one file; the reason of the failure does.
        """
        names: dict[str, JsonValue] = {}
        for row in self.images:
            key = canonical_bytes(row.get("id")).decode()
            names[key] = None if key in names else row.get("file_name")
        return names

    def file_name(self, image_id: JsonValue) -> JsonValue:
        return self._file_names.get(canonical_bytes(json_safe(image_id)).decode())

    def file_name_text(self, image_id: str) -> str:
        """Return the canonical JSON of the name of the image whose id has this canonical JSON."""
        return canonical_bytes(self._file_names.get(image_id)).decode()


class _Rows:
    """Writes the items of a JSON array, one a line, so that a person can grep them."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.num_rows = 0

    def write(self, row: JsonObject) -> None:
        self._out.write((b",\n" if self.num_rows else b"\n") + canonical_bytes(row))
        self.num_rows += 1


class _Results:
    """Writes the two results files side by side."""

    def __init__(self, spools: dict[str, IO[bytes]]) -> None:
        self._spools = (spools[BBOX_RESULTS], spools[SEGM_RESULTS])
        for spool in self._spools:
            spool.write(b"[")
        self._bbox, self._segm = _Rows(spools[BBOX_RESULTS]), _Rows(spools[SEGM_RESULTS])
        self.num_without_segm = 0

    def write(self, label: Label, images: list[JsonObject]) -> None:
        self._bbox.write(label_to_result(label, "bbox", list(label.box_xywh)))
        rle = _compressed_rle(label, images)
        if rle is None:
            self.num_without_segm += 1
        else:
            self._segm.write(label_to_result(label, "segmentation", rle))

    def close(self) -> None:
        for spool in self._spools:
            spool.write(b"\n]\n")


def _compressed_rle(label: Label, images: list[JsonObject]) -> JsonValue:
    """Return the label's mask as compressed RLE (loadRes takes no other form), or None if it cannot be drawn.

    Polygons and boxes are drawn at the size that the image row states; a row may state none.
    """
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.masks import BadRegion, mask_to_rle, rasterise

    segmentation = label.segmentation
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        return segmentation
    row = next((row for row in images if row.get("id") == label.image_id), {})
    height, width = row.get("height"), row.get("width")
    if isinstance(segmentation, dict) and isinstance(size := segmentation.get("size"), list):
        height, width = size
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    try:
        return mask_to_rle(rasterise(segmentation, label.box_xywh, height, width, Limits()).mask_HW)
    except BadRegion:
        return None


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
