"""Tuning sets of every size: stratified, and each smaller one a subset of each larger one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.validation import parse_per_class

SUBSET_SEED = 0
"""Seed of all subsets. It is fixed, so that every method and trial of a size learns from the same images."""

TrainSize = float | int | str
"""A share (0.1, 1.0), a number of images (200), or a number of images per class (`5 per class`)."""


def nested_subset(labels_N: NDArray[np.int64], size: TrainSize) -> NDArray[np.int64]:
    """Return the rows of a stratified part of the images, in ascending order.

    Each class is shuffled once. Then the form of `size` decides:

    - a share takes the first images of each class, at least one;
    - a number takes one image of each class first, then evenly from all classes;
    - a number per class takes the first images of each class.

    Of two sizes of one form, the smaller set is a subset of the larger one.

    Raises:
        ValueError: if a class, or the whole set, has fewer images than `size` asks for.
    """
    rng = np.random.default_rng(SUBSET_SEED)
    classes_K = np.unique(labels_N)
    shuffled = [rng.permutation(np.flatnonzero(labels_N == label)) for label in classes_K]

    # A share: 1.0 is all images, while the whole number 1 is one image.
    if isinstance(size, float):
        return np.sort(np.concatenate([rows[: max(1, round(size * len(rows)))] for rows in shuffled]))

    # A number per class.
    if isinstance(size, str):
        count = parse_per_class(size)
        too_few = {int(label): len(rows) for label, rows in zip(classes_K, shuffled, strict=True) if len(rows) < count}
        if too_few:
            label = min(too_few, key=lambda label: too_few[label])
            raise ValueError(
                f"{size} asks for more images than {len(too_few)} of {len(classes_K)} classes have: class {label} has "
                f"{too_few[label]}. Use at most {too_few[label]} per class, or a number of images."
            )
        return np.sort(np.concatenate([rows[:count] for rows in shuffled]))

    # A number of images.
    if size > len(labels_N):
        raise ValueError(f"{size} images were asked for, and there are {len(labels_N)}. Use at most {len(labels_N)}.")

    rows_N = np.concatenate(shuffled)
    # Each image has a turn, and the earliest turns are taken. The first image of each class comes at -1, before all
    # others. The rest of a class are spread evenly over 0 to 1, so that all classes grow at the same rate.
    turn_N = np.concatenate([[-1.0, *(np.arange(1, len(rows)) + 0.5) / len(rows)] for rows in shuffled])
    # Equal turns are taken in random order: otherwise the lowest classes would always come first.
    order_N = np.lexsort((rng.permutation(len(rows_N)), turn_N))
    return np.sort(rows_N[order_N[:size]])
