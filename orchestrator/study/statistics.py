"""Exact tests for paired outcomes, and Holm's correction."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mcnemar(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p of McNemar's test that two classifiers are right equally often.

    Args:
        first_N: which images the first classifier got right; only images that the two disagree on matter.
    """
    from scipy.special import bdtr

    num_only_first = int((first_N & ~second_N).sum())
    num_only_second = int((~first_N & second_N).sum())

    return min(1.0, 2.0 * float(bdtr(min(num_only_first, num_only_second), num_only_first + num_only_second, 0.5)))


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
