"""The folder for this machine's own copies: decoded images, fetched weights. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(named: str | None = None) -> Path:
    """The named folder, on a local disk; `SPTUNE_CACHE`, or ~/.cache/sptune, where none is named."""
    return Path(named or os.environ.get("SPTUNE_CACHE") or "~/.cache/sptune").expanduser()
