"""Image cache: images decoded once per node into memory-mapped uint8 files, which all workers share.

A file holds all tuning images of a task (train, then val) or all its test images. Fixed views are squares of one size
by one transform. Whole views have a size each, and serve both transforms. A file is filled in blocks under a lock. A
second process waits for the first. After a crash, the next process resumes from the last finished block.

Each image has a checksum. All images of a file are compared with theirs once after each start of the machine, and when
the file has changed: a damaged file is set aside and its images are decoded again.

Shapes: N images, S side, H W height and width.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer import phase
from trainer.catalog import is_augmented
from trainer.data.task_store import Card, Example, count_examples, read_examples, split_error
from trainer.data.transforms import TransformName, decode, decode_whole
from trainer.machine import usable_cores
from trainer.storage.files import publish
from trainer.storage.integrity import set_aside
from trainer.storage.local_cache import cache_folder, make_cache_folder

VERSION = 1
"""Part of the name of a file of fixed views. Increase it when the same bytes and transform give other pixels."""
WHOLE_VERSION = 2
"""The same for whole views. Those of version 1 were squashed to squares."""
BLOCK = 64
"""Images decoded between two writes of the progress file."""

SIZE_BYTES = 2 * np.dtype(np.int32).itemsize
"""Height and width of an image in the file of sizes."""
SUM_BYTES = np.dtype(np.uint32).itemsize
"""Checksum of an image in the file of checksums."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux's name for this start of the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The stored images that a file is filled from, in the order of the task store."""

    root: str
    card: Card
    splits: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Number of images of all splits."""
        return sum(count_examples(self.root, self.card.task, split, self.card) for split in self.splits)

    def stem(self, variant: str, cache: str | None) -> Path:
        """Return the path of the files without their suffixes.

        It holds all that the pixels depend on, so a changed task or transform never meets an old file.
        """
        name = f"{self.card.fingerprint}-{'-'.join(self.splits)}-{self.num_images}-{variant}"
        return cache_folder(cache) / name

    def examples(self, start: int) -> Iterator[tuple[str, Example]]:
        """Yield split and example, one split after the other, without the first `start` examples."""
        for split in self.splits:
            count = count_examples(self.root, self.card.task, split, self.card)
            if start < count:
                for example in read_examples(self.root, self.card.task, split, start, self.card):
                    yield split, example
            start = max(0, start - count)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder:
    """How an encoded image becomes pixels."""

    decode: Callable[[bytes], NDArray[np.uint8]]
    size_of: Callable[[NDArray[np.uint8]], tuple[int, ...]]
    """Returns height and width of the pixels."""
    image_bytes: int | None = None
    """Size of each image if all have the same."""


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


class FixedViews:
    """Fixed views of some splits of a task, in the order of the task store, mapped from their file.

    Args:
        file: uint8 ``[N, 3, S, S]`` with N > 0. It may be deleted or replaced later.
    """

    def __init__(self, file: Path, image_size: int) -> None:
        with file.open("rb") as opened:
            self._mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        self.pixels_NCSS = torch.frombuffer(self._mapping, dtype=torch.uint8).view(-1, 3, image_size, image_size)
        """All images. What is read of them stays in the memory of this process, until `read` is called."""

    def read(self, rows_B: Tensor) -> Tensor:
        """Return some images, uint8 ``[B, 3, S, S]``. No others are in the memory of this process then."""
        images_BCSS = self.pixels_NCSS.index_select(0, rows_B)
        # Pages of a mapping count as memory of the process from their first use until they are dropped.
        self._mapping.madvise(mmap.MADV_DONTNEED)
        return images_BCSS


def load_decoded(
    root: str,
    card: Card,
    splits: tuple[str, ...],
    image_size: int,
    transform: TransformName,
    cache: str | None = None,
) -> FixedViews:
    """Return the fixed views of some splits at a backbone's size. The first call on a node decodes them.

    Args:
        cache: a folder on a local disk; None for `SPTUNE_CACHE`, or ~/.cache/sptune.

    Raises:
        OSError: if the store cannot be read or the cache cannot be written.
    """
    augmented = is_augmented(card.task)
    source = _Source(root=root, card=card, splits=splits)

    def decode_fixed(image: bytes) -> NDArray[np.uint8]:
        square_CSS: NDArray[np.uint8] = decode(
            image, image_size, transform, augmented=augmented, upright=card.upright
        ).numpy()
        return square_CSS

    stem = source.stem(f"{transform}-{'augmented-' if augmented else ''}fixed-{image_size}-v{VERSION}", cache)
    image_bytes = 3 * image_size**2
    decoder = _Decoder(decode=decode_fixed, size_of=lambda square_CSS: square_CSS.shape[1:], image_bytes=image_bytes)
    _decode_once(stem, source, decoder)
    return FixedViews(_with_suffix(stem, ".u8"), image_size)


def load_whole(
    root: str, card: Card, splits: tuple[str, ...], image_size: int, cache: str | None = None
) -> WholeImages:
    """Return the whole views of some splits, for a backbone that sees squares of side `image_size`.

    Arguments and errors are those of `load_decoded`.
    """
    source = _Source(root=root, card=card, splits=splits)
    stem = source.stem(f"whole-{image_size}-v{WHOLE_VERSION}", cache)
    decoder = _Decoder(
        decode=lambda image: decode_whole(image, image_size, upright=card.upright),
        size_of=lambda image_HWC: image_HWC.shape[:2],
    )
    _decode_once(stem, source, decoder)

    num_images = source.num_images
    size_N2 = _read_sizes(stem)
    bytes_N = 3 * size_N2.prod(axis=1)

    # Mapped read-only: a file may be larger than the memory. numpy cannot map an empty one.
    pixels = np.memmap(f"{stem}.u8", np.uint8, "r") if num_images else np.empty(0, np.uint8)
    return WholeImages(np.asarray(pixels), torch.from_numpy(size_N2), np.cumsum(bytes_N) - bytes_N)


def _read_sizes(stem: Path) -> NDArray[np.int64]:
    """Return height and width of each image ``[N, 2]``; the last one is left out if its sizes are cut."""
    sizes_file = _with_suffix(stem, ".sizes")
    sizes = np.fromfile(sizes_file, np.int32).astype(np.int64) if sizes_file.exists() else np.empty(0, np.int64)
    return sizes[: len(sizes) // 2 * 2].reshape(-1, 2)


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}{suffix}")


def _decode_once(stem: Path, source: _Source, decoder: _Decoder) -> None:
    """Fill the files of some images unless they are there.

    These are pixels in `.u8`, height and width of each image in `.sizes`, and its checksum in `.sums`.
    """
    make_cache_folder(stem.parent)
    images_file = _with_suffix(stem, ".u8")
    if images_file.exists() and _is_checked(stem):
        return

    # A cache that somebody else has filled.
    if images_file.exists() and not os.access(stem.parent, os.W_OK):
        problem = _find_damage(stem, source.num_images, decoder.image_bytes)
        if problem is not None:
            raise OSError(f"{images_file} is damaged: {problem}. Delete it, or set SPTUNE_CACHE to another folder.")
        return

    phase.begin(f"decoding the images of {source.card.task}")
    with _with_suffix(stem, ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have decoded and compared them while this one waited for the lock. A second round follows
        # damage; damage after decoding is that of a disk.
        for _ in range(2):
            if not images_file.exists():
                _decode_into(stem, source, decoder)
            if _is_checked(stem):
                return

            problem = _find_damage(stem, source.num_images, decoder.image_bytes)
            if problem is None:
                _with_suffix(stem, ".checked").write_text(_stamp(stem), encoding="utf-8")
                return
            set_aside(images_file, f"{images_file} is damaged: {problem}.")

    raise OSError(f"{images_file} is damaged although it was just written: the disk of {stem.parent} loses data.")


def _stamp(stem: Path) -> str:
    """Return a text that changes when one of the files changes and when the machine starts again."""
    files = [_with_suffix(stem, suffix) for suffix in (".u8", ".sizes", ".sums")]
    stats = [file.stat() for file in files if file.exists()]
    boot = BOOT_ID.read_text(encoding="utf-8") if BOOT_ID.exists() else ""
    return f"{boot.strip()} {[(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]}"


def _is_checked(stem: Path) -> bool:
    """Return whether the files were compared with their checksums since they changed and the machine started."""
    checked = _with_suffix(stem, ".checked")
    return checked.exists() and checked.read_bytes() == _stamp(stem).encode()


def _find_damage(stem: Path, num_images: int, image_bytes: int | None) -> str | None:
    """Return what is wrong with the files of some images, without a full stop; None if they are as they were written.

    Reads all pixels, at more than 1 GB/s a core. Files of versions that wrote no checksums pass if their sizes fit.

    Args:
        image_bytes: size of each image if all have the same.
    """
    images_file = _with_suffix(stem, ".u8")
    sums_file = _with_suffix(stem, ".sums")
    size_N2 = _read_sizes(stem)
    has_sums = sums_file.exists()
    num_bytes = images_file.stat().st_size

    # Version 0.1.0 wrote neither sizes nor checksums of fixed views.
    if not has_sums and image_bytes is not None:
        return None if num_bytes == num_images * image_bytes else "it is cut"

    # Wrong sizes would cut crops from other images without an error.
    if len(size_N2) != num_images or (size_N2 < 0).any() or 3 * size_N2.prod(axis=1).sum() != num_bytes:
        return "the sizes of its images do not fit to it"
    if not has_sums or not num_bytes:
        return None

    sums_N = np.fromfile(sums_file, np.uint32)
    pixels = np.memmap(images_file, np.uint8, "r")
    ends_N = np.cumsum(3 * size_N2.prod(axis=1))

    def is_block_right(first: int) -> bool:
        rows = range(first, min(first + BLOCK, num_images))
        starts_and_ends = [(int(ends_N[row] - 3 * size_N2[row].prod()), int(ends_N[row])) for row in rows]
        sums = [
            _checksum(size_N2[row], pixels[start:end]) for row, (start, end) in zip(rows, starts_and_ends, strict=True)
        ]
        return bool(sums == sums_N[first : first + BLOCK].tolist())

    with ThreadPoolExecutor(usable_cores()) as pool:
        is_right = len(sums_N) == num_images and all(pool.map(is_block_right, range(0, num_images, BLOCK)))
    return None if is_right else "the checksum of an image is wrong"


def _checksum(size: Sequence[int] | NDArray[np.int64], pixels: NDArray[np.uint8]) -> int:
    """Return the checksum of an image with its height and width."""
    return zlib.crc32(np.ascontiguousarray(pixels).data, zlib.crc32(np.array(size, np.int32).tobytes()))


def _decode_into(stem: Path, source: _Source, decoder: _Decoder) -> None:
    """Fill the files from where an earlier process stopped. Give them their final names at the end."""
    images_part = _with_suffix(stem, ".part")
    sizes_part = _with_suffix(stem, ".sizes.part")
    sums_part = _with_suffix(stem, ".sums.part")
    progress = _with_suffix(stem, ".progress")

    done_N2 = _sizes_done(progress, sizes_part, sums_part, images_part)
    num_done = len(done_N2)

    def decode(stored: tuple[str, Example]) -> NDArray[np.uint8]:
        split, example = stored
        try:
            return decoder.decode(example.image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise split_error(source.root, source.card.task, split, error, example) from error

    mode = "r+b" if num_done else "wb"

    with (
        images_part.open(mode) as images_file,
        sizes_part.open(mode) as sizes_file,
        sums_part.open(mode) as sums_file,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        # Bytes of a block that was not finished may lie behind the last block that was.
        images_file.truncate(3 * int(done_N2.prod(axis=1, dtype=np.int64).sum()))
        sizes_file.truncate(num_done * SIZE_BYTES)
        sums_file.truncate(num_done * SUM_BYTES)
        for file in (images_file, sizes_file, sums_file):
            file.seek(0, os.SEEK_END)

        examples = source.examples(num_done)
        while block := list(islice(examples, BLOCK)):
            for pixels in pool.map(decode, block):
                size = decoder.size_of(pixels)
                images_file.write(pixels.tobytes())
                sizes_file.write(np.array(size, np.int32).tobytes())
                sums_file.write(np.uint32(_checksum(size, pixels)).tobytes())

            # The block is on disk before the progress file counts it.
            for file in (images_file, sizes_file, sums_file):
                file.flush()
                os.fsync(file.fileno())
            num_done += len(block)
            progress.write_text(json.dumps(num_done), encoding="utf-8")

    # The images come last: readers take the files as complete once that file exists.
    publish(sizes_part, _with_suffix(stem, ".sizes"))
    publish(sums_part, _with_suffix(stem, ".sums"))
    publish(images_part, _with_suffix(stem, ".u8"))
    progress.unlink(missing_ok=True)


def _sizes_done(progress: Path, sizes_part: Path, sums_part: Path, images_part: Path) -> NDArray[np.int32]:
    """Return height and width ``[N, 2]`` of the images that an earlier process decoded; none if they are no use."""
    try:
        num_done = int(json.loads(progress.read_text(encoding="utf-8")))
        num_bytes = images_part.stat().st_size
        num_sums = sums_part.stat().st_size // SUM_BYTES
        sizes = np.fromfile(sizes_part, np.int32, 2 * num_done)
    except (FileNotFoundError, ValueError):
        # There was no such process, or it was killed while it wrote the number. Versions before wrote no checksums, and
        # 0.1.0 no sizes.
        return np.empty((0, 2), np.int32)

    done_N2 = sizes[: len(sizes) // 2 * 2].reshape(-1, 2)
    is_whole = len(done_N2) == num_done <= num_sums and 3 * done_N2.prod(axis=1, dtype=np.int64).sum() <= num_bytes
    return done_N2 if is_whole else done_N2[:0]
