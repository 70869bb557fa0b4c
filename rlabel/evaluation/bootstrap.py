"""The uncertainty of an accuracy by resampling images, since regions of one image are not independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
SEED = 20_231


def bootstrap_interval95(
    correct_I: NDArray[np.int64], total_I: NDArray[np.int64], num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float] | None:
    """Return the 2.5 % and 97.5 % percentiles of sum(correct) / sum(total) over images drawn with replacement.

    correct_I, total_I: int64 (num_images,), of each image the right and all regions. Images without regions change
    nothing and are not drawn. None where there are no regions. The seed is fixed: same counts, same interval.
    Source: the percentile method, Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
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
