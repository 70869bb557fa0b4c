"""Plans the shards of a corpus: which images go together, in file order. Knows nothing of pictures or models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from rlabel.corpus.coco import Corpus
from rlabel.corpus.rows import canonical_text, region_content
from rlabel.errors import UsageError
from rlabel.records import ImageRecord, Region, Shard

_T = TypeVar("_T")


class PlannedShard(NamedTuple):
    """What a plan says of a shard without holding it; the fields are those of the `Shard`."""

    content_sha256: str
    num_images: int
    num_regions: int


def plan_shards(
    corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None = None
) -> Iterator[Shard]:
    """Return the shards of a corpus one at a time: every image and region in exactly one, the same at every call.

    A shard ends at images_per_shard images, or before an image that would take it above max_regions_per_shard regions
    (an image with more is a shard of its own). Stray regions come last, in shards without images. limit: only the first
    `limit` images, no strays.

    Raises UsageError for a bound below 1.
    """
    _check_bounds(images_per_shard, max_regions_per_shard, limit)
    return _shards(corpus, images_per_shard, max_regions_per_shard, limit)


def plan_contents(
    corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None = None
) -> Iterator[PlannedShard]:
    """Return what `plan_shards` would, in less than half the time: the shards' digests and sizes alone. Raises as it does."""
    _check_bounds(images_per_shard, max_regions_per_shard, limit)
    return _contents(corpus, images_per_shard, max_regions_per_shard, limit)


def content_sha256(images: tuple[ImageRecord, ...], stray_regions: tuple[Region, ...]) -> str:
    """Return the hex digest of a shard's content: equal only for equal image rows and regions in the same order."""
    return _digest(
        ((canonical_text(image.row), map(region_content, image.regions)) for image in images),
        map(region_content, stray_regions),
    )


def _check_bounds(images_per_shard: int, max_regions_per_shard: int, limit: int | None) -> None:
    for name, value in (("images_per_shard", images_per_shard), ("max_regions_per_shard", max_regions_per_shard)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if limit is not None and limit < 0:
        raise UsageError(f"limit must be at least 0, got {limit}")


def _digest(images: Iterable[tuple[str, Iterable[str]]], strays: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for row, regions in images:
        digest.update("".join([f"image {row}\n", *(f"region {text}\n" for text in regions)]).encode())
    for text in strays:
        digest.update(f"stray {text}\n".encode())
    return digest.hexdigest()


def _shards(corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None) -> Iterator[Shard]:
    index = 0
    for images in _groups(corpus.images(limit), lambda one: len(one.regions), images_per_shard, max_regions_per_shard):
        yield Shard(index=index, content_sha256=content_sha256(images, ()), images=images)
        index += 1
    if limit is not None:
        return
    for strays in _stray_groups(corpus.stray_regions(), max_regions_per_shard):
        yield Shard(index=index, content_sha256=content_sha256((), strays), images=(), stray_regions=strays)
        index += 1


def _contents(
    corpus: Corpus, images_per_shard: int, max_regions_per_shard: int, limit: int | None
) -> Iterator[PlannedShard]:
    for images in _groups(corpus.contents(limit), lambda one: len(one[1]), images_per_shard, max_regions_per_shard):
        yield PlannedShard(_digest(images, ()), len(images), sum(len(regions) for _, regions in images))
    if limit is None:
        for strays in _stray_groups(corpus.stray_regions(), max_regions_per_shard):
            yield PlannedShard(content_sha256((), strays), 0, len(strays))


def _groups(
    images: Iterator[_T], num_regions_of: Callable[[_T], int], images_per_shard: int, max_regions_per_shard: int
) -> Iterator[tuple[_T, ...]]:
    group: list[_T] = []
    num_regions = 0
    for image in images:
        own = num_regions_of(image)
        if group and (len(group) == images_per_shard or num_regions + own > max_regions_per_shard):
            yield tuple(group)
            group, num_regions = [], 0
        group.append(image)
        num_regions += own
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
