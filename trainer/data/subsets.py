"""Tuning sets of every size: stratified, and smaller ones inside larger ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.validation import parse_per_class

SUBSET_SEED = 0
"""One seed for all, so that every method and trial of a size learns from the same images."""

TrainSize = float | int | str
"""A share (0.1, 1.0), a number of images (200), or a number of each class (`5 per class`)."""


def nested_subset(labels_N: NDArray[np.int64], size: TrainSize) -> NDArray[np.int64]:
    """Rows of a stratified part of the images, in ascending order.

    Each class is shuffled once. A share takes the first images of each class, at least one. A number takes first one
    image of each class, then of all classes evenly. A number per class takes the first ones of each. In every form, of
    two sizes the smaller is a subset of the larger.

    Raises:
        ValueError: if a class has fewer images than asked for, or there are fewer in all.
    """
    rng = np.random.default_rng(SUBSET_SEED)
    classes_K = np.unique(labels_N)
    shuffled = [rng.permutation(np.flatnonzero(labels_N == label)) for label in classes_K]
    if isinstance(size, float):
        return np.sort(np.concatenate([rows[: max(1, round(size * len(rows)))] for rows in shuffled]))
    if isinstance(size, str):
        count = parse_per_class(size)
        few = {int(label): len(rows) for label, rows in zip(classes_K, shuffled, strict=True) if len(rows) < count}
        if few:
            label = min(few, key=lambda one: few[one])
            raise ValueError(
                f"{size} asks for more images than {len(few)} of {len(classes_K)} classes have: class {label} has "
                f"{few[label]}. Use at most {few[label]} per class, or a number of images."
            )
        return np.sort(np.concatenate([rows[:count] for rows in shuffled]))
    if size > len(labels_N):
        raise ValueError(f"{size} images were asked for, and there are {len(labels_N)}.")
    rows_N = np.concatenate(shuffled)
    turn_N = np.concatenate([[-1.0, *(np.arange(1, len(rows)) + 0.5) / len(rows)] for rows in shuffled])
    order_N = np.lexsort((rng.permutation(len(rows_N)), turn_N))
    return np.sort(rows_N[order_N[:size]])
