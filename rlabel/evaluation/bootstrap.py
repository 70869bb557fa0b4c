"""The uncertainty of a number by resampling images, since regions of one image are not independent.

The percentile method, Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
SEED = 20_231
_RESAMPLES_AT_ONCE = 100  # bounds memory: weights are (resamples, regions)


def bootstrap_interval95(
    correct_I: NDArray[np.int64] | NDArray[np.float64], total_I: NDArray[np.int64], num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float] | None:
    """Return the 2.5 % and 97.5 % percentiles of sum(correct) / sum(total) over images drawn with replacement.

    correct_I, total_I: int64 (num_images,), of each image the right and all regions. Images without regions change
    nothing and are not drawn. None where there are no regions. The seed is fixed: same counts, same interval.
    correct_I may be any sums over the regions: of a difference, below 0; of a similarity, float64.
    """
    with_regions = total_I > 0
    correct_I, total_I = correct_I[with_regions], total_I[with_regions]
    num_images = len(total_I)
    if num_images == 0:
        return None
    generator = np.random.default_rng(SEED)
    shares = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = generator.integers(0, num_images, num_images)
        shares[resample] = correct_I[drawn].sum() / total_I[drawn].sum()
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


def image_indices(image_ids: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Return for each region the index of its image, in order of arrival, and the number of images."""
    position: dict[Hashable, int] = {}
    image_R = np.asarray([position.setdefault(i, len(position)) for i in image_ids], dtype=np.int64)
    return image_R, len(position)


def image_weights(num_images: int, num_resamples: int = NUM_RESAMPLES) -> Iterator[NDArray[np.int64]]:
    """Yield int64 (some resamples, num_images): how often each image was drawn, with replacement, num_images in all."""
    generator = np.random.default_rng(SEED)
    shares = np.full(num_images, 1 / max(num_images, 1))
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        yield generator.multinomial(num_images, shares, size=min(_RESAMPLES_AT_ONCE, num_resamples - start))


def percentiles95(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 2.5 % and 97.5 % percentiles of the values that are finite; None without any."""
    measured = values[np.isfinite(values)]
    if not measured.size:
        return None
    low, high = np.percentile(measured, [2.5, 97.5])
    return float(low), float(high)


def macro_interval95(
    image_ids: Sequence[Hashable],
    category_ids: Sequence[int],
    is_correct: Sequence[bool],
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float] | None:
    """Return the interval of the mean of the categories' accuracies; three values a region. None without regions.

    A category that a resample has no region of is not in that resample's mean.
    """
    image_R, num_images = image_indices(image_ids)
    if not num_images:
        return None
    order = np.argsort(np.asarray(category_ids), kind="stable")
    sorted_R = np.asarray(category_ids)[order]
    start_C = np.flatnonzero(np.r_[True, sorted_R[1:] != sorted_R[:-1]])
    right_R = np.asarray(is_correct, dtype=np.int64)[order]
    means = []
    for weight_SI in image_weights(num_images, num_resamples):
        weight_SR = weight_SI[:, image_R[order]]
        total_SC = np.add.reduceat(weight_SR, start_C, axis=1)
        right_SC = np.add.reduceat(weight_SR * right_R, start_C, axis=1)
        drawn_SC = total_SC > 0
        means.append((right_SC / np.maximum(total_SC, 1)).sum(1) / drawn_SC.sum(1))
    return percentiles95(np.concatenate(means))
