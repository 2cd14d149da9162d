"""Helpers of the tests of VTAB's official forms: tiny sources in the real formats."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.catalog import Task
from trainer.data.importers.archive import SourceFiles
from trainer.data.importers.source import Listing, Source, split_records

FORMS = ("folder", "zip", "tar.gz")


@dataclass(frozen=True, kw_only=True)
class Made:
    """The files of a source, and the listing that is expected from them."""

    files: dict[str, bytes]
    class_names: list[str]
    listed: dict[str, tuple[int, str]]
    """Label and part by key."""
    images: dict[str, bytes] = field(default_factory=dict)
    """Encoded images by key, if the source has encoded images."""
    pixels: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Pixels by key, if the source has arrays."""


def jpeg(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a photograph, different for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 90, 40)).save(buffer, "JPEG", comment=f"photograph {number}")
    return buffer.getvalue()


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def pixels_of(encoded: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def mat(**variables: Any) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


def place(files: dict[str, bytes], folder: Path, form: str = "folder") -> Path:
    """Write files as a researcher has them: unpacked, or in one archive."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "zip":
        with zipfile.ZipFile(folder / "source.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif form == "tar.gz":
        with tarfile.open(folder / "source.tar.gz", "w:gz") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    else:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def changed(make: Callable[[], Made], name: str, data: bytes | None) -> dict[str, bytes]:
    """Return the files of a source with one of them replaced, or removed (None)."""
    files = make().files
    assert name in files
    return {key: value for key, value in (files | {name: data}).items() if value is not None}


def source_of(sources: tuple[Source, ...], task: str) -> Source:
    (source,) = (source for source in sources if task in source.tasks)
    return source


def listed(sources: tuple[Source, ...], task: str, path: Path) -> Listing:
    return source_of(sources, task).listing(SourceFiles(path), task)


def check(sources: tuple[Source, ...], task: str, made: Made, path: Path) -> None:
    """Assert that a source is recognised as its task only, and that every image has its label, part and bytes."""
    tree = SourceFiles(path)
    assert [source.tasks for source in sources if source.recognise(tree)] == [(task,)]

    listing = source_of(sources, task).listing(tree, task)
    assert listing.class_names == made.class_names
    assert {r.key: (r.label, r.part) for r in listing.records} == made.listed
    assert len(listing.records) == len(made.listed)

    # Backwards: a reader must not depend on the order of the source.
    backwards = listing.records[::-1]
    read = dict(zip([record.key for record in backwards], listing.read(backwards), strict=True))
    for key, data in made.images.items():
        assert read[key] == data, key
    for key, pixels in made.pixels.items():
        np.testing.assert_array_equal(pixels_of(read[key]), pixels, err_msg=key)

    # The splits are drawn from exactly the parts of the records.
    assert listing.draw is not None
    assert set(listing.draw.values()) == {part for _, part in made.listed.values()}


def split_keys(listing: Listing, *counts: int) -> dict[str, list[str]]:
    """Return the keys of train, val and test, drawn with these counts."""
    train, val, test = counts
    row = Task(name="vtab/any", group="any", num_classes=9, num_train=train, num_val=val, num_test=test)
    splits, protocol = split_records(listing, row)
    assert protocol == "resampled with seed 0"

    return {split: [record.key for record in records] for split, records in splits.items()}
