"""Small sources for the tests: files in a folder, and the same files in archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.catalog import Task
from trainer.data.importers.source import Listing, split_records

Files = Mapping[str, Any]
"""Contents (bytes or text) by file name."""


def lay(folder: Path, files: Files) -> Path:
    """Write files below a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pack_zip(archive: Path, files: Files) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return archive


def pack_tar(archive: Path, files: Files) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[archive.suffix]
    with tarfile.open(archive, mode) as opened:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return archive


FORMS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lay,
    "x.zip": pack_zip,
    "x.tar": pack_tar,
    "x.tar.gz": pack_tar,
    "x.tgz": pack_tar,
    "x.tar.bz2": pack_tar,
    "x.tar.xz": pack_tar,
}
"""Functions that write files in each form of a source, by the name of the source."""


def jpeg(shade: int) -> bytes:
    """Return a small JPEG, different for each shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 255 - shade, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def task(num_classes: int, train: int, val: int, test: int) -> Task:
    return Task(name="own/x", group="own", num_classes=num_classes, num_train=train, num_val=val, num_test=test)


def labels(listing: Listing) -> dict[str, int]:
    return {record.key: record.label for record in listing.records}


def parts(listing: Listing) -> dict[str, str]:
    return {record.key: record.part for record in listing.records}


def divided_keys(listing: Listing, row: Task, seed: int = 0) -> dict[str, list[str]]:
    splits, _ = split_records(listing, row, seed)
    return {split: [record.key for record in records] for split, records in splits.items()}


def numbered(count: int) -> Iterable[tuple[str, int]]:
    """Yield names of images and their numbers. The names are not in the order of the numbers."""
    return ((f"{i * 7919 % 10_007:05d}.jpg", i) for i in range(count))
