"""The folder for this machine's own copies: decoded images and downloaded weights. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(folder: str | None = None) -> Path:
    """Return the cache folder on a local disk: `folder`, or else `SPTUNE_CACHE`, or else ~/.cache/sptune."""
    return Path(folder or os.environ.get("SPTUNE_CACHE") or "~/.cache/sptune").expanduser().absolute()
