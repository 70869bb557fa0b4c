"""A run that finds regions: its pictures listed and planned, and regions.json made from its shards.

A run like any other, with one outcome a picture: shards are committed by put-if-absent and bound to the manifest, so that it can be stopped and
gone on with, by one process or many.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

import rlabel
from rlabel.config import LabelSettings
from rlabel.corpus.coco import read_corpus
from rlabel.corpus.rows import canonical_text, image_record
from rlabel.corpus.sharding import content_sha256
from rlabel.errors import InputError, UsageError
from rlabel.pool_settings import PoolSettings
from rlabel.proposing.models import ProposerPlan, looks_for_names, plan_proposer
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import Failure, ImageRecord, JsonObject, Proposals, Region, Shard
from rlabel.run.canonical import canonical_bytes, canonical_sha256, json_safe
from rlabel.run.coco import failure_to_line, info_object
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import CorpusSummary, Manifest, plan_summary
from rlabel.run.merge import FAILURES, MergeCounts, committed_indexes
from rlabel.storage import Store

REGIONS = "regions.json"
_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".avif"}
)
_DEEPEST = 16
_MOST_A_SHARD = 4096
_MOST_OTHERS = 10_000  # that are remembered, to be told
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeJob:
    """A planned job. records: its pictures, each with one region that stands for the whole of it. others: files of the folder that are left out."""

    settings: ProposeSettings
    proposer: ProposerPlan
    records: tuple[ImageRecord, ...]
    manifest: Manifest
    others: tuple[str, ...] = ()

    def shards(self) -> Iterator[Shard]:
        """Return the shards of the plan one at a time, the same at every call."""
        return shards_of(self.records, self.settings.images_per_shard)


def settings_of_proposals(label: LabelSettings) -> ProposeSettings:
    """Return the settings of the run that finds the regions for `rlabel label --propose`.

    What both have is the label run's; --min-score is not: it is of labels. Raises UsageError where the regions would lie among the pictures.
    """
    assert label.propose is not None
    names = (*PoolSettings.model_fields, "images", "limit", "dtype")
    settings = ProposeSettings(
        **{name: getattr(label, name) for name in names},
        out=label.proposals_out,
        images_per_shard=min(label.images_per_shard, _MOST_A_SHARD),
        proposer=label.propose,
        max_per_image=label.max_proposals,
        vocabulary=label.vocabulary if looks_for_names(label.propose) else None,
    )
    if Store.open(settings.out).url == Store.open(label.images).url:
        raise UsageError(f"--out {label.out}: its regions would lie in --images {label.images}. Give another --out.")
    return settings


def plan_proposals(settings: ProposeSettings) -> ProposeJob:
    """Return the planned job; what can be wrong with its files is found here, before a model is loaded.

    Raises InputError, UsageError or StorageError.
    """
    settings.check()
    proposer = plan_proposer(settings)
    others: list[str] = []
    records = _listed(settings) if settings.listing is not None else _found(settings.images, others)
    records = records[: settings.limit]
    plan = plan_summary(shards_of(records, settings.images_per_shard))
    rows: list[JsonObject] = [record.row for record in records]
    manifest = Manifest(
        rlabel_version=rlabel.__version__,
        settings={**settings.deciding(), **proposer.deciding},
        corpus=CorpusSummary(
            sha256=canonical_sha256([json_safe(row) for row in rows]), num_images=len(rows), num_regions=0
        ),
        plan=plan,
        categories=(),
    )
    return ProposeJob(
        settings=settings, proposer=proposer, records=tuple(records), manifest=manifest, others=tuple(others)
    )


def shards_of(records: Sequence[ImageRecord], images_per_shard: int) -> Iterator[Shard]:
    """Yield pictures as shards, in their order."""
    for index, start in enumerate(range(0, len(records), images_per_shard)):
        images = tuple(records[start : start + images_per_shard])
        yield Shard(index=index, content_sha256=content_sha256(images, ()), images=images)


def _found(images: str, others: list[str]) -> list[ImageRecord]:
    """Return a row for each picture in a folder and the folders in it, in the order of their names; ids from 1 on. others: gets the other files."""
    store = Store.open(images)
    folder = store.local_path("")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--images {images}: no such folder. Give the folder of the pictures.")
    names = sorted(_names(store, "", 0, others))
    others.sort()
    if not names:
        raise InputError(
            f"--images {images}: expected pictures ({', '.join(sorted(_SUFFIXES))}), got none in it or in the folders below. Check the path."
        )
    return [_record({"id": index, "file_name": name}) for index, name in enumerate(names, start=1)]


def _names(store: Store, folder: str, depth: int, others: list[str]) -> Iterator[str]:
    folder_is_local = store.local_path("") is not None  # elsewhere a name may be that of a folder
    for name in store.list(folder):
        path = f"{folder}/{name}" if folder else name
        if name.startswith("."):
            continue
        if "." in name and f".{name.rpartition('.')[2].lower()}" in _SUFFIXES:
            yield path
            continue
        if depth < _DEEPEST and _may_be_folder(store, path):
            yield from _names(store, path, depth + 1, others)
        elif folder_is_local and len(others) < _MOST_OTHERS:
            others.append(path)


def _may_be_folder(store: Store, path: str) -> bool:
    """Return False for what is a file, or a link to a folder: it may lead round in a circle."""
    root = store.local_path("")
    if root is None:
        return True
    place = root / path
    return place.is_dir() and not place.is_symlink()


def _listed(settings: ProposeSettings) -> list[ImageRecord]:
    assert settings.listing is not None
    with read_corpus(settings.listing) as corpus:
        records = [_record(record.row) for record in corpus.images(settings.limit)]
    if not records and settings.limit != 0:
        raise InputError(f"--listing {settings.listing}: expected rows of images, got none. Give another file.")
    return records


def _record(row: JsonObject) -> ImageRecord:
    whole = Region(key=f"picture {canonical_text(row.get('id'))}", region_id=None, annotation_id=None)
    return image_record(canonical_text(row), (whole,))


def merge_proposals(run: RunDirectory, *, partial: bool = False) -> tuple[MergeCounts, int]:
    """Write regions.json and failures.jsonl of a run and return what became of its pictures (`labels`: those that were looked at), and how
    many regions were found.

    regions.json is COCO without categories: masks as RLE or boxes alone, ids from 1 on in the order of the pictures, the best region of
    each first, with `score`, which a labeler never reads, and `proposal_score` and `proposer`, which it hands on.

    Raises RunError naming the file when a shard is missing or damaged, StorageError when a file cannot be written.
    """
    merge = _Merge(run, committed_indexes(run, partial))
    with ExitStack() as stack:
        folder = run.store.local_path("")
        annotations, failures = (
            stack.enter_context(tempfile.TemporaryFile(prefix=".rlabel-tmp-", dir=folder)) for _ in range(2)
        )
        run.store.put_stream(REGIONS, merge.chunks(annotations, failures))
    return merge.counts, merge.num_found


@dataclass(slots=True)
class _Merge:
    run: RunDirectory
    indexes: list[int]
    num_images: int = 0
    num_found: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> MergeCounts:
        failed = sum(self.failures.values())
        return MergeCounts(
            images=self.num_images,
            regions=self.num_images,
            labels=self.num_images - failed,
            abstentions=0,
            failures=failed,
            failures_by_kind=dict(sorted(self.failures.items())),
        )

    def chunks(self, annotations: IO[bytes], failures: IO[bytes]) -> Iterator[bytes]:
        """Yield regions.json; failures.jsonl is put before its end."""
        yield b'{"info":' + canonical_bytes(info_object(self.run.manifest)) + b',\n"images":['
        for index in self.indexes:
            result = self.run.read(index)
            for row, outcome in zip(result.images, result.outcomes, strict=True):
                yield (b",\n" if self.num_images else b"\n") + canonical_bytes(json_safe(row))
                self.num_images += 1
                if isinstance(outcome, Failure):
                    self.failures[outcome.kind] = self.failures.get(outcome.kind, 0) + 1
                    failures.write(canonical_bytes(failure_to_line(outcome, row.get("file_name"))) + b"\n")
                elif isinstance(outcome, Proposals):
                    self._write_found(outcome, annotations)
        self.run.store.put_stream(FAILURES, _chunks(failures))
        yield b'],\n"annotations":['
        yield from _chunks(annotations)
        yield b"\n]}\n" if self.num_found else b"]}\n"

    def _write_found(self, outcome: Proposals, annotations: IO[bytes]) -> None:
        for one in outcome.found:
            row: JsonObject = {
                "id": self.num_found + 1,
                "image_id": json_safe(outcome.image_id),
                "bbox": list(one.box_xywh),
                "area": one.area_px,
                "iscrowd": 0,
                "score": one.score,
                "proposal_score": one.score,
                "proposer": outcome.proposer,
            }
            if one.segmentation is not None:
                row["segmentation"] = one.segmentation
            annotations.write((b",\n" if self.num_found else b"\n") + canonical_bytes(row))
            self.num_found += 1


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
