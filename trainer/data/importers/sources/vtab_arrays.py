"""VTAB's structured tasks whose images are rows of an array: dSprites and smallNORB."""

from __future__ import annotations

import gzip
import itertools
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.source import Listing, Source, SourceRecord, encode_png
from trainer.data.importers.sources.vtab_labels import CLASS_NAMES, check_label, dsprites_label, smallnorb_azimuth_label
from trainer.plain_text import counted

DSPRITES_FILES = tuple(f"dsprites_ndarray_co1sh3sc6or40x32y32_64x64.{suffix}" for suffix in ("hdf5", "npz"))
DSPRITES_ATTRIBUTES = {"vtab/dsprites_loc": (4, 32), "vtab/dsprites_ori": (3, 40)}
"""Column of a task's attribute among color, shape, scale, orientation, x and y, and its number of values."""
ROWS_AT_ONCE = 32_768
"""Rows of dSprites in memory at most, 4 KB each. A chunk of its file has 23,040 rows of 8 pixels."""

Matrix = IO[bytes] | gzip.GzipFile
"""An open NORB matrix."""
NORB_KINDS = {"dat": (0x1E3D4C55, 4, "bytes"), "info": (0x1E3D4C54, 2, "integers")}
"""The magic number of a NORB matrix, its number of dimensions, and what it contains in words."""
NORB_LABELS: dict[str, tuple[int, Callable[[int], int]]] = {
    "vtab/smallnorb_azi": (2, smallnorb_azimuth_label),
    "vtab/smallnorb_ele": (1, int),
}
"""Column of a task's label among instance, elevation, azimuth and lighting, and its rule."""
NORB_PARTS = {"train": "training", "test": "testing"}
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)
"""Errors that a damaged file raises."""


# dSprites.


def list_dsprites(tree: SourceFiles, task: str) -> Listing:
    """List all of dSprites as one part. The published split refers to an order that its file does not have."""
    name = _dsprites_file(tree)
    column, num_values = DSPRITES_ATTRIBUTES[task]
    with tempfile.TemporaryDirectory() as folder:
        values = _dsprites_classes(tree.local(name, Path(folder)), name)[:, column]

    records = []
    for row, value in enumerate(values.tolist()):
        label = check_label(dsprites_label(value, num_values), CLASS_NAMES[task], f"row {row} of {name}")
        records.append(SourceRecord(f"{row:06d}", label, "all", row))

    def read(requested: Sequence[SourceRecord]) -> Iterator[bytes]:
        read_rows = _hdf5_rows if name.endswith("hdf5") else _npz_rows
        with tempfile.TemporaryDirectory() as folder:
            rows = [int(record.place) for record in requested]
            images = read_rows(tree.local(name, Path(folder)), name, rows)
            for row, image in zip(rows, images, strict=True):
                yield dsprites_png(image, f"row {row} of {name}")

    # Drawn anew: TFDS shuffled the records, and the file does not contain its order.
    draw = {"train": "all", "val": "all", "test": "all"}
    return Listing(records=records, class_names=list(CLASS_NAMES[task]), read=read, draw=draw)


def dsprites_png(pixels: NDArray[np.uint8], image: str) -> bytes:
    """Return an image of zeros and ones as a black and white PNG.

    Raises:
        ImportRefused: if it has other values.
    """
    if pixels.max() > 1:
        raise ImportRefused(
            f"{image} must have pixels of 0 and 1, got {pixels.max()}; it does not belong to dSprites. "
            "Download the data set again."
        )
    return encode_png(pixels * np.uint8(255))


def _dsprites_file(tree: SourceFiles) -> str:
    return next(match for name in DSPRITES_FILES for match in tree.find(name))


def _dsprites_classes(path: Path, name: str) -> NDArray[np.int64]:
    """Read the six attributes of each image, ``[N, 6]``."""
    try:
        if name.endswith("hdf5"):
            with h5py.File(path) as file:
                classes = file["latents"]["classes"][:]
                num_images = len(file["imgs"])
        else:
            # Not np.load: it leaves a damaged file open.
            with zipfile.ZipFile(path) as archive:
                with archive.open("latents_classes.npy") as file:
                    classes = np.lib.format.read_array(file, allow_pickle=False)
                with archive.open("imgs.npy") as file:
                    num_images = _read_npy_shape(file)[0]
    except DAMAGED as error:
        raise _damaged(name, error) from error

    if classes.shape != (num_images, 6):
        raise ImportRefused(
            f"{name} must have 6 attributes of each of {counted(num_images, 'image')}, got {classes.shape}. "
            "Download it again."
        )
    return np.asarray(classes, np.int64)


def _hdf5_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        with h5py.File(path) as file:
            images = file["imgs"]
            size = min(images.chunks[0] if images.chunks else 1024, ROWS_AT_ONCE)

            # A row lies in hundreds of chunks: rows of the same chunks are unpacked together.
            for block, group in itertools.groupby(rows, key=lambda row: row // size):
                pixels = images[block * size : (block + 1) * size]
                for row in group:
                    yield pixels[row - block * size]
    except DAMAGED as error:
        raise _damaged(name, error) from error


def _npz_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
            _, height, width = _read_npy_shape(file)
            start = file.tell()
            for row in rows:
                # Seeking backwards unpacks from the start again, but callers ask for rows in their order.
                file.seek(start + row * height * width)
                yield np.frombuffer(file.read(height * width), np.uint8).reshape(height, width)
    except DAMAGED as error:
        raise _damaged(name, error) from error


def _read_npy_shape(file: IO[bytes]) -> tuple[int, int, int]:
    """Read the shape of an array of images. The file is then at the first byte of the first image."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("imgs must be an array of format 1.0")

    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or is_fortran or dtype != np.uint8:
        raise ValueError(f"imgs must be images of bytes, row by row, got {shape} of {dtype}")

    return shape[0], shape[1], shape[2]


def _damaged(name: str, error: Exception) -> ImportRefused:
    return ImportRefused(f"{name} is damaged: {error}. Download it again.")


# smallNORB.


def list_smallnorb(tree: SourceFiles, task: str) -> Listing:
    """List the training and testing images of smallNORB, of its two cameras the first."""
    column, label_of = NORB_LABELS[task]

    records = []
    for part in NORB_PARTS:
        info = _norb_info(tree, part)
        images = _norb_file(tree, part, "dat")
        with _open_norb(tree, images) as (_, (num_images, *_)):
            if num_images != len(info):
                raise ImportRefused(
                    f"{images} must have the {counted(len(info), 'image')} that -info.mat annotates, got {num_images}. "
                    "Download both again."
                )

        for row, value in enumerate(info[:, column].tolist()):
            label = check_label(label_of(value), CLASS_NAMES[task], f"row {row} of {images}")
            records.append(SourceRecord(f"{part}-{row:05d}", label, part, row))

    # As in VTAB: val and test are both of the testing images.
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=lambda requested: _norb_images(tree, requested),
        draw={"train": "train", "val": "test", "test": "test"},
    )


def _norb_images(tree: SourceFiles, requested: Sequence[SourceRecord]) -> Iterator[bytes]:
    for part, records in itertools.groupby(requested, key=lambda record: record.part):
        name = _norb_file(tree, part, "dat")
        with _open_norb(tree, name) as (file, (_, num_cameras, height, width)):
            start = file.tell()
            size = height * width
            for record in records:
                # The first of the image's cameras.
                file.seek(start + int(record.place) * num_cameras * size)
                pixels = _read_exactly(file, size, name)
                yield encode_png(np.frombuffer(pixels, np.uint8).reshape(height, width))


def _norb_info(tree: SourceFiles, part: str) -> NDArray[np.int32]:
    """Read instance, elevation, azimuth and lighting of each image, ``[N, 4]``."""
    name = _norb_file(tree, part, "info")
    with _open_norb(tree, name) as (file, (num_rows, num_columns)):
        numbers = _read_exactly(file, 4 * num_rows * num_columns, name)
        return np.frombuffer(numbers, "<i4").reshape(num_rows, num_columns)


def _norb_file(tree: SourceFiles, part: str, kind: str) -> str:
    """Return the file of a matrix, the unpacked one if both are there."""
    pattern = f"smallnorb-*-{NORB_PARTS[part]}-{kind}.mat"
    return tree.one(pattern if tree.find(pattern) else f"{pattern}.gz")


@contextmanager
def _open_norb(tree: SourceFiles, name: str) -> Iterator[tuple[Matrix, tuple[int, ...]]]:
    """Yield a matrix, positioned at its first number, and its shape."""
    magic, num_dimensions, content = NORB_KINDS["dat" if "-dat.mat" in name else "info"]
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = tree.local(name, Path(folder))
            file: Matrix = stack.enter_context(path.open("rb"))
            if name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))

            # The file has at least three dimensions, also for a matrix with two.
            head = np.frombuffer(_read_exactly(file, 8 + 4 * max(3, num_dimensions), name), "<i4").tolist()
            if head[:2] != [magic, num_dimensions]:
                raise ImportRefused(
                    f"{name} must start with {magic:#x} and {num_dimensions} (a matrix of {content}), got "
                    f"{head[0] & 0xFFFFFFFF:#x} and {head[1]}. Download it again."
                )

            yield file, tuple(head[2 : 2 + num_dimensions])
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(name, error) from error


def _read_exactly(file: Matrix, size: int, name: str) -> bytes:
    start = file.tell()
    data = file.read(size)
    if len(data) < size:
        raise ImportRefused(
            f"{name} is truncated: it ends within the {counted(size, 'byte')} from {start}. Download it again."
        )
    return data


SOURCES: tuple[Source, ...] = (
    Source(
        form="official",
        tasks=tuple(DSPRITES_ATTRIBUTES),
        recognise=lambda tree: any(tree.find(name) for name in DSPRITES_FILES),
        listing=list_dsprites,
        where="https://github.com/google-deepmind/dsprites-dataset: the .npz (26 MB) or the .hdf5",
        licence="Apache-2.0",
    ),
    Source(
        form="official",
        tasks=tuple(NORB_LABELS),
        recognise=lambda tree: bool(tree.find("smallnorb-*-training-info.mat*")),
        listing=list_smallnorb,
        where="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/: the .mat.gz of dat and info, training and testing "
        "(250 MB)",
    ),
)
"""The official forms of dSprites and smallNORB."""
