"""Folders for temporary files that are short enough for the sockets of Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.plain_text import counted

MAX_RAY_FOLDER_BYTES = 43
"""Longest path of Ray's folder. A socket's path has at most 107 bytes, and Ray appends up to 64:
`/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store`."""
MIN_FREE_BYTES = 100_000_000
"""Space that Ray's logs and a few small files need."""
OTHER_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def variable_of_folder() -> str:
    """Return the variable that names the folder for temporary files of Ray; `/tmp` if none is set."""
    return next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "/tmp")


def default_ray_folder() -> Path:
    """Return the folder that Ray itself would choose for its sockets and logs."""
    # Without a variable, the function above returns the folder.
    name = variable_of_folder()
    return Path(os.environ.get(name, name)).absolute() / "ray"


def problem_of_folder(folder: Path) -> str | None:
    """Return why Ray cannot use a folder, as the end of a sentence about it; None if it can. Nothing is created."""
    length = len(os.fsencode(folder))
    if length > MAX_RAY_FOLDER_BYTES:
        return f"has {counted(length, 'byte')}, and with more than {MAX_RAY_FOLDER_BYTES} the sockets of Ray do not fit"

    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return f"cannot be written ({nearest})"

    if shutil.disk_usage(nearest).free < MIN_FREE_BYTES:
        return f"is on a disk with less than {MIN_FREE_BYTES / 1e6:.0f} MB free"
    return None


def short_folder() -> Path | None:
    """Return a folder in which Ray can use a new one with a name of up to 13 letters; None if there is none."""
    return next((folder for folder in _candidates() if problem_of_folder(folder / "ray-12345678") is None), None)


def _candidates() -> Iterator[Path]:
    # Python raises if it finds no folder that it can write to. It does not look at all of those below.
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())
    yield from map(Path, OTHER_FOLDERS)
