"""Plans the shards of a corpus: which images go together, in file order. Knows nothing of pictures or models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from rlabel.corpus.coco import Corpus
from rlabel.corpus.rows import canonical_text
from rlabel.errors import UsageError
from rlabel.records import ImageRecord, JsonObject, Region, Shard


def plan_shards(
    corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None = None
) -> Iterator[Shard]:
    """Return the shards of a corpus one at a time: every image and region in exactly one, the same at every call.

    A shard ends at images_per_shard images, or before an image that would take it above max_regions_per_shard regions
    (an image with more is a shard of its own). Stray regions come last, in shards without images. limit: only the first
    `limit` images, no strays.

    Raises UsageError for a bound below 1.
    """
    for name, value in (("images_per_shard", images_per_shard), ("max_regions_per_shard", max_regions_per_shard)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if limit is not None and limit < 0:
        raise UsageError(f"limit must be at least 0, got {limit}")
    return _shards(corpus, images_per_shard, max_regions_per_shard, limit)


def content_sha256(images: tuple[ImageRecord, ...], stray_regions: tuple[Region, ...]) -> str:
    """Return the hex digest of a shard's content: equal only for equal image rows and regions in the same order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"image {canonical_text(image.row)}\n".encode())
        for region in image.regions:
            digest.update(f"region {canonical_text(_region_fields(region))}\n".encode())
    for region in stray_regions:
        digest.update(f"stray {canonical_text(_region_fields(region))}\n".encode())
    return digest.hexdigest()


def _region_fields(region: Region) -> JsonObject:
    return {
        "key": region.key,
        "region_id": region.region_id,
        "annotation_id": region.annotation_id,
        "segmentation": region.segmentation,
        "box_xywh": None if region.box_xywh is None else list(region.box_xywh),
        "is_crowd": region.is_crowd,
        "extra": region.extra,
        "problem": region.problem,
    }


def _shards(corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None) -> Iterator[Shard]:
    index = 0
    for images in _image_groups(corpus.images(limit), images_per_shard, max_regions_per_shard):
        yield Shard(index=index, content_sha256=content_sha256(images, ()), images=images)
        index += 1
    if limit is not None:
        return
    for strays in _stray_groups(corpus.stray_regions(), max_regions_per_shard):
        yield Shard(index=index, content_sha256=content_sha256((), strays), images=(), stray_regions=strays)
        index += 1


def _image_groups(
    images: Iterator[ImageRecord], images_per_shard: int, max_regions_per_shard: int
) -> Iterator[tuple[ImageRecord, ...]]:
    group: list[ImageRecord] = []
    num_regions = 0
    for image in images:
        if group and (len(group) == images_per_shard or num_regions + len(image.regions) > max_regions_per_shard):
            yield tuple(group)
            group, num_regions = [], 0
        group.append(image)
        num_regions += len(image.regions)
    if group:
        yield tuple(group)


def _stray_groups(regions: Iterator[Region], max_regions_per_shard: int) -> Iterator[tuple[Region, ...]]:
    group: list[Region] = []
    for region in regions:
        group.append(region)
        if len(group) == max_regions_per_shard:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)
