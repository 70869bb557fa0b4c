"""Makes the files people read from the committed shards: the same bytes whoever committed what, in whatever order.

Streams: a few shards are in memory at a time, however long the run. Every shard is checked before a line of it is used.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

from rlabel.errors import RunError
from rlabel.run.beside import Beside
from rlabel.run.canonical import canonical_bytes, json_safe
from rlabel.run.coco import info_object, kept_header
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import Manifest
from rlabel.run.merge_lines import image_row
from rlabel.run.merge_shard import UNREADABLE, SeenShard, ShardRows, ShardsToRows, ShardToRows, unreadable

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
    "propose": ("regions.json", "annotations"),
}
_RUN_ID_LENGTH = 12
_CHUNK_BYTES = 1 << 20
# What a process beside is sent at a time: enough that asking costs little, and little enough that some of them can be held.
_SHARDS_AT_ONCE, _ANSWERS_AT_ONCE = 8, 2048


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
    if run.manifest.task == "propose":
        from rlabel.run.proposals import merge_proposals

        return merge_proposals(run, partial=partial)[0]
    indexes = committed_indexes(run, partial)
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


def committed_indexes(run: RunDirectory, partial: bool) -> list[int]:
    """Return the indexes of the committed shards. Raises RunError where one is missing and partial is False."""
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
        to_rows = ShardToRows(run_id=run.fingerprint[:_RUN_ID_LENGTH], with_results=BBOX_RESULTS in spools)
        self.to_rows = ShardsToRows(run=run, to_rows=to_rows)
        self.seen: list[SeenShard] = []
        self.next_new_id = 1
        self.num_images = self.num_answers = self.num_abstentions = 0
        self.num_results = {BBOX_RESULTS: 0, SEGM_RESULTS: 0}
        self.num_without_segm = 0
        self.failures: Counter[str] = Counter()

    def counts(self) -> MergeCounts:
        return MergeCounts(
            images=self.num_images,
            regions=self.num_answers + self.num_abstentions + self.failures.total(),
            labels=self.num_answers,
            abstentions=self.num_abstentions,
            failures=self.failures.total(),
            failures_by_kind=dict(sorted(self.failures.items())),
            without_segm_result=self.num_without_segm,
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
        with Beside(manifest.plan.num_regions, self.run.store) as beside:
            for rows in self._shard_rows(beside):
                if rows.answers:
                    yield (b",\n" if self.num_answers else b"\n") + rows.answers
                self._take(rows)
        for name in self.num_results.keys() & self.spools.keys():
            self.spools[name].write(b"\n]\n" if self.num_results[name] else b"[\n]\n")
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
            except UNREADABLE as error:
                self.run.read_body(index)  # where its bytes are not those that were committed, that is what is wrong
                raise unreadable(self.run, index, error) from error
            if rows:
                out.write((b"\n" if is_first else b",\n") + b",\n".join(rows))
                is_first = False
            digest = hashlib.sha256(head).digest()
            self.seen.append(SeenShard(index=index, head_sha256=digest, num_answers=footer.labels))
            self.next_new_id = max(self.next_new_id, footer.largest_annotation_id + 1)

    def _shard_rows(self, beside: Beside) -> Iterator[ShardRows]:
        """Yield the rows of each shard, in order. Raises RunError as `ShardsToRows.each`."""
        if not beside.is_there:
            yield from self.to_rows.each(self.seen, self.next_new_id)
            return
        # Rows may be made before it is known how many ids the shards before them take. Mostly it is all their answers, or none;
        # where the guess was wrong, they are made again.
        guess = _NewIds(self.next_new_id)
        lots = ((lot, (lot, guess.first(lot))) for lot in _lots(self.seen))
        for lot, made in beside.map(self.to_rows, lots):
            num_new_ids = sum(rows.num_new_ids for rows in made)
            if num_new_ids and made[0].first_new_id != self.next_new_id:
                made = self.to_rows((lot, self.next_new_id))
            self.next_new_id += num_new_ids
            guess.learn(made, self.next_new_id)
            yield from made

    def _take(self, rows: ShardRows) -> None:
        """Count a shard's rows, and write to the spools what is no answer."""
        self.num_images += rows.num_images
        self.num_answers += rows.num_answers
        self.num_abstentions += rows.num_abstentions
        self.num_without_segm += rows.num_without_segm
        self.failures.update(rows.failures_by_kind)
        self.spools[ABSTAINED].write(rows.abstained)
        self.spools[FAILURES].write(rows.failures)
        for name, results in ((BBOX_RESULTS, rows.bbox_results), (SEGM_RESULTS, rows.segm_results)):
            if results:
                self.spools[name].write((b",\n" if self.num_results[name] else b"[\n") + b",\n".join(results))
                self.num_results[name] += len(results)


class _NewIds:
    """Guesses a shard's first new id while the rows of shards before it are still being made."""

    def __init__(self, next_new_id: int) -> None:
        self.known = next_new_id  # after the shards that are done
        self.ahead: deque[int] = deque()  # answers of the shards that are not
        self.all_are_new = True

    def first(self, lot: Sequence[SeenShard]) -> int:
        first = self.known + (sum(self.ahead) if self.all_are_new else 0)
        self.ahead.append(sum(seen.num_answers for seen in lot))
        return first

    def learn(self, made: Sequence[ShardRows], next_new_id: int) -> None:
        self.ahead.popleft()
        self.known = next_new_id
        if num_answers := sum(rows.num_answers for rows in made):
            self.all_are_new = sum(rows.num_new_ids for rows in made) == num_answers


def _lots(shards: Sequence[SeenShard]) -> Iterator[list[SeenShard]]:
    """Yield shards, in order, so many together that a lot is worth sending to a process and its rows are few enough to be held."""
    lot: list[SeenShard] = []
    for seen in shards:
        lot.append(seen)
        if len(lot) == _SHARDS_AT_ONCE or sum(one.num_answers for one in lot) >= _ANSWERS_AT_ONCE:
            yield lot
            lot = []
    if lot:
        yield lot


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
