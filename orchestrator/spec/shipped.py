"""Files of specs: their names, and those that come with sptune."""

from __future__ import annotations

from pathlib import Path

SHIPPED_SPECS = Path(__file__).parents[2] / "search_spaces"
"""Folder of the specs that come with sptune. Its place is fixed: another package may have its name."""
SUFFIXES = (".yaml", ".yml")
"""Ends of the names of spec files."""


def shipped_specs() -> dict[str, Path]:
    """Return the files of the specs that come with sptune, by their names."""
    return {path.stem: path for path in sorted(SHIPPED_SPECS.glob("*.yaml"))}
