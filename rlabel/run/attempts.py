"""What becomes of a shard that keeps failing: it is split into its images, and an image that fails even alone becomes failures.

Shared by the local and the Ray driver, so that both give the same records. Knows nothing of how a shard is tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlabel.corpus.inputs import query_failure, stray_failure
from rlabel.records import Failure, ImageRecord, Outcome, QueryFailure, Shard, ShardResult


def image_shard(shard: Shard, part: int) -> Shard:
    """Return one image of a shard as a shard of its own, under the same index; never committed as it is."""
    return replace(shard, images=(shard.images[part],), stray_regions=(), stray_queries=())


def failed_shard(shard: Shard, cause: str, attempts: int) -> ShardResult:
    """Return the result of a shard whose every attempt failed: a failure of kind "attempts" for each region, pair or expression of an image."""
    outcomes: list[Outcome] = []
    for image in shard.images:
        reason = f"{_name(image)}: not labeled in {attempts} attempts: {cause}."
        image_id = image.row.get("id")
        if image.queries is None:
            outcomes += [
                Failure(region=region, image_id=image_id, kind="attempts", reason=reason) for region in image.regions
            ]
        else:
            outcomes += [
                QueryFailure(query=query, image_id=image_id, kind="attempts", reason=reason) for query in image.queries
            ]
    outcomes += _stray_failures(shard)
    return ShardResult(index=shard.index, images=tuple(image.row for image in shard.images), outcomes=tuple(outcomes))


def joined(shard: Shard, parts: Mapping[int, ShardResult]) -> ShardResult:
    """Return a split shard's result from those of its images, by place; the strays, which no model sees, are added."""
    outcomes = [outcome for part in range(len(shard.images)) for outcome in parts[part].outcomes]
    outcomes += _stray_failures(shard)
    return ShardResult(index=shard.index, images=tuple(image.row for image in shard.images), outcomes=tuple(outcomes))


def _stray_failures(shard: Shard) -> list[Outcome]:
    regions: list[Outcome] = [stray_failure(region) for region in shard.stray_regions]
    return regions + [query_failure(query) for query in shard.stray_queries]


def in_words(error: BaseException) -> str:
    """Return an error as one line: its kind and its message, cut to a length that a reason can bear."""
    message = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _name(image: ImageRecord) -> str:
    return image.file_name or f"image id {image.row.get('id')}"
