"""Paired tests of two labelers on the same regions: what the difference may be, and whether it may be chance."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from rlabel.evaluation.bootstrap import SEED

NUM_PERMUTATIONS = 10_000
_MAX_EXACT = 12  # 4,096 ways to flip the signs of 12 images are all tried
_AT_ONCE = 500


def mcnemar_p(num_only_a: int, num_only_b: int) -> float:
    """Return the two-sided p of McNemar's exact test: of the regions that one alone has right, is the split a fair coin's?

    It takes regions as independent, which those of one picture are not. Source: McNemar 1947; exact form as a binomial test.
    """
    from scipy.stats import binomtest

    total = num_only_a + num_only_b
    return float(binomtest(num_only_a, total, 0.5).pvalue) if total else 1.0


def sign_flip_p(difference_I: NDArray[np.int64], num_permutations: int = NUM_PERMUTATIONS) -> float:
    """Return the two-sided p of the summed differences under flips of the signs of whole images.

    difference_I: int64 (images,), right regions of B less those of A. If neither labeler is better, an image may as well
    have had its two results the other way round. With 12 or fewer images that differ, all flips are tried; otherwise
    `num_permutations` drawn ones, of which the data count as one more. Source: Good, Permutation Tests (2000), section 3.
    """
    moved = difference_I[difference_I != 0]
    observed = abs(int(moved.sum()))
    if not moved.size:
        return 1.0
    if moved.size <= _MAX_EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=moved.size)))
        return float((np.abs(signs @ moved) >= observed).mean())
    generator = np.random.default_rng(SEED)
    num_as_far = 0
    for start in range(0, num_permutations, _AT_ONCE):
        shape = (min(_AT_ONCE, num_permutations - start), moved.size)
        signs = 2 * generator.integers(0, 2, shape, dtype=np.int8).astype(np.int64) - 1
        num_as_far += int((np.abs(signs @ moved) >= observed).sum())
    return (1 + num_as_far) / (1 + num_permutations)
