"""Exact tests for paired outcomes, and Holm's correction."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mcnemar(one_N: NDArray[np.bool_], other_N: NDArray[np.bool_]) -> float:
    """Exact two-sided p that two classifiers are right equally often, from the images that tell them apart."""
    from scipy.special import bdtr

    only_one, only_other = int((one_N & ~other_N).sum()), int((other_N & ~one_N).sum())
    return min(1.0, 2.0 * float(bdtr(min(only_one, only_other), only_one + only_other, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order: smallest first, each times the tests that are left."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def signed_rank(differences: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test: zeros left out, equal ranks shared, all 2^n signs counted.

    scipy.stats counts them one by one where ranks are shared: a second for twelve tasks.
    """
    nonzero = np.asarray([difference for difference in differences if difference])
    _, place, count = np.unique(np.abs(nonzero), return_inverse=True, return_counts=True)
    twice_rank = (2 * np.cumsum(count) - count + 1)[place]
    ways = np.ones(1)  # of each sum of ranks, as signs are added
    for rank in twice_rank:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    found = int(twice_rank[nonzero > 0].sum())
    return min(1.0, 2.0 * float(min(ways[: found + 1].sum(), ways[found:].sum()) / ways.sum()))


def paired_t(differences: Sequence[float]) -> float | None:
    from scipy.special import stdtr

    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    if spread == 0.0:  # seeds that all differ by the same say nothing of how seeds vary
        return 1.0 if mean == 0.0 else None
    t = mean / (spread / len(differences) ** 0.5)
    return float(2.0 * stdtr(len(differences) - 1, -abs(t)))
