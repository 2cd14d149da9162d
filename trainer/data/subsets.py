"""Tuning sets of every size: stratified, and smaller ones inside larger ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUBSET_SEED = 0
"""One seed for all, so that every method and trial of a size learns from the same images."""


def nested_subset(labels_N: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Rows of a stratified share of the images, in ascending order.

    Each class is shuffled once, and a share takes its first images (at least one): of two shares, the smaller is
    a subset of the larger.
    """
    rng = np.random.default_rng(SUBSET_SEED)
    chosen = []
    for label in np.unique(labels_N):
        rows = rng.permutation(np.flatnonzero(labels_N == label))
        chosen.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(chosen))
