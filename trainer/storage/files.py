"""Files that are whole or absent, in a folder or in a bucket.

Everything goes through `pyarrow.fs`. In a folder a file is written to a neighbour and moved into place; in a bucket it
appears whole when its stream closes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from trainer.storage.s3 import StorageError, address_of, check_bucket, explain, open_bucket, redact_query

__all__ = [
    "StorageError",
    "delete_file",
    "delete_folder",
    "file_sizes",
    "file_stamps",
    "has_folders",
    "list_folders",
    "open_filesystem",
    "read_bytes",
    "read_chunks",
    "translate_errors",
    "write_bytes",
]


def open_filesystem(place: str | Path) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it, of a local path or of a URI such as ``s3://bucket/folder``.

    Raises:
        OSError: if a URI is none that is known.
    """
    if (address := address_of(str(place))) is not None:
        with translate_errors(place, "opened"):
            return open_bucket(address), address.path
    if "://" in str(place):
        filesystem, path = fs.FileSystem.from_uri(str(place))
        return filesystem, str(path)
    return fs.LocalFileSystem(), str(Path(place).absolute())


def has_folders(filesystem: fs.FileSystem) -> bool:
    """Whether folders are made, and files moved into place; in a bucket there are names only."""
    return filesystem.type_name not in {"s3", "gcs", "abfs"}


@contextmanager
def translate_errors(place: str | Path, done: str) -> Iterator[None]:
    """Say what a bucket's errors mean; all others are left as they are, a file's that is not there among them.

    Args:
        done: what was tried, such as `read`.

    Raises:
        StorageError: for a bucket that refuses or is away.
    """
    try:
        yield
    except OSError as error:
        if (told := explain(error, str(place))) is None:
            raise
        told.tried = told.tried or f"{redact_query(str(place))} cannot be {done}"
        raise told from None if told is error else error


def write_bytes(place: str | Path, data: bytes) -> None:
    """Put `data` at `place`, creating its folder; a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: if the place cannot be written; the old bytes are still there.
    """
    filesystem, path = open_filesystem(place)
    if not has_folders(filesystem):
        with translate_errors(place, "written"), filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    part = f"{path}.{uuid.uuid4().hex}.part"
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(part) as stream:
            stream.write(data)
        filesystem.move(part, path)
    except OSError:
        if filesystem.get_file_info(part).type == fs.FileType.File:
            filesystem.delete_file(part)
        raise


def read_bytes(place: str | Path) -> bytes | None:
    """The bytes at `place`, or None where there is no file.

    Raises:
        OSError: if the place cannot be read.
    """
    filesystem, path = open_filesystem(place)
    try:
        with translate_errors(place, "read"), filesystem.open_input_file(path) as file:
            return bytes(file.read(file.size()))
    except (FileNotFoundError, NotADirectoryError):
        _check_bucket(place, "read")
        return None


def read_chunks(place: str | Path, size: int = 8 * 2**20) -> Iterator[bytes]:
    """The bytes of a large file, a part at a time.

    Raises:
        OSError: if there is no such file, or it cannot be read.
    """
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "read"), filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(size):
            yield bytes(chunk)


def list_folders(place: str | Path) -> list[str]:
    """The names of the folders in a folder, sorted; none where there is no such place."""
    return sorted(info.base_name for info in _listed(place) if info.type == fs.FileType.Directory)


def file_sizes(place: str | Path) -> dict[str, int]:
    """The bytes of every file in a folder and the folders in it, by path; none where there is no such place."""
    return {info.path: info.size for info in _listed(place, recursive=True) if info.type == fs.FileType.File}


def file_stamps(place: str | Path) -> dict[str, tuple[int, int]] | None:
    """Size and time of change (ns) of the files in a folder, by name; a file has its own under the name "".

    None where there is no such place.
    """
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "read"):
        info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        _check_bucket(place, "read")
        return None
    found = {"": info} if info.type == fs.FileType.File else {one.base_name: one for one in _listed(place)}
    return {name: (one.size, one.mtime_ns) for name, one in found.items() if one.type == fs.FileType.File}


def delete_file(place: str | Path) -> None:
    """Delete a file, if it is there."""
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "deleted"):
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)


def delete_folder(place: str | Path) -> None:
    """Delete a folder and all that is in it, if it is there."""
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "deleted"):
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def _listed(place: str | Path, *, recursive: bool = False) -> list[fs.FileInfo]:
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "listed"):
        found: list[fs.FileInfo] = filesystem.get_file_info(
            fs.FileSelector(path, allow_not_found=True, recursive=recursive)
        )
    if not found:
        _check_bucket(place, "listed")
    return found


def _check_bucket(place: str | Path, done: str) -> None:
    """Where nothing is found, it must not be for want of the bucket."""
    if (address := address_of(str(place))) is not None:
        with translate_errors(place, done):
            check_bucket(address.authority, address.query)
