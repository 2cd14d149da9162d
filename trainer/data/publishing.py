"""Publishing a task in the store: its files are written apart, and take their names together.

While a task is written, its files lie in a folder `<random>.part` of the task's folder. The writing process holds a
lock on it, which the system releases when the process ends, also when it is killed. So the next import of the task
knows which of these folders are dead, and deletes them. A bucket has no locks: there, age decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.storage.files import has_folders, open_filesystem

if TYPE_CHECKING:
    from pyarrow import fs

SUFFIX = ".part"
"""Suffix of what is not published. Version 0.1.0 gave it to single files."""
DEAD_AFTER_S = 24 * 3600
"""Age after which unpublished files without a lock are of an import that ended, in seconds."""


@dataclass(frozen=True, slots=True)
class PartFolder:
    """The folder of a task's files while they are written."""

    filesystem: fs.FileSystem
    task_folder: str
    path: str

    def publish(self, names: Sequence[str], last: str) -> None:
        """Move files to the task's folder, `last` at the end. Two imports of a task do this one after the other.

        A killed process leaves files of two imports at worst, and `last` of the earlier one.

        Raises:
            OSError: if a file cannot be moved.
        """
        if not has_locks(self.filesystem):
            for name in (*names, last):
                self.filesystem.move(f"{self.path}/{name}", f"{self.task_folder}/{name}")
            return

        for name in (*names, last):
            # On disk before it has its name: after a power cut, a file is whole or absent.
            with Path(self.path, name).open("rb") as file:
                os.fsync(file.fileno())
        with _locked(self.task_folder):
            for name in (*names, last):
                Path(self.path, name).replace(Path(self.task_folder, name))


def has_locks(filesystem: fs.FileSystem) -> bool:
    """Return whether folders of a file system can be locked."""
    return bool(filesystem.type_name == "local")


@contextmanager
def part_folder(filesystem: fs.FileSystem, task_folder: str) -> Iterator[PartFolder]:
    """Yield a new folder for a task's files, and delete it at the end. Delete what dead imports left of the task, too.

    Raises:
        OSError: if the store cannot be written.
    """
    part = PartFolder(filesystem, task_folder, f"{task_folder}/{uuid.uuid4().hex}{SUFFIX}")
    if not has_locks(filesystem):
        remove_dead_parts(filesystem, task_folder)
        if has_folders(filesystem):
            filesystem.create_dir(part.path, recursive=True)
        try:
            yield part
        finally:
            _delete(filesystem, part.path)
        return

    is_new = not Path(task_folder).is_dir()
    # Nobody may take the folder for a dead one between its creation and its lock.
    filesystem.create_dir(task_folder, recursive=True)
    with _locked(task_folder):
        remove_dead_parts(filesystem, task_folder)
        filesystem.create_dir(part.path)
        lock = os.open(part.path, os.O_RDONLY)
        _lock(lock, wait=False)

    try:
        yield part
    finally:
        _delete(filesystem, part.path)
        os.close(lock)
        if is_new:
            _remove_if_empty(task_folder)


def dead_parts(filesystem: fs.FileSystem, task_folder: str) -> dict[str, int]:
    """Return the paths in a task's folder that imports left when they were killed, with their bytes.

    Raises:
        OSError: if the store cannot be read.
    """
    from pyarrow import fs

    entries = filesystem.get_file_info(fs.FileSelector(task_folder, allow_not_found=True))
    sizes = {}
    for entry in entries:
        if not entry.base_name.endswith(SUFFIX):
            continue

        is_folder = entry.type == fs.FileType.Directory
        files = [entry]
        if is_folder:
            files = filesystem.get_file_info(fs.FileSelector(entry.path, allow_not_found=True, recursive=True))
            files = [file for file in files if file.type == fs.FileType.File]
        if _is_dead(filesystem, entry.path, is_folder, files):
            sizes[str(entry.path)] = sum(file.size for file in files)
    return sizes


def remove_dead_parts(filesystem: fs.FileSystem, task_folder: str) -> None:
    """Delete what imports of a task left when they were killed.

    Raises:
        OSError: if the store cannot be written.
    """
    for path in dead_parts(filesystem, task_folder):
        _delete(filesystem, path)


def left_over(root: str, task: str) -> list[str]:
    """Return a note on files of a task that killed imports left, or nothing if there are none.

    Raises:
        OSError: if the store cannot be read.
    """
    filesystem, folder = open_filesystem(f"{root}/{task}")
    sizes = dead_parts(filesystem, folder)
    if not sizes:
        return []
    num_mb = sum(sizes.values()) / 1e6
    return [f"an import that did not end left {num_mb:.1f} MB in the store; the next import of {task} deletes them"]


def _is_dead(filesystem: fs.FileSystem, path: str, is_folder: bool, files: Sequence[fs.FileInfo]) -> bool:
    """Return whether no process writes the files any more."""
    if has_locks(filesystem) and is_folder:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            # Another import has published or deleted it since it was listed.
            return False

        try:
            is_free = _lock(descriptor, wait=False)
        finally:
            os.close(descriptor)
        # None: this disk has no such locks.
        if is_free is not None:
            return is_free

    return all(time.time() - file.mtime_ns / 1e9 > DEAD_AFTER_S for file in files)


def _delete(filesystem: fs.FileSystem, path: str) -> None:
    from pyarrow import fs

    info = filesystem.get_file_info(path)
    # Imports that start together delete the same.
    with contextlib.suppress(FileNotFoundError):
        if info.type == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif info.type == fs.FileType.File:
            filesystem.delete_file(path)


def _lock(descriptor: int, *, wait: bool) -> bool | None:
    """Lock an open folder. Return whether it is locked now, or None if its disk cannot lock folders, as some of NFS."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the lock of a folder, after waiting for it.

    Without locks, two imports may leave files of both. Readers refuse them: each carries its task's fingerprint.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: str) -> None:
    """Remove the folder of a task whose first import failed, unless another import uses it."""
    with contextlib.suppress(OSError), _locked(folder):
        Path(folder).rmdir()
