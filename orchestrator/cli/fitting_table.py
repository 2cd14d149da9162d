"""A table that fits every terminal: where it is too wide, its rows are stacked. No number and no header is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.report.stacked import stacked_row
from trainer.terminal import shown

UNLIMITED_WIDTH = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row: its names and its numbers."""

    names: tuple[str, ...]
    numbers: tuple[Text, ...]
    rank: tuple[bool, ...] = ()
    """Where there is no space for all rows, those of the lowest rank are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingTable:
    """A table of named rows of numbers, to print with rich."""

    title: str
    """Printed above, in lines of its own; may be empty."""
    names: tuple[str, ...]
    """Headers of the names. The first two need none where rows are stacked."""
    numbers: tuple[str, ...]
    """Headers of the numbers."""
    rows: list[Row]
    max_lines: int | None = None
    """Lines for the rows; None for as many as they need."""
    way_to_the_rest: str = ""
    """The command that shows the rows for which there was no space."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield shown(self.title, "italic", keep="\n")

        unlimited = options.update(width=UNLIMITED_WIDTH)
        fits = Measurement.get(console, unlimited, self._table(self.rows)).maximum <= options.max_width
        stacks = [[] if fits else self._stacked(row, console, options.max_width) for row in self.rows]

        first = self._first([1 if fits else len(lines) for lines in stacks])
        if fits:
            yield self._table([self.rows[index] for index in first])
        for index in first:
            yield from stacks[index]

        num_left = len(self.rows) - len(first)
        if num_left:
            yield shown(f"and {num_left:,} more: {self.way_to_the_rest}", "italic")

    def _table(self, rows: list[Row]) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in self.names:
            table.add_column(name, no_wrap=True)
        for name in self.numbers:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(shown, row.names), *row.numbers)
        return table

    def _stacked(self, row: Row, console: Console, width: int) -> list[Text]:
        names = [*row.names[:2], *(f"{name} {text}" for name, text in zip(self.names[2:], row.names[2:], strict=True))]
        facts = zip(self.numbers, row.numbers, strict=True)
        return stacked_row(shown(", ".join(names), "bold"), facts, console, width)

    def _first(self, sizes: list[int]) -> list[int]:
        """Return the indices of the rows that there is space for: in their order if it is for all, else by rank.

        Args:
            sizes: lines of each row.
        """
        indices = list(range(len(sizes)))
        if self.max_lines is None or sum(sizes) <= self.max_lines:
            return indices

        first: list[int] = []
        lines_left = self.max_lines
        for index in sorted(indices, key=lambda index: self.rows[index].rank):
            lines_left -= sizes[index]
            # At least one, even on the smallest screen.
            if lines_left < 0 and first:
                break
            first.append(index)
        return first
