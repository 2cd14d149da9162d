"""Tuning sets of every size: stratified, and each smaller one a subset of each larger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.plain_text import counted
from trainer.validation import is_full, parse_per_class

SUBSET_SEED = 0
"""Seed of all subsets of draw 0. It is fixed, so that every method and trial of a size learns from the same images."""

TrainSize = float | int | str
"""A share (0.1, 1.0), a number of images (200), or a number of images per class (`5 per class`)."""

ValSize = Literal["full", "same"]
"""All of val, or the same share of it as of train."""

Labels = Mapping[str, NDArray[np.int64]]
"""Labels of some splits. Rows count through the splits, one after the other."""


def split_rows(
    labels: Labels, split: str, size: TrainSize, val_size: ValSize = "full", draw: int = 0
) -> NDArray[np.int64]:
    """Return the rows of a split that a size selects, in ascending order.

    The tuning set of a size is a part of train and a part of val. With `val_size` same, the part of val is as large a
    share of val as the part of train is of train, and trainval is both parts. With full, the size is taken of the split
    itself: of trainval, a share of each split separately, but a number of both together.

    Args:
        labels: of train and val, or of test alone.
        split: train, val, trainval or test.

    Raises:
        ValueError: if the split has fewer images than `size` asks for.
    """
    names = ("train", "val") if split == "trainval" else (split,)
    first_row = {}
    num_rows = 0
    for name, labels_N in labels.items():
        first_row[name] = num_rows
        num_rows += len(labels_N)

    # `val_size` matters only for a part of the images, and only where val is used.
    if val_size == "same" and not is_full(size) and "val" in names:
        parts = _same_share(labels, size, draw)
    elif isinstance(size, float):
        parts = {name: nested_subset(labels[name], size, draw) for name in names}
    else:
        both_N = np.concatenate([labels[name] for name in names])
        return first_row[names[0]] + nested_subset(both_N, size, draw)

    return np.concatenate([first_row[name] + parts[name] for name in names])


def num_labels(labels: Labels, split: str, size: TrainSize, val_size: ValSize, draw: int) -> int:
    """Return the number of labels that a study has used, up to and including a trial.

    These are the images of train that its search learns from, the images of val that its search is scored on, and the
    images that the trial itself learns from. Each image counts once.

    Args:
        labels: of train and val.
        split: what the trial learns from: train or trainval.
    """
    trained_on = split_rows(labels, split, size, val_size, draw)
    searched_on = split_rows(labels, "train", size, val_size, draw)
    scored_on = split_rows(labels, "val", size if val_size == "same" else 1.0, val_size, draw)

    return len(np.unique(np.concatenate([trained_on, searched_on, scored_on])))


def part_name(split: str, size: TrainSize, val_size: ValSize, draw: int) -> str:
    """Return the text in a fingerprint that says which images of a split are used, such as `0.1, draw 2`."""
    name = str(size)
    if is_full(size):
        return name

    # The part of train is the same for both values of val_size.
    if val_size == "same" and split in ("val", "trainval"):
        name += ", val same"
    if draw:
        name += f", draw {draw}"
    return name


def _same_share(labels: Labels, size: TrainSize, draw: int) -> dict[str, NDArray[np.int64]]:
    """Return the rows of a part of train and of the same share of val, each counted within its split."""
    train_rows = nested_subset(labels["train"], size, draw)

    # As a number of images, because a share is rounded class by class and can miss the share of train.
    num_val = round(len(train_rows) / len(labels["train"]) * len(labels["val"]))
    num_classes = len(np.unique(labels["val"]))
    return {"train": train_rows, "val": nested_subset(labels["val"], max(num_val, num_classes), draw)}


def nested_subset(labels_N: NDArray[np.int64], size: TrainSize, draw: int = 0) -> NDArray[np.int64]:
    """Return the rows of a stratified part of the images, in ascending order.

    Each class is shuffled once. Then the form of `size` decides:

    - a share takes the first images of each class, at least one;
    - a number takes one image of each class first, then evenly from all classes;
    - a number per class takes the first images of each class.

    Of two sizes of one form, the smaller set is a subset of the larger one.

    Args:
        draw: which random draw. Draws are independent of each other.

    Raises:
        ValueError: if a class, or the whole set, has fewer images than `size` asks for.
    """
    rng = np.random.default_rng([SUBSET_SEED, draw] if draw else SUBSET_SEED)
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
                f"{size} asks for more images than {len(too_few)} of {counted(len(classes_K), 'class')} have: class "
                f"{label} has {too_few[label]}. Use at most {too_few[label]} per class, or a number of images."
            )
        return np.sort(np.concatenate([rows[:count] for rows in shuffled]))

    # A number of images.
    if size > len(labels_N):
        raise ValueError(
            f"{counted(size, 'image was', 'images were')} asked for, and there are {len(labels_N):,}. Use at most "
            f"{len(labels_N):,}."
        )

    rows_N = np.concatenate(shuffled)
    # Each image has a turn, and the earliest turns are taken. The first image of each class comes at -1, before all
    # others. The rest of a class are spread evenly over 0 to 1, so that all classes grow at the same rate.
    turn_N = np.concatenate([[-1.0, *(np.arange(1, len(rows)) + 0.5) / len(rows)] for rows in shuffled])
    # Equal turns are taken in random order: otherwise the lowest classes would always come first.
    order_N = np.lexsort((rng.permutation(len(rows_N)), turn_N))
    return np.sort(rows_N[order_N[:size]])
