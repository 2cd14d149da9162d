"""Parts of a report, independent of the format that it is rendered in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
    is_reference: bool = False
    """Whether people look up single rows in it. A page folds such a table if it is long."""

    def is_text(self, index: int) -> bool:
        """Return whether a column holds text."""
        return index < self.names or (self.last_is_text and index == len(self.header) - 1)

    def split(self, fits: Callable[[TableBlock], bool]) -> list[TableBlock]:
        """Return the table, or as few parts of it as fit. Every part repeats the text columns.

        A table is split between its spans. A span that is too wide by itself is split between its columns.
        """
        if not self.spans or fits(self):
            return [self]

        # Fill parts from left to right with whole spans, or with single columns of a span that is too wide.
        remaining = [*range(self.names, len(self.header))]
        parts: list[list[int]] = [[]]
        for size in self.spans:
            span = remaining[:size]
            remaining = remaining[size:]
            pieces = [span] if fits(self._part(span)) else [[index] for index in span]

            for piece in pieces:
                if parts[-1] and not fits(self._part([*parts[-1], *piece])):
                    parts.append([])
                parts[-1] += piece
        return [self._part(columns) for columns in parts]

    def _part(self, columns: Sequence[int]) -> TableBlock:
        """Return the table with its text columns and these number columns."""
        kept = [*range(self.names), *columns]
        rows = [tuple(row[index] for index in kept) for row in self.rows]
        header = tuple(self.header[index] for index in kept)
        return dataclasses.replace(self, header=header, rows=rows, spans=(len(columns),))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBlock:
    """Sentences, one on each line."""

    lines: tuple[str, ...]
    title: str = ""
    is_warning: bool = False
    """Whether the sentences report a problem."""
    is_note: bool = False
    """Whether the sentences explain the table above. One that begins with `[a]` explains the cells that end with it."""


Block = TableBlock | TextBlock


def cells(*texts: str) -> tuple[Cell, ...]:
    """Return a row of plain cells."""
    return tuple(Cell(text) for text in texts)


def one_line(text: str) -> str:
    """Return a text of several lines on one."""
    return "; ".join(part for part in text.splitlines() if part)
