"""Tuning sets of every size: stratified, and smaller ones inside larger ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUBSET_SEED = 0
"""One seed for all, so that every method and trial of a size learns from the same images."""


def nested_subset(labels_N: NDArray[np.int64], size: float | int) -> NDArray[np.int64]:
    """Rows of a stratified part of the images, in ascending order.

    Each class is shuffled once. A share (a float, 1.0 is all) takes the first images of each class, at least one. A
    number (an int) takes first one image of each class, then of all classes evenly. Either way, of two sizes the
    smaller is a subset of the larger.
    """
    rng = np.random.default_rng(SUBSET_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels_N == label)) for label in np.unique(labels_N)]
    if isinstance(size, float):
        return np.sort(np.concatenate([rows[: max(1, round(size * len(rows)))] for rows in shuffled]))
    rows_N = np.concatenate(shuffled)
    turn_N = np.concatenate([[-1.0, *(np.arange(1, len(rows)) + 0.5) / len(rows)] for rows in shuffled])
    order_N = np.lexsort((rng.permutation(len(rows_N)), turn_N))
    return np.sort(rows_N[order_N[:size]])
