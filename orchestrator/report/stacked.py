"""Rows of a table below each other, for a terminal that is too narrow for the table. No number is cut."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from trainer.terminal import shown

INDENT = "  "


def stacked_row(heading: Text, facts: Iterable[tuple[str, Text]], console: Console, width: int) -> list[Text]:
    """Return a row as lines of at most this width: a heading, then each fact with its name, as many as fit a line.

    A line is broken between facts. Only a heading or a fact that is too long for a line is broken between its words.

    Args:
        facts: name and text of each; those without a text are left out.
        console: for its measures alone.
    """
    lines = [heading]
    line = shown(INDENT)
    for name, value in facts:
        if not value:
            continue
        fact = shown(f"{name}: ") + value
        separator = shown(", ") if len(line) > len(INDENT) else shown("")
        # One cell is kept for the comma at the end of the line.
        if separator and line.cell_len + separator.cell_len + fact.cell_len >= width:
            lines.append(line + shown(","))
            line = shown(INDENT)
            separator = shown("")
        line = line + separator + fact

    if len(line) > len(INDENT):
        lines.append(line)
    return [part for line in lines for part in line.wrap(console, width, overflow="fold")]
