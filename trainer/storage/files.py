"""Reads and writes files in a folder or in a bucket. A file is complete or absent, never partial.

In a folder a file is written under a temporary name, forced to the disk, and then moved to its own name: after a power
cut it is the old file or the new one. In a bucket, which `pyarrow.fs` opens, it appears complete when its stream is
closed. A location is a local path or a URI such as ``s3://bucket/folder``.

pyarrow is imported by the functions that need it, because every command imports this module and few open a file.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.redaction import redact
from trainer.storage.s3 import StorageError, address_of, check_bucket, explain, open_bucket

if TYPE_CHECKING:
    from pyarrow import fs

__all__ = [
    "StorageError",
    "delete_file",
    "delete_folder",
    "file_sizes",
    "file_stamps",
    "has_folders",
    "list_folders",
    "move_file",
    "open_filesystem",
    "publish",
    "read_bytes",
    "read_chunks",
    "translate_errors",
    "write_bytes",
]

NO_SYNC_ERRNOS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF})
"""Errors of folders that cannot be forced to the disk."""


def open_filesystem(location: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a location, and the path in it.

    Raises:
        OSError: if the URI has an unknown scheme, or the bucket cannot be opened.
    """
    from pyarrow import fs

    address = address_of(str(location))
    if address is not None:
        with translate_errors(location, "opened"):
            return open_bucket(address), address.path

    if "://" in str(location):
        filesystem, path = fs.FileSystem.from_uri(str(location))
        return filesystem, str(path)
    return fs.LocalFileSystem(), str(Path(location).absolute())


def has_folders(filesystem: fs.FileSystem) -> bool:
    """Return whether folders exist and files can be moved. A bucket has names only."""
    return filesystem.type_name not in {"s3", "gcs", "abfs"}


@contextmanager
def translate_errors(location: str | Path, action: str) -> Iterator[None]:
    """Raise a bucket's errors as StorageError. Leave all others as they are, such as FileNotFoundError.

    Args:
        action: participle for the message, such as `read`.

    Raises:
        StorageError: if the bucket refuses or does not answer.
    """
    try:
        yield
    except OSError as error:
        storage_error = explain(error, str(location))
        if storage_error is None:
            raise

        # Blocks may be nested: the innermost one names what was tried.
        storage_error.tried = storage_error.tried or f"{redact(str(location))} cannot be {action}"

        # An error that an inner block has translated cannot be its own cause.
        if storage_error is error:
            raise storage_error from None
        raise storage_error from error


def write_bytes(location: str | Path, data: bytes) -> None:
    """Write `data` to a location and create its folder. A reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: if the location cannot be written. The old bytes are then still there.
    """
    filesystem, path = open_filesystem(location)

    # A bucket shows an object only when its stream is closed: no temporary name is needed.
    if not has_folders(filesystem):
        with translate_errors(location, "written"), filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return

    # A unique name, because several processes may write the same file at once. In the same folder, because a move
    # between disks is not atomic.
    part = f"{path}.{uuid.uuid4().hex}.part"
    _create_folder(filesystem, path.rpartition("/")[0])
    try:
        with filesystem.open_output_stream(part) as stream:
            stream.write(data)
        publish(part, path, filesystem)
    except OSError:
        if filesystem.get_file_info(part).is_file:
            filesystem.delete_file(part)
        raise


def publish(part: str | Path, path: str | Path, filesystem: fs.FileSystem | None = None) -> None:
    """Move a finished file to its name, where it replaces another.

    On a local disk, its bytes are on the disk before its name is, and its name before this returns. So a power cut
    leaves no file that is empty or cut.

    Args:
        filesystem: where both paths are; None for this machine's.
    """
    if not (filesystem is None or filesystem.type_name == "local"):
        filesystem.move(str(part), str(path))
        return

    _sync(part)
    Path(part).replace(path)
    _sync_folder(Path(path).parent)


def _create_folder(filesystem: fs.FileSystem, folder: str) -> None:
    """Create a folder and its parents. On a local disk, their names are on the disk before this returns."""
    missing = []
    if filesystem.type_name == "local":
        missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]

    filesystem.create_dir(folder, recursive=True)
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a local folder are on the disk, if its file system and its permissions allow it."""
    try:
        _sync(folder)
    except OSError as error:
        # File systems of networks refuse it, and a folder may be writable but not readable.
        if error.errno not in NO_SYNC_ERRNOS:
            raise


def _sync(path: str | Path) -> None:
    """Wait until a local file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(location: str | Path) -> bytes | None:
    """Return the bytes of a file, or None if it does not exist.

    Raises:
        OSError: if the location cannot be read.
    """
    filesystem, path = open_filesystem(location)
    try:
        with translate_errors(location, "read"), filesystem.open_input_file(path) as file:
            return bytes(file.read(file.size()))
    # NotADirectoryError: the path leads through a file, so there is nothing below it.
    except (FileNotFoundError, NotADirectoryError):
        _raise_if_no_bucket(location, "read")
        return None


def read_chunks(location: str | Path, size: int = 8 * 2**20) -> Iterator[bytes]:
    """Yield the bytes of a large file in chunks of at most `size` bytes.

    Raises:
        OSError: if there is no such file, or it cannot be read.
    """
    filesystem, path = open_filesystem(location)
    with translate_errors(location, "read"), filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(size):
            yield bytes(chunk)


def list_folders(location: str | Path) -> list[str]:
    """Return the sorted names of the folders in a folder. The list is empty if the folder does not exist."""
    from pyarrow import fs

    return sorted(info.base_name for info in _list(location) if info.type == fs.FileType.Directory)


def file_sizes(location: str | Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by path. Empty if the folder does not exist."""
    return {info.path: info.size for info in _list(location, recursive=True) if info.is_file}


def file_stamps(location: str | Path) -> dict[str, tuple[int, int]] | None:
    """Return size and modification time (ns) of the files in a folder, by name.

    A location that is a file has its own stamp under the name "". None if the location does not exist.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(location)
    with translate_errors(location, "read"):
        location_info = filesystem.get_file_info(path)

    if location_info.type == fs.FileType.NotFound:
        _raise_if_no_bucket(location, "read")
        return None

    infos = {"": location_info} if location_info.is_file else {info.base_name: info for info in _list(location)}
    return {name: (info.size, info.mtime_ns) for name, info in infos.items() if info.is_file}


def delete_file(location: str | Path) -> None:
    """Delete a file if it exists."""
    filesystem, path = open_filesystem(location)
    with translate_errors(location, "deleted"):
        if filesystem.get_file_info(path).is_file:
            filesystem.delete_file(path)


def move_file(location: str | Path, target: str | Path) -> None:
    """Move a file, if it exists, to another name in the same folder or bucket, where it replaces another."""
    filesystem, path = open_filesystem(location)
    with translate_errors(location, "moved"):
        if filesystem.get_file_info(path).is_file:
            filesystem.move(path, open_filesystem(target)[1])


def delete_folder(location: str | Path) -> None:
    """Delete a folder and its contents if it exists."""
    from pyarrow import fs

    filesystem, path = open_filesystem(location)
    with translate_errors(location, "deleted"):
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def _list(location: str | Path, *, recursive: bool = False) -> list[fs.FileInfo]:
    from pyarrow import fs

    filesystem, path = open_filesystem(location)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    with translate_errors(location, "listed"):
        infos: list[fs.FileInfo] = filesystem.get_file_info(selector)

    if not infos:
        _raise_if_no_bucket(location, "listed")
    return infos


def _raise_if_no_bucket(location: str | Path, action: str) -> None:
    """Raise StorageError if the bucket does not exist. A missing file in a missing bucket looks the same."""
    address = address_of(str(location))
    if address is not None:
        with translate_errors(location, action):
            check_bucket(address.authority, address.query)
