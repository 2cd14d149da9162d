"""What a report is made of, before it is Markdown, LaTeX, HTML or a terminal's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a grid."""

    text: str
    bold: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """A table."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    names: int
    """How many columns, from the left, are words; the others are numbers."""
    spans: tuple[int, ...] = ()
    """Where the number columns may be parted when they do not fit side by side: how many go together."""
    last_is_text: bool = False
    """Whether the last column is words, and may be broken into lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBlock:
    """Sentences, one a line."""

    lines: tuple[str, ...]
    title: str = ""
    is_warning: bool = False
    """Whether they say that something is wrong."""


Block = TableBlock | TextBlock


def cells(*texts: str) -> tuple[Cell, ...]:
    """Plain cells."""
    return tuple(Cell(text) for text in texts)
