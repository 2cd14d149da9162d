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
from trainer.data.importers.sources.vtab_labels import CLASS_NAMES, checked, dsprites_label, smallnorb_azimuth_label

DSPRITES_FILES = tuple(f"dsprites_ndarray_co1sh3sc6or40x32y32_64x64.{suffix}" for suffix in ("hdf5", "npz"))
DSPRITES_ATTRIBUTES = {"vtab/dsprites_loc": (4, 32), "vtab/dsprites_ori": (3, 40)}
"""An attribute's column among color, shape, scale, orientation, x and y, and how many values it has."""
ROWS_AT_ONCE = 32_768
"""Rows of dSprites in memory at most, 4 KB each: a chunk of its file has 23,040 rows of 8 pixels."""

Matrix = IO[bytes] | gzip.GzipFile
"""A NORB matrix, open."""
NORB_KINDS = {"dat": (0x1E3D4C55, 4, "bytes"), "info": (0x1E3D4C54, 2, "integers")}
"""How a NORB matrix starts: what it holds, its number of dimensions, and the first in words."""
NORB_LABELS: dict[str, tuple[int, Callable[[int], int]]] = {
    "vtab/smallnorb_azi": (2, smallnorb_azimuth_label),
    "vtab/smallnorb_ele": (1, int),
}
"""A label's column among instance, elevation, azimuth and lighting, and its rule."""
NORB_PARTS = {"train": "training", "test": "testing"}
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def list_dsprites(tree: SourceFiles, task: str) -> Listing:
    """All of dSprites, one part; the published split is of an order that its file does not have."""
    name = _dsprites_file(tree)
    column, num_values = DSPRITES_ATTRIBUTES[task]
    with tempfile.TemporaryDirectory() as folder:
        values = _dsprites_classes(tree.local(name, Path(folder)), name)[:, column]
    records = []
    for row, value in enumerate(values.tolist()):
        label = checked(dsprites_label(value, num_values), CLASS_NAMES[task], f"row {row} of {name}")
        records.append(SourceRecord(f"{row:06d}", label, "all", row))

    def read(wanted: Sequence[SourceRecord]) -> Iterator[bytes]:
        read_rows = _hdf5_rows if name.endswith("hdf5") else _npz_rows
        with tempfile.TemporaryDirectory() as folder:
            pixels = read_rows(tree.local(name, Path(folder)), name, [int(record.place) for record in wanted])
            for record, image in zip(wanted, pixels, strict=True):
                yield dsprites_png(image, f"row {record.place} of {name}")

    draw = {"train": "all", "val": "all", "test": "all"}
    return Listing(records=records, class_names=list(CLASS_NAMES[task]), read=read, draw=draw)


def dsprites_png(pixels: NDArray[np.uint8], image: str) -> bytes:
    """An image of zeros and ones, shown black and white.

    Raises:
        ImportRefused: if it has other values.
    """
    if pixels.max() > 1:
        raise ImportRefused(f"{image} must have pixels of 0 and 1, got {pixels.max()}: it is not of dSprites.")
    return encode_png(pixels * np.uint8(255))


def _dsprites_file(tree: SourceFiles) -> str:
    return next(found for name in DSPRITES_FILES for found in tree.find(name))


def _dsprites_classes(path: Path, name: str) -> NDArray[np.int64]:
    """``[N, 6]``: the six attributes of each image."""
    try:
        if name.endswith("hdf5"):
            with h5py.File(path) as file:
                classes, count = file["latents"]["classes"][:], len(file["imgs"])
        else:
            # np.load leaves a damaged file open.
            with zipfile.ZipFile(path) as archive:
                with archive.open("latents_classes.npy") as file:
                    classes = np.lib.format.read_array(file, allow_pickle=False)
                with archive.open("imgs.npy") as file:
                    count = _npy_head(file)[0]
    except DAMAGED as error:
        raise _unreadable(name, error) from error
    if classes.shape != (count, 6):
        raise ImportRefused(f"{name} must have 6 attributes of each of {count} images, got {classes.shape}.")
    return np.asarray(classes, np.int64)


def _hdf5_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        with h5py.File(path) as file:
            images = file["imgs"]
            size = min(images.chunks[0] if images.chunks else 1024, ROWS_AT_ONCE)
            # A row lies in hundreds of chunks: rows of one chunk are unpacked together.
            for block, group in itertools.groupby(rows, key=lambda row: row // size):
                pixels = images[block * size : (block + 1) * size]
                for row in group:
                    yield pixels[row - block * size]
    except DAMAGED as error:
        raise _unreadable(name, error) from error


def _npz_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
            _, height, width = _npy_head(file)
            start = file.tell()
            for row in rows:
                # Going back unpacks from the start again; rows come in their order.
                file.seek(start + row * height * width)
                yield np.frombuffer(file.read(height * width), np.uint8).reshape(height, width)
    except DAMAGED as error:
        raise _unreadable(name, error) from error


def _npy_head(file: IO[bytes]) -> tuple[int, int, int]:
    """The shape of an array of images; the file then stands at its first byte."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("imgs must be an array of format 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or fortran or dtype != np.uint8:
        raise ValueError(f"imgs must be images of bytes, row by row, got {shape} of {dtype}")
    return shape[0], shape[1], shape[2]


def _unreadable(name: str, error: Exception) -> ImportRefused:
    return ImportRefused(f"{name} is damaged: {error}. Download it again.")


def list_smallnorb(tree: SourceFiles, task: str) -> Listing:
    """smallNORB's training and testing images; of the two cameras the first."""
    column, label_of = NORB_LABELS[task]
    records = []
    for part in NORB_PARTS:
        info, images = _norb_info(tree, part), _norb_file(tree, part, "dat")
        with _norb_opened(tree, images) as (_, (count, *_)):
            if count != len(info):
                raise ImportRefused(f"{images} must have the {len(info)} images that -info.mat annotates, got {count}.")
        for row, value in enumerate(info[:, column].tolist()):
            label = checked(label_of(value), CLASS_NAMES[task], f"row {row} of {images}")
            records.append(SourceRecord(f"{part}-{row:05d}", label, part, row))
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=lambda wanted: _norb_images(tree, wanted),
        draw={"train": "train", "val": "test", "test": "test"},
    )


def _norb_images(tree: SourceFiles, wanted: Sequence[SourceRecord]) -> Iterator[bytes]:
    for part, records in itertools.groupby(wanted, key=lambda record: record.part):
        name = _norb_file(tree, part, "dat")
        with _norb_opened(tree, name) as (file, (_, cameras, height, width)):
            start, size = file.tell(), height * width
            for record in records:
                file.seek(start + int(record.place) * cameras * size)
                pixels = _read_whole(file, size, name)
                yield encode_png(np.frombuffer(pixels, np.uint8).reshape(height, width))


def _norb_info(tree: SourceFiles, part: str) -> NDArray[np.int32]:
    """``[N, 4]``: instance, elevation, azimuth and lighting of each image."""
    name = _norb_file(tree, part, "info")
    with _norb_opened(tree, name) as (file, (count, columns)):
        return np.frombuffer(_read_whole(file, 4 * count * columns, name), "<i4").reshape(count, columns)


def _norb_file(tree: SourceFiles, part: str, kind: str) -> str:
    """The matrix of a part, unpacked if it is there unpacked."""
    pattern = f"smallnorb-*-{NORB_PARTS[part]}-{kind}.mat"
    return tree.one(pattern if tree.find(pattern) else f"{pattern}.gz")


@contextmanager
def _norb_opened(tree: SourceFiles, name: str) -> Iterator[tuple[Matrix, tuple[int, ...]]]:
    """A matrix at its first number, and its shape."""
    magic, num_dimensions, what = NORB_KINDS["dat" if "-dat.mat" in name else "info"]
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = tree.local(name, Path(folder))
            file: Matrix = stack.enter_context(path.open("rb"))
            if name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            # Three dimensions are written at least.
            head = np.frombuffer(_read_whole(file, 8 + 4 * max(3, num_dimensions), name), "<i4").tolist()
            if head[:2] != [magic, num_dimensions]:
                raise ImportRefused(
                    f"{name} must start with {magic:#x} and {num_dimensions}: a matrix of {what}; got "
                    f"{head[0] & 0xFFFFFFFF:#x} and {head[1]}. Download it again."
                )
            yield file, tuple(head[2 : 2 + num_dimensions])
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(name, error) from error


def _read_whole(file: Matrix, size: int, name: str) -> bytes:
    at = file.tell()
    if len(data := file.read(size)) < size:
        raise ImportRefused(f"{name} is truncated: it ends within the {size} bytes from {at}. Download it again.")
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
