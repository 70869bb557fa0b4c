"""What one shard gives to the files that a merge makes: the rows of its answers and of what became of its other regions.

A pure function of the shard and of the first new id, so that it may run in another process than the merge.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rlabel.errors import RunError
from rlabel.records import (
    Abstention,
    Caption,
    Failure,
    JsonObject,
    JsonValue,
    Label,
    Outcome,
    Proposals,
    QueryFailure,
    Referral,
    Relation,
)
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.run.coco import (
    abstention_to_line,
    caption_to_annotation,
    failure_to_line,
    label_to_annotation,
    label_to_result,
    referral_to_row,
    relation_to_row,
)
from rlabel.run.directory import RunDirectory
from rlabel.run.merge_lines import abstention_row, caption_row, label_row
from rlabel.run.records_io import IMAGE_LINE, DamagedShard, image_lines_end, line_to_outcome

_IMAGE_START = IMAGE_LINE.decode()
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(slots=True, kw_only=True)
class ShardRows:
    """The rows of a shard. first_new_id: of the rows whose region has no id, which count up from it; num_new_ids: how many those are.

    answers: joined by commas and line ends. abstained, failures: lines, with their ends.
    bbox_results, segm_results: rows of the results files, where they are wanted; num_without_segm: labels that have none there.
    """

    first_new_id: int
    num_new_ids: int = 0
    num_images: int = 0
    num_answers: int = 0
    num_abstentions: int = 0
    failures_by_kind: Counter[str] = field(default_factory=Counter)
    answers: bytes = b""
    abstained: bytes = b""
    failures: bytes = b""
    bbox_results: list[bytes] = field(default_factory=list)
    segm_results: list[bytes] = field(default_factory=list)
    num_without_segm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardToRows:
    """Makes a shard's rows. run_id: as `coco.label_to_annotation` takes it. with_results: also those of the results files."""

    run_id: str
    with_results: bool = False

    def __call__(self, shard: tuple[bytes, int]) -> ShardRows:
        """Return the rows of a shard body (checked lines without the footer), given with the first new id.

        Raises one of UNREADABLE where a line is no record.
        """
        body, first_new_id = shard
        work = _Work(self, body, first_new_id)
        return work.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenShard:
    """What was seen of a shard by a look at its ends. head_sha256: of the lines of its images. num_answers: as its footer says."""

    index: int
    head_sha256: bytes
    num_answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsToRows:
    """Reads shards of a run, in order, every byte checked, and makes their rows. with_results: as of `ShardToRows`."""

    run: RunDirectory
    to_rows: ShardToRows

    def __call__(self, shards: tuple[Sequence[SeenShard], int]) -> list[ShardRows]:
        """Return what `each` yields for shards, given with the first new id."""
        return list(self.each(*shards))

    def each(self, shards: Sequence[SeenShard], first_new_id: int) -> Iterator[ShardRows]:
        """Yield the rows of each shard; new ids count up from the first through all of them.

        Raises RunError where a line is no record, or a shard is not what was seen of it.
        """
        for seen, (index, (body, footer)) in zip(
            shards, self.run.read_bodies(seen.index for seen in shards), strict=True
        ):
            try:
                if hashlib.sha256(body[: image_lines_end(body)]).digest() != seen.head_sha256:
                    raise DamagedShard("it changed while the run was merged")
                rows = self.to_rows((body, first_new_id))
                regions = rows.num_answers + rows.num_abstentions + rows.failures_by_kind.total()
                if (rows.num_images, regions) != (footer.images, footer.regions):
                    raise DamagedShard(
                        f"its footer counts {footer.images} images and {footer.regions} regions, not what it holds"
                    )
            except DamagedShard as damage:
                raise self.run.damaged(index, damage) from damage
            except UNREADABLE as error:
                raise unreadable(self.run, index, error) from error
            first_new_id += rows.num_new_ids
            yield rows


def unreadable(run: RunDirectory, index: int, error: Exception) -> RunError:
    """Return the error that names a shard in which a line is no record."""
    return run.damaged(index, DamagedShard(f"a record cannot be read ({type(error).__name__}: {error})"))


class _Work:
    """One shard's rows in the making. Its image rows are parsed only where a name or a size is asked for."""

    def __init__(self, how: ShardToRows, body: bytes, first_new_id: int) -> None:
        self.run_id = how.run_id
        lines = body.decode("utf-8").split("\n")[:-1]
        self.image_lines = [line for line in lines if line.startswith(_IMAGE_START)]
        self.rows = ShardRows(
            first_new_id=first_new_id,
            num_images=len(self.image_lines),
        )
        self.next_new_id = first_new_id
        self.abstained: list[bytes] = []
        self.failures: list[bytes] = []
        answers: list[str] = []
        for line in lines:
            if line.startswith(_IMAGE_START):
                continue
            if how.with_results:
                self._add_results(line_to_outcome(line))
            row = self._answer_row(line)
            if row is not None:
                answers.append(row)
        rows = self.rows
        rows.num_new_ids, rows.num_answers = self.next_new_id - first_new_id, len(answers)
        rows.answers = ",\n".join(answers).encode()
        rows.abstained, rows.failures = b"".join(self.abstained), b"".join(self.failures)

    def _answer_row(self, line: str) -> str | None:
        """Return the row of a line's answer; None for an abstention or a failure, which is kept apart."""
        try:
            moved = label_row(line, self.next_new_id, self.run_id) or caption_row(line, self.next_new_id, self.run_id)
            if moved is not None:
                row, has_own_id = moved
                self.next_new_id += not has_own_id
                return row
            abstained = abstention_row(line, self._file_name_text)
        except ValueError:  # a number that JSON does not have, in a key of the input: records say what becomes of it
            abstained = None
        if abstained is None:
            return self._row_of_record(line_to_outcome(line))
        self.rows.num_abstentions += 1
        self.abstained.append(abstained.encode() + b"\n")
        return None

    def _row_of_record(self, outcome: Outcome) -> str | None:
        if isinstance(outcome, Abstention):
            row = canonical_bytes(abstention_to_line(outcome, self._file_name(outcome.image_id)))
            self.abstained.append(row + b"\n")
            self.rows.num_abstentions += 1
            return None
        if isinstance(outcome, Failure | QueryFailure):
            row = canonical_bytes(failure_to_line(outcome, self._file_name(outcome.image_id)))
            self.failures.append(row + b"\n")
            self.rows.failures_by_kind[outcome.kind] += 1
            return None
        if isinstance(outcome, Proposals):
            raise TypeError("proposals are no answers")
        row_id = outcome.region.annotation_id if isinstance(outcome, Label | Caption) else None
        if row_id is None:
            row_id, self.next_new_id = self.next_new_id, self.next_new_id + 1
        return canonical_bytes(_record_row(outcome, row_id, self.run_id)).decode()

    def _add_results(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Label):
            return
        box = label_to_result(outcome, "bbox", list(outcome.box_xywh))
        self.rows.bbox_results.append(canonical_bytes(box))
        rle = _compressed_rle(outcome, self._images)
        if rle is None:
            self.rows.num_without_segm += 1
        else:
            self.rows.segm_results.append(canonical_bytes(label_to_result(outcome, "segmentation", rle)))

    @cached_property
    def _images(self) -> list[JsonObject]:
        return [json.loads(line)["row"] for line in self.image_lines]

    @cached_property
    def _file_names(self) -> dict[str, JsonValue]:
        """Each image's file name by its id as JSON text (an id of a bad row may be anything, also a list).

        An id that several rows of the shard share names no one file; the reason of the failure does.
        """
        names: dict[str, JsonValue] = {}
        for row in self._images:
            key = canonical_bytes(row.get("id")).decode()
            names[key] = None if key in names else row.get("file_name")
        return names

    def _file_name(self, image_id: JsonValue) -> JsonValue:
        return self._file_names.get(canonical_bytes(json_safe(image_id)).decode())

    def _file_name_text(self, image_id: str) -> str:
        """Return the canonical JSON of the name of the image whose id has this canonical JSON."""
        return canonical_bytes(self._file_names.get(image_id)).decode()


def _record_row(outcome: Label | Caption | Relation | Referral, row_id: int, run_id: str) -> JsonObject:
    if isinstance(outcome, Label):
        return label_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Caption):
        return caption_to_annotation(outcome, row_id, run_id)
    if isinstance(outcome, Relation):
        return relation_to_row(outcome, row_id, run_id)
    return referral_to_row(outcome, row_id, run_id)


def _compressed_rle(label: Label, images: list[JsonObject]) -> JsonValue:
    """Return the label's mask as compressed RLE (loadRes takes no other form), or None if it cannot be drawn.

    Polygons and boxes are drawn at the size that the image row states; a row may state none.
    """
    from rlabel.corpus.limits import WIDEST
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
        return mask_to_rle(rasterise(segmentation, label.box_xywh, height, width, WIDEST).mask_HW)
    except BadRegion:
        return None
