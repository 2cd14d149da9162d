"""Splits: the images that a run learns from or is scored on.

Shapes: N images of a split, R images of the array that holds them, B batch, C 3, S side.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.data.image_cache import FixedViews, WholeImages, load_decoded, load_whole
from trainer.data.subsets import TrainSize, ValSize, num_labels, part_name, split_rows
from trainer.data.task_store import Card, TaskChanged, read_column
from trainer.data.tasks import open_task
from trainer.data.transforms import TransformName, View, cut

RESIDENT_SHARE = 0.4
"""Largest part of a GPU's free memory that the images of a split may take."""
MOVED_TOGETHER = 256
"""Images that go to a device in one piece."""
VIEW_IN_FINGERPRINT: dict[View, str] = {"fixed": "fixed", "whole": "whole-2"}
"""Text in a fingerprint for each view. In 0.1.0, `whole` meant squashed views: prototypes of those are built again."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """The decoded images of one split, N of them.

    The array may hold more images than the split: `rows_N` selects those of the split, and `take` applies it. Fixed
    views are on the device if they fit there. Otherwise they stay in the machine's memory, and `take` copies each batch
    to the device without waiting for the copy. Those of the test split stay in their file: `take` reads each batch.
    Whole views stay in the image cache: `take_crops` cuts each batch on the CPU, while the device may still work on the
    batch before.
    """

    images_R: Tensor | FixedViews | WholeImages
    """Fixed views uint8 ``[R, 3, S, S]``, a file of them, or whole views. The images of this split are its rows
    `rows_N`."""
    rows_N: Tensor
    """int64, on the device of the array; on the CPU if that is a file."""
    labels_N: Tensor
    """int64, on the device."""
    keys: tuple[str, ...]
    view: View
    fingerprint: str
    """The fingerprint of the task, with the part of its images that this is."""

    def __len__(self) -> int:
        return len(self.rows_N)

    def check_same_import(self, other: Split) -> None:
        """Raise TaskChanged if the task was imported anew between the loading of two of its splits."""
        fingerprints = [split.fingerprint.partition("/")[0] for split in (other, self)]
        if len(set(fingerprints)) > 1:
            raise TaskChanged(
                f"the task was imported anew ({fingerprints[1]}) while a run learnt from its images of before "
                f"({fingerprints[0]}). Import those again, or start under another name."
            )

    def all_images(self) -> Tensor:
        """Return all fixed views ``[N, 3, S, S]`` in one tensor."""
        return self.take(torch.arange(len(self)))

    def take(self, wanted_B: Tensor) -> Tensor:
        """Return the fixed views ``[B, 3, S, S]`` of some rows of this split, on the device.

        The call does not wait for the device if `wanted_B` is on the device of the array.
        """
        assert not isinstance(self.images_R, WholeImages), "they differ in size: take_crops cuts squares from them"
        rows_B = self.rows_N[wanted_B.to(self.rows_N.device)]
        if isinstance(self.images_R, FixedViews):
            return self._on_device(self.images_R.read(rows_B))
        # index_select is five times as fast as indexing.
        return self._on_device(self.images_R.index_select(0, rows_B))

    def whole_sizes(self, wanted_B: Tensor) -> Tensor:
        """Return height and width ``[B, 2]`` of the whole views of some rows of this split, on the CPU."""
        assert isinstance(self.images_R, WholeImages), "fixed views have one size"
        return self.images_R.size_N2[self.rows_N[wanted_B.cpu()]]

    def take_crops(self, wanted_B: Tensor, crops_B5: Tensor, size: int, transform: TransformName) -> Tensor:
        """Return crops ``[B, 3, size, size]`` of the whole views of some rows of this split, on the device.

        The call does not wait for the device if `wanted_B` is on the CPU.

        Args:
            crops_B5: as `transforms.random_crops` draws them from `whole_sizes`.
        """
        assert isinstance(self.images_R, WholeImages), "fixed views are not cropped"
        images = [self.images_R.image(row) for row in self.rows_N[wanted_B.cpu()].tolist()]
        return self._on_device(cut(images, crops_B5, size, transform))

    def in_order(self, size: int) -> Iterator[Tensor]:
        """Yield all fixed views in order, `size` at a time."""
        for wanted_B in torch.arange(len(self)).split(size):
            yield self.take(wanted_B)

    def _on_device(self, images_BCSS: Tensor) -> Tensor:
        """Return images on the device, without waiting for a copy."""
        if images_BCSS.device == self.labels_N.device:
            return images_BCSS
        return images_BCSS.pin_memory().to(self.labels_N.device, non_blocking=True)


@functools.lru_cache(maxsize=4)
def load_split(
    root: str,
    task: str,
    split: str,
    train_size: TrainSize,
    image_size: int,
    device: str = "cpu",
    transform: TransformName = "spt",
    view: View = "fixed",
    cache: str | None = None,
    val_size: ValSize = "full",
    draw: int = 0,
) -> Split:
    """Return the images of a split at a backbone's size. The last four splits stay in the process's memory.

    A demo task that the task store lacks is made first, as by `open_task`.

    Args:
        root: the task store, a folder or a URI.
        split: train, val, test, or trainval: train and val together.
        train_size: the part of the images to take, nested and stratified; 1.0 for all.
        val_size: how much of val belongs to this size; see `split_rows`.
        draw: which random draw of the images.
        cache: a folder on a local disk for decoded images, shared by the processes of a node.

    Raises:
        TaskMissing: if the task is not in the store and is no demo task.
        ValueError: if the split has fewer images than `train_size` asks for.
        OSError: if the store cannot be read or the cache cannot be written.
    """
    card = open_task(root, task)

    # The array holds these splits, one after the other; the wanted split is a part of it.
    array_splits = ("test",) if split == "test" else ("train", "val")
    labels = {name: read_column(root, task, name, "label", card).to_numpy() for name in array_splits}
    rows_N = split_rows(labels, split, train_size, val_size, draw)

    array_labels = np.concatenate([labels[name] for name in array_splits])
    array_keys = _keys(root, card, array_splits)
    rows = torch.from_numpy(rows_N)

    images_R: Tensor | FixedViews | WholeImages
    if view == "whole":
        images_R = load_whole(root, card, array_splits, image_size, cache)
    else:
        views = load_decoded(root, card, array_splits, image_size, transform, cache)
        # The test split is the largest and is scored once a run: no more than a batch of it is in memory at once.
        if split == "test":
            images_R = views
        else:
            images_R = views.pixels_NCSS
            # Only the selected images go to the device, so there the rows are simply 0 to N - 1.
            image_bytes = 3 * image_size**2
            if device != "cpu" and fits_on_device(len(rows) * image_bytes, torch.cuda.mem_get_info(device)[0]):
                images_R = move_rows(images_R, rows, device)
                rows = torch.arange(len(rows), device=device)

    return Split(
        images_R=images_R,
        rows_N=rows,
        labels_N=torch.from_numpy(array_labels[rows_N].astype(np.int64)).to(device),
        keys=tuple(array_keys.take(pa.array(rows_N)).to_pylist()),
        view=view,
        fingerprint="/".join(
            [
                card.fingerprint,
                split,
                part_name(split, train_size, val_size, draw),
                transform,
                str(image_size),
                VIEW_IN_FINGERPRINT[view],
            ]
        ),
    )


def count_labels(
    root: str, task: str, split: str, train_size: TrainSize, val_size: ValSize = "full", draw: int = 0
) -> int:
    """Return the number of labels that a study has used, up to and including a trial that learns from `split`.

    Raises:
        OSError: if the store cannot be read.
    """
    labels = {name: read_column(root, task, name, "label").to_numpy() for name in ("train", "val")}
    return num_labels(labels, split, train_size, val_size, draw)


def prepare_test_split(
    root: str, task: str, image_size: int, transform: TransformName = "spt", cache: str | None = None
) -> None:
    """Read all of the test split and decode it into the image cache. Nothing of it stays in memory.

    Call it before a training that ends with a test. Then an unreadable split is found before the first step.
    The arguments are those of `load_split`, which finds the images decoded.

    Raises:
        TaskMissing: if the task is not in the store and is no demo task.
        ValueError: if the file of the split is damaged.
        OSError: if the file or one of its images cannot be read, or the cache cannot be written.
    """
    card = open_task(root, task)
    for column in ("label", "key"):
        read_column(root, task, "test", column, card)
    load_decoded(root, card, ("test",), image_size, transform, cache)


def fits_on_device(images_bytes: int, free_bytes: int) -> bool:
    """Return whether images may stay in a GPU's memory, which the network, its tokens and other splits need too."""
    return images_bytes <= RESIDENT_SHARE * free_bytes


def move_rows(images_R: Tensor, rows_N: Tensor, device: str) -> Tensor:
    """Return some rows of an array ``[R, 3, S, S]`` on a device ``[N, 3, S, S]``.

    The rows move in pieces through one buffer, so that main memory never holds a copy of all of them. For a GPU it is
    pinned: the GPU copies from it directly.
    """
    moved_N = torch.empty(len(rows_N), *images_R.shape[1:], dtype=images_R.dtype, device=device)
    is_pinned = moved_N.device.type == "cuda"
    buffer_B = torch.empty(MOVED_TOGETHER, *images_R.shape[1:], dtype=images_R.dtype, pin_memory=is_pinned)

    for into_B, rows_B in zip(moved_N.split(MOVED_TOGETHER), rows_N.split(MOVED_TOGETHER), strict=True):
        piece_B = buffer_B[: len(rows_B)]
        torch.index_select(images_R, 0, rows_B, out=piece_B)
        # Returns when the piece has arrived: the next one overwrites the buffer.
        into_B.copy_(piece_B)

    return moved_N


def _keys(root: str, card: Card, splits: tuple[str, ...]) -> pa.ChunkedArray:
    columns = [read_column(root, card.task, name, "key", card) for name in splits]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])
