"""The folder for this machine's own copies: decoded images and downloaded weights. No torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder(folder: str | None = None) -> Path:
    """Return the cache folder on a local disk: `folder`, or else `SPTUNE_CACHE`, or else ~/.cache/sptune.

    If this user has no home that can be written, as on many compute nodes, it is a folder for temporary files.
    """
    named = folder or os.environ.get("SPTUNE_CACHE")
    try:
        path = Path(named or "~/.cache/sptune").expanduser().absolute()
    except RuntimeError:
        # Neither HOME nor the list of users says where the home is.
        return temporary_cache()
    return path if named or unwritable(path) is None else temporary_cache()


def make_cache_folder(folder: Path) -> None:
    """Make a folder in the cache, and its parents.

    Raises:
        OSError: if it cannot be made or written, with the variable that names another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, _unusable(folder, error.strerror or str(error))) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(_unusable(folder, f"no permission in {folder}"))


def cache_problem() -> str | None:
    """Return a sentence if the cache folder does not exist and cannot be made; None otherwise. Nothing is created."""
    folder = cache_folder()
    # A folder that exists may hold everything that is needed, and be read-only.
    if folder.is_dir():
        return None
    reason = unwritable(folder)
    return None if reason is None else _unusable(folder, reason)


def unwritable(folder: Path) -> str | None:
    """Return why a folder cannot be made or written; None if it can. Nothing is created."""
    nearest = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"no permission in {nearest}"
    return None


def temporary_cache() -> Path:
    """Return the cache folder of a user without a home."""
    # The user's number keeps users apart. Nobody else can write to a folder that belongs to this user.
    return Path(tempfile.gettempdir()) / f"sptune-cache-{os.getuid()}"


def _unusable(folder: Path, reason: str) -> str:
    return f"the cache {folder} cannot be written: {reason}. Name a folder on a local disk with SPTUNE_CACHE."
