"""Image cache: images decoded once per node into memory-mapped uint8 files, which all workers share.

A file holds all tuning images of a task (train, then val) or all its test images. Fixed views are squares of one size
by one transform. Whole views have a size each, and serve both transforms. A file is filled in blocks under a lock. A
second process waits for the first. After a crash, the next process resumes from the last finished block.

Shapes: N images, S side, H W height and width.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.catalog import is_augmented
from trainer.data.task_store import Card, Example, count_examples, read_examples
from trainer.data.transforms import TransformName, decode, decode_whole
from trainer.storage.local_cache import cache_folder

VERSION = 1
"""Part of the name of a file of fixed views. Increase it when the same bytes and transform give other pixels."""
WHOLE_VERSION = 2
"""The same for whole views. Those of version 1 were squashed to squares."""
BLOCK = 64
"""Images decoded between two writes of the progress file."""

SIZE_BYTES = 2 * np.dtype(np.int32).itemsize
"""Height and width of an image in the file of sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The stored images that a file is filled from, in the order of the task store."""

    root: str
    card: Card
    splits: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Number of images of all splits."""
        return sum(count_examples(self.root, self.card.task, split) for split in self.splits)

    def stem(self, variant: str, cache: str | None) -> Path:
        """Return the path of the files without their suffixes.

        It holds all that the pixels depend on, so a changed task or transform never meets an old file.
        """
        name = f"{self.card.fingerprint}-{'-'.join(self.splits)}-{self.num_images}-{variant}"
        return cache_folder(cache) / name

    def examples(self, start: int) -> Iterator[Example]:
        """Yield the examples of the splits, one split after the other, without the first `start` of them."""
        for split in self.splits:
            count = count_examples(self.root, self.card.task, split)
            if start < count:
                yield from read_examples(self.root, self.card.task, split, start)
            start = max(0, start - count)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder:
    """How an encoded image becomes pixels."""

    decode: Callable[[bytes], NDArray[np.uint8]]
    size_of: Callable[[NDArray[np.uint8]], tuple[int, ...]]
    """Returns height and width of the pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeImages:
    """Whole views of some splits of a task, in the order of the task store.

    The pixels stay in the file: the operating system keeps in memory what it has room for.
    """

    pixels: NDArray[np.uint8]
    """All images, one after the other; mapped from a file, read-only."""
    size_N2: Tensor
    """int64, height and width of each image in pixels."""
    start_N: NDArray[np.int64]
    """Where each image begins in `pixels`."""

    def __len__(self) -> int:
        return len(self.size_N2)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return an image ``[H, W, 3]``. Its pixels are read when they are used."""
        height, width = self.size_N2[row].tolist()
        start = int(self.start_N[row])
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def load_decoded(
    root: str,
    card: Card,
    splits: tuple[str, ...],
    image_size: int,
    transform: TransformName,
    cache: str | None = None,
) -> Tensor:
    """Return the fixed views of some splits, uint8 ``[N, 3, S, S]``, mapped from a file.

    They are in the order of the task store, at a backbone's size. The first call on a node decodes them.

    Args:
        cache: a folder on a local disk; None for `SPTUNE_CACHE`, or ~/.cache/sptune.

    Raises:
        OSError: if the store cannot be read or the cache cannot be written.
    """
    augmented = is_augmented(card.task)
    source = _Source(root=root, card=card, splits=splits)

    def decode_fixed(image: bytes) -> NDArray[np.uint8]:
        square_CSS: NDArray[np.uint8] = decode(image, image_size, transform, augmented=augmented).numpy()
        return square_CSS

    stem = source.stem(f"{transform}-{'augmented-' if augmented else ''}fixed-{image_size}-v{VERSION}", cache)
    _decode_once(stem, source, _Decoder(decode=decode_fixed, size_of=lambda square_CSS: square_CSS.shape[1:]))

    num_images = source.num_images
    num_values = num_images * 3 * image_size**2
    flat = torch.from_file(f"{stem}.u8", shared=False, size=num_values, dtype=torch.uint8)
    return flat.view(num_images, 3, image_size, image_size)


def load_whole(
    root: str, card: Card, splits: tuple[str, ...], image_size: int, cache: str | None = None
) -> WholeImages:
    """Return the whole views of some splits, for a backbone that sees squares of side `image_size`.

    Arguments and errors are those of `load_decoded`.
    """
    source = _Source(root=root, card=card, splits=splits)
    stem = source.stem(f"whole-{image_size}-v{WHOLE_VERSION}", cache)
    decoder = _Decoder(
        decode=lambda image: decode_whole(image, image_size), size_of=lambda image_HWC: image_HWC.shape[:2]
    )
    _decode_once(stem, source, decoder)

    num_images = source.num_images
    size_N2 = _read_sizes(stem, num_images)
    bytes_N = 3 * size_N2.prod(axis=1)

    # Mapped read-only: a file may be larger than the memory. numpy cannot map an empty one.
    pixels = np.memmap(f"{stem}.u8", np.uint8, "r") if num_images else np.empty(0, np.uint8)
    return WholeImages(np.asarray(pixels), torch.from_numpy(size_N2), np.cumsum(bytes_N) - bytes_N)


def _read_sizes(stem: Path, num_images: int) -> NDArray[np.int64]:
    """Return height and width of each whole view ``[N, 2]``.

    Raises:
        OSError: if the files of the views do not fit together.
    """
    sizes_file = stem.with_name(f"{stem.name}.sizes")
    images_file = stem.with_name(f"{stem.name}.u8")
    sizes = np.fromfile(sizes_file, np.int32).astype(np.int64) if sizes_file.exists() else np.empty(0, np.int64)

    # Wrong sizes would cut crops from other images without an error.
    if len(sizes) != 2 * num_images or 3 * sizes.reshape(-1, 2).prod(axis=1).sum() != images_file.stat().st_size:
        raise OSError(
            f"{sizes_file} is damaged: its sizes do not fit to the pixels beside it. Delete {images_file}; the images "
            "are decoded again."
        )

    return sizes.reshape(num_images, 2)


def _decode_once(stem: Path, source: _Source, decoder: _Decoder) -> None:
    """Fill the files of some images unless they are there: pixels in `.u8`, height and width of each in `.sizes`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    images_file = stem.with_name(f"{stem.name}.u8")
    if images_file.exists():
        return

    with stem.with_name(f"{stem.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have decoded them while this one waited for the lock.
        if not images_file.exists():
            _decode_into(stem, source, decoder)


def _decode_into(stem: Path, source: _Source, decoder: _Decoder) -> None:
    """Fill the files from where an earlier process stopped. Give them their final names at the end."""
    images_part = stem.with_name(f"{stem.name}.part")
    sizes_part = stem.with_name(f"{stem.name}.sizes.part")
    progress = stem.with_name(f"{stem.name}.progress")

    done_N2 = _sizes_done(progress, sizes_part, images_part)
    num_done = len(done_N2)

    with (
        images_part.open("r+b" if num_done else "wb") as images_file,
        sizes_part.open("r+b" if num_done else "wb") as sizes_file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # Bytes of a block that was not finished may lie behind the last block that was.
        images_file.truncate(3 * int(done_N2.prod(axis=1, dtype=np.int64).sum()))
        images_file.seek(0, os.SEEK_END)
        sizes_file.truncate(num_done * SIZE_BYTES)
        sizes_file.seek(0, os.SEEK_END)

        examples = source.examples(num_done)
        while block := list(islice(examples, BLOCK)):
            for pixels in pool.map(decoder.decode, [example.image for example in block]):
                images_file.write(pixels.tobytes())
                sizes_file.write(np.array(decoder.size_of(pixels), np.int32).tobytes())

            # The block is on disk before the progress file counts it.
            for file in (images_file, sizes_file):
                file.flush()
                os.fsync(file.fileno())
            num_done += len(block)
            progress.write_text(json.dumps(num_done), encoding="utf-8")

    # The images come last: readers take the files as complete once that file exists.
    sizes_part.replace(stem.with_name(f"{stem.name}.sizes"))
    images_part.replace(stem.with_name(f"{stem.name}.u8"))
    progress.unlink(missing_ok=True)


def _sizes_done(progress: Path, sizes_part: Path, images_part: Path) -> NDArray[np.int32]:
    """Return height and width ``[N, 2]`` of the images that an earlier process decoded; none if they are no use."""
    try:
        num_done = int(json.loads(progress.read_text(encoding="utf-8")))
        num_bytes = images_part.stat().st_size
        sizes = np.fromfile(sizes_part, np.int32, 2 * num_done)
    except (FileNotFoundError, ValueError):
        # There was no such process, or it was killed while it wrote the number. Version 0.1.0 wrote no sizes.
        return np.empty((0, 2), np.int32)

    done_N2 = sizes[: len(sizes) // 2 * 2].reshape(-1, 2)
    is_whole = len(done_N2) == num_done and 3 * done_N2.prod(axis=1, dtype=np.int64).sum() <= num_bytes
    return done_N2 if is_whole else done_N2[:0]
