"""Makes the files people read from the committed shards: the same bytes whoever committed what, in whatever order.

Streams: one shard is in memory at a time, however long the run. Every shard is checked before a line of it is used.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, TypeAlias

from rlabel.errors import RunError
from rlabel.records import (
    Abstention,
    Caption,
    Failure,
    JsonObject,
    JsonValue,
    Label,
    QueryFailure,
    Referral,
    Relation,
    ShardResult,
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

LABELS, ABSTAINED, FAILURES = "labels.json", "abstained.jsonl", "failures.jsonl"
BBOX_RESULTS, SEGM_RESULTS = "labels.bbox.json", "labels.segm.json"
# The file of each task, and the name of the list of its records.
_FILES = {
    "classify": (LABELS, "annotations"),
    "caption": ("captions.json", "annotations"),
    "describe": ("captions.json", "annotations"),
    "relate": ("relations.json", "relations"),
    "refer": ("referred.json", "referrals"),
}
_RUN_ID_LENGTH = 12
_CHUNK_BYTES = 1 << 16


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
    next_new_id = 1 + max((run.read_footer(index).largest_annotation_id for index in indexes), default=0)
    answers = answers_file(run.manifest)
    with ExitStack() as stack:
        # Beside the run where it is local: /tmp may be small, or memory.
        folder = run.store.local_path("")
        spools: dict[str, IO[bytes]] = {
            name: stack.enter_context(tempfile.TemporaryFile(prefix=".rlabel-tmp-", dir=folder))
            for name in (ABSTAINED, FAILURES, *((BBOX_RESULTS, SEGM_RESULTS) if results_files else ()), answers)
        }
        _write_head(spools[answers], run, indexes)
        counts = _write_outcomes(spools, run, indexes, next_new_id)
        for name, spool in spools.items():
            run.store.put_stream(name, _chunks(spool))
    return counts


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


def _write_head(out: IO[bytes], run: RunDirectory, indexes: list[int]) -> None:
    """Write the file of answers up to the first of them: header, categories of labels, and every image row verbatim, in order."""
    manifest = run.manifest
    out.write(b'{"info":' + canonical_bytes(info_object(manifest)))
    for key, value in sorted(kept_header(manifest).items()):
        out.write(b",\n" + canonical_bytes(key) + b":" + canonical_bytes(value))
    task = manifest.task
    if task == "classify":
        out.write(b',\n"categories":[')
        _write_rows(out, (canonical_bytes(json_safe(row)) for row in manifest.categories))
        out.write(b"]")
    out.write(b',\n"images":[')
    _write_rows(out, (canonical_bytes(row) for index in indexes for row in run.read_image_rows(index)))
    out.write(b"],\n" + canonical_bytes(_FILES[task][1]) + b":[")


def _write_outcomes(
    spools: dict[str, IO[bytes]], run: RunDirectory, indexes: list[int], next_new_id: int
) -> MergeCounts:
    answers_out = spools[answers_file(run.manifest)]
    answers, run_id = _Rows(answers_out), run.fingerprint[:_RUN_ID_LENGTH]
    results = _Results(spools) if BBOX_RESULTS in spools else None
    num_images = num_abstentions = 0
    failures: Counter[str] = Counter()
    for result in (run.read(index) for index in indexes):
        num_images += len(result.images)
        file_names = _file_names(result)
        for outcome in result.outcomes:
            if isinstance(outcome, Abstention):
                num_abstentions += 1
                file_name = file_names.get(canonical_bytes(json_safe(outcome.image_id)))
                spools[ABSTAINED].write(canonical_bytes(abstention_to_line(outcome, file_name)) + b"\n")
            elif isinstance(outcome, Failure | QueryFailure):
                failures[outcome.kind] += 1
                file_name = file_names.get(canonical_bytes(json_safe(outcome.image_id)))
                spools[FAILURES].write(canonical_bytes(failure_to_line(outcome, file_name)) + b"\n")
            else:
                row_id = _own_id(outcome)
                if row_id is None:
                    row_id, next_new_id = next_new_id, next_new_id + 1
                answers.write(_answer_row(outcome, row_id, run_id))
                if results is not None and isinstance(outcome, Label):
                    results.write(outcome, result)
    answers_out.write(b"\n]}\n" if answers.num_rows else b"]}\n")
    if results is not None:
        results.close()
    return MergeCounts(
        images=num_images,
        regions=answers.num_rows + num_abstentions + failures.total(),
        labels=answers.num_rows,
        abstentions=num_abstentions,
        failures=failures.total(),
        failures_by_kind=dict(sorted(failures.items())),
        without_segm_result=0 if results is None else results.num_without_segm,
    )


_Answer: TypeAlias = "Label | Caption | Relation | Referral"


def _own_id(outcome: _Answer) -> int | None:
    """Return the id that a record keeps from the input; None where it is given one in the order of the records."""
    return outcome.region.annotation_id if isinstance(outcome, Label | Caption) else None


def _answer_row(outcome: _Answer, row_id: int, run_id: str) -> JsonObject:
    if isinstance(outcome, Label):
        return label_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Caption):
        return caption_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Relation):
        return relation_to_row(outcome, row_id, run_id)
    return referral_to_row(outcome, row_id, run_id)


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

    def write(self, label: Label, result: ShardResult) -> None:
        self._bbox.write(label_to_result(label, "bbox", list(label.box_xywh)))
        rle = _compressed_rle(label, result)
        if rle is None:
            self.num_without_segm += 1
        else:
            self._segm.write(label_to_result(label, "segmentation", rle))

    def close(self) -> None:
        for spool in self._spools:
            spool.write(b"\n]\n")


def _compressed_rle(label: Label, result: ShardResult) -> JsonValue:
    """Return the label's mask as compressed RLE (loadRes takes no other form), or None if it cannot be drawn.

    Polygons and boxes are drawn at the size that the image row states; a row may state none.
    """
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.masks import BadRegion, mask_to_rle, rasterise

    segmentation = label.segmentation
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        return segmentation
    row = next((row for row in result.images if row.get("id") == label.image_id), {})
    height, width = row.get("height"), row.get("width")
    if isinstance(segmentation, dict) and isinstance(size := segmentation.get("size"), list):
        height, width = size
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    try:
        return mask_to_rle(rasterise(segmentation, label.box_xywh, height, width, Limits()).mask_HW)
    except BadRegion:
        return None


def _file_names(result: ShardResult) -> dict[bytes, JsonValue]:
    """Return each image's file name by its id as JSON text (an id of a bad row may be anything, also a list).

    An id that several rows of the shard share names no one file; the reason of the failure does.
    """
    names: dict[bytes, JsonValue] = {}
    for row in result.images:
        key = canonical_bytes(row.get("id"))
        names[key] = None if key in names else row.get("file_name")
    return names


def _write_rows(out: IO[bytes], rows: Iterable[bytes]) -> None:
    for number, row in enumerate(rows):
        out.write((b",\n" if number else b"\n") + row)


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
