"""The run directory: which shards are committed, and their contents. The only state a run has.

    RUN/manifest.json         what the run was started with, written once
    RUN/shards/NNNNNN.jsonl   one shard's result, written once, closed by a footer with its hash
    RUN/labels.json, ...      made from the shards by `merge`, and can be made again
    RUN/status.json           for people and scripts; `rlabel.run.status`
    RUN/driver-NNNNNN.*       whose process drives it, while one does; `rlabel.run.lease`

Any number of processes may use one directory at once, also those of an earlier driver that still write: a shard is
written whole by put-if-absent, the first one stays, and all write the same. Knows nothing of Ray, models or time.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from rlabel.errors import RunError, StorageError, UsageError
from rlabel.records import ShardResult
from rlabel.run.manifest import Manifest, differing_fields, manifest_from_bytes, manifest_to_bytes
from rlabel.run.records_io import (
    IMAGE_LINE,
    DamagedShard,
    Footer,
    check_footer,
    checked_body,
    close_body,
    footer_from_tail,
    image_lines_end,
    result_from_bytes,
    result_to_bytes,
)
from rlabel.storage import MissingFile, Store

if TYPE_CHECKING:
    from rlabel.run.merge import MergeCounts

MANIFEST = "manifest.json"
SHARDS = "shards"
_SHARD_NAME = re.compile(r"([0-9]{6,})\.jsonl")
_TAIL_BYTES = 16 * 1024
_CHUNK_BYTES = 1 << 20
_MANIFEST_BYTES, _READ_AT_ONCE_BYTES = 64 << 20, 64 << 20
# Shards read ahead of the one in use: reading waits for a disk or a network, and neither it nor hashing holds the interpreter.
_READERS, _READ_AHEAD = 2, 4


class RunDirectory:
    """An opened run. Cheap to pickle: it holds the store's URL and the manifest."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest

    @classmethod
    def create_or_resume(cls, store: Store, manifest: Manifest) -> RunDirectory:
        """Return the run of this manifest in the store, begun now or begun earlier.

        Raises UsageError, with nothing touched, when the folder holds a run with other settings (each differing field
        is named) or files that are no run; RunError when its manifest is damaged.
        """
        existing = _manifest_or_none(store)
        if existing is None:
            names = [name for name in store.list() if not name.startswith(".")]
            # Another driver may have begun the same run a moment ago, so look once more before refusing.
            existing = _manifest_or_none(store) if names else None
            if names and existing is None:
                raise UsageError(
                    f"{store.join('')}: expected an empty folder or an earlier run, got other files "
                    f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) and no {MANIFEST}. "
                    "Give another --out, or move those files away."
                )
        if existing is None and not store.put_if_absent(MANIFEST, manifest_to_bytes(manifest)):
            existing = _manifest_or_none(store)
        if existing is not None and existing.fingerprint != manifest.fingerprint:
            raise UsageError(_refusal(store, existing, manifest))
        return cls(store, manifest)

    @classmethod
    def open(cls, store: Store) -> RunDirectory:
        """Return an existing run, to be read or merged.

        Raises UsageError when there is none, RunError when its manifest is damaged.
        """
        manifest = _manifest_or_none(store)
        if manifest is None:
            raise UsageError(
                f"{store.join('')}: expected a run directory, got no {MANIFEST} in it. "
                "Give the --out of an earlier `rlabel label`."
            )
        return cls(store, manifest)

    @cached_property
    def fingerprint(self) -> str:
        """The manifest's fingerprint, which every shard's footer repeats."""
        return self.manifest.fingerprint

    @property
    def num_shards(self) -> int:
        return self.manifest.plan.num_shards

    def shard_path(self, index: int) -> str:
        return f"{SHARDS}/{index:06d}.jsonl"

    def committed(self) -> set[int]:
        """Return the indexes of all committed shards, from one fresh listing."""
        matches = (_SHARD_NAME.fullmatch(name) for name in self.store.list(SHARDS))
        # Not 0000007.jsonl, which is shard 7 to nobody.
        indexes = {int(match[1]) for match in matches if match and match[1] == f"{int(match[1]):06d}"}
        return {index for index in indexes if index < self.num_shards}

    def is_committed(self, index: int) -> bool:
        return self.store.exists(self.shard_path(index))

    def commit(self, result: ShardResult) -> bool:
        """Write a shard's result unless one is there. True if it was written by this call, False if it was there.

        Raises StorageError when it cannot be written; then there is no file of that shard, and it may be tried again.
        """
        if not 0 <= result.index < self.num_shards:
            raise RunError(f"shard {result.index}: expected an index below {self.num_shards}. This is a bug in rlabel.")
        return self.store.put_if_absent(self.shard_path(result.index), result_to_bytes(result, self.fingerprint))

    def read(self, index: int) -> ShardResult:
        """Return a committed shard's result, every byte checked.

        Raises RunError naming the file when it is missing or damaged.
        """
        try:
            return result_from_bytes(self._shard_bytes(index), index, self.fingerprint)
        except DamagedShard as damage:
            raise self.damaged(index, damage) from damage

    def results(self) -> Iterator[ShardResult]:
        """Yield every committed shard's result in shard order, one at a time in memory. Raises as `read`."""
        for index in sorted(self.committed()):
            yield self.read(index)

    def read_ends(self, index: int) -> tuple[bytes, Footer]:
        """Return a committed shard's first lines, those of its images, and its footer, without reading or checking the rest.

        What is in the lines is checked by nothing: `read_body` later tells whether they are as committed. Raises as `read`.
        """
        try:
            with self.store.open_read(self.shard_path(index)) as stream:
                footer = self._footer(stream, index)
                stream.seek(0)
                head, at = b"", 0
                while more := stream.read(max(_TAIL_BYTES, len(head))):
                    head += more
                    at = image_lines_end(head, at)
                    if not IMAGE_LINE.startswith(head[at : at + len(IMAGE_LINE)]):
                        break
        except MissingFile as error:
            raise self._missing(index) from error
        except DamagedShard as damage:
            raise self.damaged(index, damage) from damage
        return head[:at], footer

    def read_body(self, index: int) -> tuple[bytes, Footer]:
        """Return the lines of a committed shard without its footer, and the footer, every byte checked. Raises as `read`."""
        try:
            return checked_body(self._shard_bytes(index), index, self.fingerprint)
        except DamagedShard as damage:
            raise self.damaged(index, damage) from damage

    def read_bodies(self, indexes: Iterable[int]) -> Iterator[tuple[int, tuple[bytes, Footer]]]:
        """Yield each of these shards, in order, as `read_body` gives it, the next ones being read meanwhile. Raises as `read`."""
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        waiting: deque[tuple[int, Future[tuple[bytes, Footer]]]] = deque()
        try:
            for index in indexes:
                waiting.append((index, pool.submit(self.read_body, index)))
                if len(waiting) > _READ_AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def commit_body(self, body: bytes, footer: Footer) -> bool:
        """Write a shard from its lines, as `commit` does; the footer's fingerprint, rows and hash are set here."""
        own = replace(footer, fingerprint=self.fingerprint)
        return self.store.put_if_absent(self.shard_path(own.shard), close_body(body, own))

    def read_footer(self, index: int) -> Footer:
        """Return a committed shard's footer, reading only the end of its file. Raises as `read`."""
        path = self.shard_path(index)
        try:
            with self.store.open_read(path) as stream:
                return self._footer(stream, index)
        except MissingFile as error:
            raise self._missing(index) from error
        except DamagedShard as damage:
            raise self.damaged(index, damage) from damage

    def damage_of(self, index: int) -> DamagedShard | None:
        """Return what is wrong with a committed shard, None if every byte is as committed; in flat memory, however long the file.

        Raises MissingFile when it is gone, StorageError when it cannot be read now.
        """
        with self.store.open_read(self.shard_path(index)) as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            tail = stream.read(_TAIL_BYTES)
            try:
                footer = footer_from_tail(tail)
                check_footer(footer, index, self.fingerprint)
            except DamagedShard as damage:
                return damage
            left = size - len(tail) + tail.rfind(b"\n", 0, len(tail) - 1) + 1
            stream.seek(0)
            digest, rows = hashlib.sha256(), 0
            while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                rows += chunk.count(b"\n")
                left -= len(chunk)
        if (rows, digest.hexdigest()) != (footer.rows, footer.sha256):
            return DamagedShard(
                f"expected {footer.rows} rows with the content hash {footer.sha256} of its footer, got {rows} with {digest.hexdigest()}"
            )
        return None

    def merge(self, *, partial: bool = False, results_files: bool = False) -> MergeCounts:
        """Make labels.json, abstained.jsonl and failures.jsonl from the shards; see `rlabel.run.merge.merge_run`."""
        from rlabel.run.merge import merge_run

        return merge_run(self, partial=partial, results_files=results_files)

    def tidy(self) -> None:
        """Remove what killed writers left half-written. Call it when every shard is there: a late writer whose file goes has lost nothing then."""
        try:
            self.store.remove_leftovers(SHARDS)
            self.store.remove_leftovers()
        except StorageError:
            return  # listings hide what stays

    def _footer(self, stream: BinaryIO, index: int) -> Footer:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL_BYTES))
        footer = footer_from_tail(stream.read())
        check_footer(footer, index, self.fingerprint)
        return footer

    def _shard_bytes(self, index: int) -> bytes:
        path = self.shard_path(index)
        try:
            data = self.store.read_start(path, _READ_AT_ONCE_BYTES + 1)
            if len(data) <= _READ_AT_ONCE_BYTES:
                return data
            # So long that it is checked in flat memory before it is held: it may be a stranger's file, or terabytes of nothing.
            if (damage := self.damage_of(index)) is not None:
                raise damage
            return self.store.read(path)
        except MissingFile as error:
            raise self._missing(index) from error

    def _missing(self, index: int) -> RunError:
        return RunError(
            f"{self.store.join(self.shard_path(index))}: shard {index} is not committed. "
            "Run the same label command again: it makes only what is missing."
        )

    def damaged(self, index: int, damage: DamagedShard) -> RunError:
        """Return the error that names a shard's file and says what is wrong with it."""
        return RunError(
            f"{self.store.join(self.shard_path(index))}: damaged: {damage}. "
            f"`rlabel repair {self.store.url}` moves it aside (or delete it yourself); the same label command then makes this shard alone anew."
        )


def _manifest_or_none(store: Store) -> Manifest | None:
    try:
        data = store.read_start(MANIFEST, _MANIFEST_BYTES + 1)
    except MissingFile:
        return None
    if len(data) > _MANIFEST_BYTES:
        raise RunError(
            f"{store.join(MANIFEST)}: expected a manifest of at most {_MANIFEST_BYTES} bytes, got a longer file, which no rlabel wrote. "
            "Give another --out."
        )
    return manifest_from_bytes(data, store.join(MANIFEST))


def _refusal(store: Store, old: Manifest, new: Manifest) -> str:
    fields = differing_fields(old, new)
    if (task := [line for line in fields if line.startswith("settings.task: ")]) and len(fields) > 1:
        fields = [*task, f"and {len(fields) - 1} others, as runs of two tasks do"]
    lines = "".join(f"\n  {line}" for line in fields)
    return (
        f"{store.join('')}: holds a run with other settings; continuing it would mix two kinds of labels. "
        f"These differ (there -> now):{lines}\nGive another --out, or the settings of that run."
    )
