"""Image cache: images decoded once per node into memory-mapped uint8 arrays, which all workers share.

An array holds all tuning images of a task (train, then val) or all its test images, at one size by one transform.
Its file is filled in blocks under a lock. A second process waits for the first. After a crash, the next process resumes
from the last finished block.

Shapes: N images, S side.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.catalog import is_augmented
from trainer.data.task_store import Card, Example, count_examples, read_examples
from trainer.data.transforms import TransformName, View, aspect, decode, side_of
from trainer.storage.local_cache import cache_folder

VERSION = 1
"""Part of every file's name. Increase it when the same bytes and transform give other pixels than before."""
BLOCK = 256
"""Images decoded between two writes of the progress file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImages:
    """All images of some splits of a task, in the order of the task store."""

    images_N3SS: Tensor
    """uint8, mapped from a file."""
    aspect_N: Tensor
    """Width over height of each image as it was stored, float64."""


def load_decoded(
    root: str,
    card: Card,
    splits: tuple[str, ...],
    image_size: int,
    transform: TransformName,
    view: View,
    cache: str | None = None,
) -> DecodedImages:
    """Return the images of some splits at a backbone's size. The first call on a node decodes them.

    Args:
        cache: a folder on a local disk; None for `SPTUNE_CACHE`, or ~/.cache/sptune.

    Raises:
        OSError: if the store cannot be read or the cache cannot be written.
    """
    side = side_of(image_size, view)
    num_images = sum(count_examples(root, card.task, split) for split in splits)

    # The name holds all that the pixels depend on, so a changed task or transform never meets an old array.
    variant = f"{transform}-{'augmented-' if is_augmented(card.task) else ''}{view}"
    name = f"{card.fingerprint}-{'-'.join(splits)}-{num_images}-{variant}-{side}-v{VERSION}"
    folder = cache_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    images_file = folder / f"{name}.u8"
    aspects_file = folder / f"{name}.aspect"

    if not images_file.exists():
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have decoded them while this one waited for the lock.
            if not images_file.exists():
                _decode_into(folder / name, root, card, splits, image_size, transform, view)

    num_values = num_images * 3 * side * side
    flat = torch.from_file(str(images_file), shared=False, size=num_values, dtype=torch.uint8)
    aspect_N = torch.from_file(str(aspects_file), shared=False, size=num_images, dtype=torch.float64)
    return DecodedImages(images_N3SS=flat.view(num_images, 3, side, side), aspect_N=aspect_N)


def _decode_into(
    stem: Path, root: str, card: Card, splits: tuple[str, ...], image_size: int, transform: TransformName, view: View
) -> None:
    """Fill the files of an array, from where an earlier process stopped. Give them their final names at the end."""
    images_part = stem.with_name(f"{stem.name}.part")
    aspects_part = stem.with_name(f"{stem.name}.aspect.part")
    progress = stem.with_name(f"{stem.name}.progress")
    num_done = json.loads(progress.read_text()) if progress.exists() else 0

    side = side_of(image_size, view)
    augmented = is_augmented(card.task)

    def decode_one(example: Example) -> tuple[Tensor, float]:
        return decode(example.image, image_size, transform, view=view, augmented=augmented), aspect(example.image)

    with (
        images_part.open("r+b" if num_done else "wb") as images_file,
        aspects_part.open("r+b" if num_done else "wb") as aspects_file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # Bytes of a block that was not finished may lie behind the last block that was.
        images_file.truncate(num_done * 3 * side * side)
        images_file.seek(0, os.SEEK_END)
        aspects_file.truncate(num_done * 8)
        aspects_file.seek(0, os.SEEK_END)

        examples = _examples_from(root, card, splits, num_done)
        while block := list(islice(examples, BLOCK)):
            decoded = list(pool.map(decode_one, block))
            images_file.write(torch.stack([image for image, _ in decoded]).numpy().tobytes())
            aspects_file.write(np.array([ratio for _, ratio in decoded], np.float64).tobytes())

            # The block is on disk before the progress file counts it.
            for file in (images_file, aspects_file):
                file.flush()
                os.fsync(file.fileno())
            num_done += len(block)
            progress.write_text(json.dumps(num_done))

    # The images come last: readers take the array as complete once that file exists.
    aspects_part.replace(stem.with_name(f"{stem.name}.aspect"))
    images_part.replace(stem.with_name(f"{stem.name}.u8"))
    progress.unlink(missing_ok=True)


def _examples_from(root: str, card: Card, splits: tuple[str, ...], start: int) -> Iterator[Example]:
    """Yield the examples of the splits, one split after the other, without the first `start` of them."""
    for split in splits:
        count = count_examples(root, card.task, split)
        if start < count:
            yield from read_examples(root, card.task, split, start)
        start = max(0, start - count)
