"""Parts of a report, independent of the format that it is rendered in."""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = "—"
"""Text of a cell without a value."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """A table."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    names: int
    """Number of columns, from the left, that hold text; the others hold numbers."""
    spans: tuple[int, ...] = ()
    """Sizes of the groups of number columns. A table that is too wide is split between groups."""
    last_is_text: bool = False
    """Whether the last column holds text and may wrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBlock:
    """Sentences, one on each line."""

    lines: tuple[str, ...]
    title: str = ""
    is_warning: bool = False
    """Whether the sentences report a problem."""


Block = TableBlock | TextBlock


def cells(*texts: str) -> tuple[Cell, ...]:
    """Return a row of plain cells."""
    return tuple(Cell(text) for text in texts)
