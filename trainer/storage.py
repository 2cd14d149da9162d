"""Files that are whole or absent: written to a neighbour and moved into place.

Everything goes through `pyarrow.fs`, so a folder on this disk and a bucket are the same code.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from pyarrow import fs


def open_place(place: str | Path) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it, of a local path or of a URI such as ``s3://bucket/folder``."""
    if "://" in str(place):
        filesystem, path = fs.FileSystem.from_uri(str(place))
        return filesystem, str(path)
    return fs.LocalFileSystem(), str(Path(place).absolute())


def write_bytes(place: str | Path, data: bytes) -> None:
    """Put `data` at `place`, creating its folder; a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: if the place cannot be written; the old bytes are still there.
    """
    filesystem, path = open_place(place)
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
    """The bytes at `place`, or None where there is no file."""
    filesystem, path = open_place(place)
    if filesystem.get_file_info(path).type == fs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def list_folders(place: str | Path) -> list[str]:
    """The names of the folders in a folder, sorted; none where there is no such place."""
    filesystem, path = open_place(place)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def file_sizes(place: str | Path) -> dict[str, int]:
    """The bytes of every file in a folder and the folders in it, by path; none where there is no such place."""
    filesystem, path = open_place(place)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    return {info.path: info.size for info in found if info.type == fs.FileType.File}


def delete_file(place: str | Path) -> None:
    """Delete a file, if it is there."""
    filesystem, path = open_place(place)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def delete_folder(place: str | Path) -> None:
    """Delete a folder and all that is in it, if it is there."""
    filesystem, path = open_place(place)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)
