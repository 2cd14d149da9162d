"""Tests for paired outcomes, and Holm's correction."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_FLIPS = 999
"""Number of random sign flips of a test. The observed signs are one more: 1000 in all."""


def find_worse(correct_TN: NDArray[np.bool_], level: float) -> NDArray[np.bool_]:
    """Return which trials are significantly worse than the best one, bool ``[T]``. Shapes: T trials, N images.

    It is a max-T test by sign flips (Westfall and Young, Resampling-Based Multiple Testing, 1993), with step-down
    (Romano and Wolf, JASA 100, 2005). The statistic is that of McNemar's test between the best trial and another,
    (n10 - n01) / sqrt(n10 + n01): n10 images are right in the best trial only, n01 in the other only.

    If all trials are equally good, the differences between trials on an image could as well have the other sign. So
    each flip draws a sign for each image, finds its own best trial, and keeps the largest statistic. A trial is worse
    if at most a share `level` of the flips have a statistic as large as its own.

    Because each flip has its own best trial, the test accounts for choosing the best on the same images. Because the
    trials of a flip share their signs, it uses how alike their predictions are. For two trials it is McNemar's test.

    Args:
        correct_TN: which images each trial classified right.
        level: probability of calling any of the truly best trials worse.
    """
    num_right_T = correct_TN.sum(axis=1).astype(np.float64)

    # Images that all trials get right, or all get wrong, do not distinguish trials.
    is_telling_N = correct_TN.any(axis=0) & ~correct_TN.all(axis=0)
    # Sums of whole numbers are exact in float32, so the result is the same on every machine.
    telling_TN = correct_TN[:, is_telling_N].astype(np.float32)

    # Images that only one of two trials gets right. Equal predictions have none, and a statistic of 0.
    num_shared_TT = telling_TN @ telling_TN.T
    num_telling_T = num_shared_TT.diagonal()
    num_apart_TT = num_telling_T[:, None] + num_telling_T - 2.0 * num_shared_TT
    spread_TT = np.sqrt(np.maximum(num_apart_TT.astype(np.float64), 1.0))

    best = int(num_right_T.argmax())
    observed_T = (num_right_T[best] - num_right_T) / spread_TT[best]

    signs_FN = 2.0 * np.random.default_rng(0).integers(0, 2, (NUM_FLIPS, telling_TN.shape[1])).astype(np.float32) - 1.0
    flipped_FT = signs_FN @ telling_TN.T

    # Step-down: trials that are worse are removed, and the test is repeated with fewer rivals.
    candidates = np.arange(len(correct_TN))
    while True:
        flipped_FC = flipped_FT[:, candidates]
        lead_FC = flipped_FC.max(axis=1, keepdims=True) - flipped_FC
        spread_FC = spread_TT[np.ix_(candidates, candidates)][flipped_FC.argmax(axis=1)]
        largest_F = np.sort((lead_FC / spread_FC).max(axis=1))

        # Equal statistics count as large as the observed one, though the last bit may differ.
        num_as_large_C = NUM_FLIPS - np.searchsorted(largest_F, observed_T[candidates] - 1e-9)
        remaining = candidates[(1 + num_as_large_C) / (1 + NUM_FLIPS) > level]
        if len(remaining) == len(candidates):
            break
        candidates = remaining

    is_worse_T = np.ones(len(correct_TN), dtype=bool)
    is_worse_T[candidates] = False
    return is_worse_T


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values with Holm's correction for their number, in the given order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0

    # Smallest first: each p-value is multiplied by the number of tests that are left.
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest

    return adjusted


def signed_rank(differences: Sequence[float]) -> float:
    """Return the exact two-sided p of Wilcoxon's signed-rank test.

    Zeros are left out, equal differences share their mean rank, and all 2^n signs are counted. scipy.stats enumerates
    the signs one by one where ranks are shared, which takes a second for twelve tasks.
    """
    nonzero = np.asarray([difference for difference in differences if difference])
    _, group, count = np.unique(np.abs(nonzero), return_inverse=True, return_counts=True)

    # Shared ranks are multiples of 1/2, so twice the rank is a whole number.
    twice_rank = (2 * np.cumsum(count) - count + 1)[group]

    # ways[s]: number of sign patterns whose positive ranks add up to s / 2. Each difference adds its sign.
    ways = np.ones(1)
    for rank in twice_rank:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))

    observed = int(twice_rank[nonzero > 0].sum())
    tail = min(ways[: observed + 1].sum(), ways[observed:].sum())

    return min(1.0, 2.0 * float(tail / ways.sum()))


def paired_t(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired t-test, or None if it is undefined."""
    from scipy.special import stdtr

    mean = statistics.mean(differences)
    spread = statistics.stdev(differences)

    # If all seeds differ by the same amount, they do not show how much seeds vary.
    if spread == 0.0:
        return 1.0 if mean == 0.0 else None

    t = mean / (spread / len(differences) ** 0.5)
    return float(2.0 * stdtr(len(differences) - 1, -abs(t)))


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p of Welch's t-test that two means are equal, or None if it is undefined.

    It is undefined if one has fewer than two values, or if neither varies and the means differ.
    """
    from scipy.special import stdtr

    if min(len(first), len(second)) < 2:
        return None

    difference = round(statistics.mean(first) - statistics.mean(second), 12)
    first_error, second_error = (statistics.variance(values) / len(values) for values in (first, second))
    error = first_error + second_error

    if error == 0.0:
        return 1.0 if difference == 0.0 else None

    # Welch and Satterthwaite's degrees of freedom.
    freedom = error**2 / (first_error**2 / (len(first) - 1) + second_error**2 / (len(second) - 1))
    return float(2.0 * stdtr(freedom, -abs(difference) / error**0.5))
