"""Decoded images, once a node: memory-mapped uint8 arrays that all workers share through the page cache.

An array is the whole of a task's tuning images (train, then val) or of its test images, at one size by one transform.
Its file grows row by row under a lock: who comes second waits, who comes after a crash goes on.

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
"""Counted up when the same bytes and transform give other pixels than before."""
BLOCK = 256
"""Images decoded between two marks of progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImages:
    """All images of some splits of a task, in the order of the store."""

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
    """Images at a backbone's size, decoded at the first call on this node.

    Args:
        cache: a folder on a local disk; None for `SPTUNE_CACHE`, or ~/.cache/sptune.

    Raises:
        OSError: if the store cannot be read or the cache not be written.
    """
    side, count = side_of(image_size, view), sum(count_examples(root, card.task, split) for split in splits)
    how = f"{transform}-{'augmented-' if is_augmented(card.task) else ''}{view}"
    name = f"{card.fingerprint}-{'-'.join(splits)}-{count}-{how}-{side}-v{VERSION}"
    folder = cache_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    whole, aspects = folder / f"{name}.u8", folder / f"{name}.aspect"
    if not whole.exists():
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                _decode(root, card, splits, image_size, transform, view, folder / name)
    size = count * 3 * side * side
    flat = torch.from_file(str(whole), shared=False, size=size, dtype=torch.uint8)
    aspect_N = torch.from_file(str(aspects), shared=False, size=count, dtype=torch.float64)
    return DecodedImages(images_N3SS=flat.view(count, 3, side, side), aspect_N=aspect_N)


def _decode(
    root: str, card: Card, splits: tuple[str, ...], image_size: int, transform: TransformName, view: View, stem: Path
) -> None:
    """Fill the files, from where an earlier attempt stopped; they get their names when they are whole."""
    part, progress = stem.with_name(f"{stem.name}.part"), stem.with_name(f"{stem.name}.progress")
    aspect_part = stem.with_name(f"{stem.name}.aspect.part")
    side = side_of(image_size, view)
    done = json.loads(progress.read_text()) if progress.exists() else 0
    augmented = is_augmented(card.task)

    def one(example: Example) -> tuple[Tensor, float]:
        return decode(example.image, image_size, transform, view=view, augmented=augmented), aspect(example.image)

    with (
        part.open("r+b" if done else "wb") as images,
        aspect_part.open("r+b" if done else "wb") as aspects,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        images.truncate(done * 3 * side * side)
        images.seek(0, os.SEEK_END)
        aspects.truncate(done * 8)
        aspects.seek(0, os.SEEK_END)
        examples = _from_row(root, card, splits, done)
        while block := list(islice(examples, BLOCK)):
            found = list(pool.map(one, block))
            images.write(torch.stack([image for image, _ in found]).numpy().tobytes())
            aspects.write(np.array([aspect for _, aspect in found], np.float64).tobytes())
            for file in (images, aspects):
                file.flush()
                os.fsync(file.fileno())
            done += len(block)
            progress.write_text(json.dumps(done))
    aspect_part.replace(stem.with_name(f"{stem.name}.aspect"))
    part.replace(stem.with_name(f"{stem.name}.u8"))
    progress.unlink(missing_ok=True)


def _from_row(root: str, card: Card, splits: tuple[str, ...], start: int) -> Iterator[Example]:
    for split in splits:
        count = count_examples(root, card.task, split)
        if start < count:
            yield from read_examples(root, card.task, split, start)
        start = max(0, start - count)
