"""The images that a run learns from or is scored on.

Shapes: N images of a split, B batch, S side.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.data.image_cache import load_decoded
from trainer.data.subsets import TrainSize, nested_subset
from trainer.data.task_store import read_column
from trainer.data.tasks import open_task
from trainer.data.transforms import TransformName, View

RESIDENT_SHARE = 0.4
"""What a split's images may take of a GPU's free memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """The decoded images of one split, N of them.

    A split may be some rows of a larger array; `take` knows which. The array is on the device if it fits there, else in
    the machine's memory, and batches follow the device's work from there.
    """

    images_RCSS: Tensor
    """uint8; this split's images are its rows `rows_N`."""
    rows_N: Tensor
    """int64, where the array is."""
    labels_N: Tensor
    """int64, on the device."""
    keys: tuple[str, ...]
    aspect_N: Tensor
    """Width over height of each image as it was stored; on the CPU."""
    view: View
    fingerprint: str
    """Hash of the task's images, with the part of them that this is."""

    def __len__(self) -> int:
        return len(self.rows_N)

    def all_images(self) -> Tensor:
        """All images ``[N, 3, S, S]``, copied together."""
        return self.take(torch.arange(len(self)))

    def take(self, wanted_B: Tensor) -> Tensor:
        """The images ``[B, 3, S, S]`` of rows of this split, on the device; asked for with rows where the array is,
        nothing is waited for."""
        rows_B = self.rows_N[wanted_B.to(self.rows_N.device)]
        images_BCSS = self.images_RCSS.index_select(0, rows_B)  # five times as fast as indexing
        if images_BCSS.device == self.labels_N.device:
            return images_BCSS
        return images_BCSS.pin_memory().to(self.labels_N.device, non_blocking=True)

    def in_order(self, size: int) -> Iterator[Tensor]:
        """All images, `size` at a time."""
        for wanted_B in torch.arange(len(self)).split(size):
            yield self.take(wanted_B)


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
) -> Split:
    """The images of a split at a backbone's size, kept in the process.

    Args:
        root: the task store, a folder or a URI.
        split: train, val, test, or trainval: train and val together.
        train_size: the part that is taken, nested and stratified; 1.0 for all. A share is taken of train and of val,
            a number of both together.
        cache: a folder on a local disk for decoded images, shared by the processes of a node.

    Raises:
        ValueError: if the images have not what `train_size` asks for.
        OSError: if the store cannot be read or the cache not be written.
    """
    card = open_task(root, task)
    names = ("test",) if split == "test" else ("train", "val")
    labels = {name: read_column(root, task, name, "label").to_numpy() for name in names}
    wanted = names if split in ("trainval", "test") else (split,)
    offsets = {name: sum(len(labels[other]) for other in names[: names.index(name)]) for name in names}
    if isinstance(train_size, float):
        chosen = [offsets[name] + nested_subset(labels[name], train_size) for name in wanted]
        rows_N = np.concatenate(chosen)
    else:
        rows_N = offsets[wanted[0]] + nested_subset(np.concatenate([labels[name] for name in wanted]), train_size)
    every_label, every_key = np.concatenate([labels[name] for name in names]), _keys(root, task, names)
    whole = load_decoded(root, card, names, image_size, transform, view, cache)
    array, rows = whole.images_N3SS, torch.from_numpy(rows_N)
    if device != "cpu" and fits_on_device(len(rows) * array[0].numel(), torch.cuda.mem_get_info(device)[0]):
        array, rows = array[rows].to(device), torch.arange(len(rows), device=device)
    return Split(
        images_RCSS=array,
        rows_N=rows,
        labels_N=torch.from_numpy(every_label[rows_N].astype(np.int64)).to(device),
        keys=tuple(every_key.take(pa.array(rows_N)).to_pylist()),
        aspect_N=whole.aspect_N[torch.from_numpy(rows_N)],
        view=view,
        fingerprint=f"{card.fingerprint}/{split}/{train_size}/{transform}/{image_size}/{view}",
    )


def fits_on_device(images_bytes: int, free_bytes: int) -> bool:
    """Whether images may stay in a GPU's memory: the network, its tokens and other splits want some too."""
    return images_bytes <= RESIDENT_SHARE * free_bytes


def _keys(root: str, task: str, names: tuple[str, ...]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for name in names for chunk in read_column(root, task, name, "key").chunks])
