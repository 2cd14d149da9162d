"""Rendering of a report for a terminal, as Markdown or elements of HTML, and of its numbers as CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.redaction import redact
from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock, one_line
from orchestrator.report.latex import to_latex
from orchestrator.report.results_table import ResultsRow, ResultsTable
from orchestrator.report.stacked import stacked_row
from trainer.plain_text import counted, csv_text, printable
from trainer.terminal import shown

UNLIMITED_WIDTH = 1_000_000
MAX_OPEN_ROWS = 40
"""Most rows of a table for looking up that a page does not fold."""


def print_blocks(blocks: Sequence[Block], console: Console) -> None:
    """Print a report to a terminal.

    A table that is too wide is split between groups of columns. If that is not enough, its rows are stacked.
    """
    for block in blocks:
        match block:
            case TableBlock():
                parts = _split_to_fit(block, console)
                if any(_least_width(part, console) > console.options.max_width for part in parts):
                    _print_stacked(block, console)
                    continue
                for part in parts:
                    console.print(_rich_table(part))
            case TextBlock():
                if block.title:
                    console.print(shown(block.title, "bold"))
                for line in block.lines:
                    console.print(_rich_line(line, is_warning=block.is_warning))


def _rich_line(line: str, *, is_warning: bool) -> Text:
    if not is_warning:
        return shown(line, keep="\n")
    kind, colon, rest = line.partition(":")
    return shown(kind, "red") + shown(f"{colon}{rest}", keep="\n")


def _rich_table(block: TableBlock) -> Table:
    """Return a table in which no text is cut off. With spans no cell wraps either: `_split_to_fit` limits the width."""
    table = Table(title=shown(block.title, "table.title", keep="\n"))

    for index, name in enumerate(block.header):
        justify: Literal["left", "right"] = "left" if block.is_text(index) else "right"
        # Names of several words may be long, so they share what is left with the text.
        wraps = block.last_is_text and block.is_text(index)
        no_wrap = bool(block.spans) or (block.last_is_text and not wraps)

        # A column that wraps must keep its longest word on one line, and any other its longest cell.
        texts = [name, *(printable(row[index].text) for row in block.rows)]
        pieces = texts if no_wrap else [word for text in texts for word in text.split()]
        min_width = max(map(cell_len, pieces), default=0)
        table.add_column(name, justify=justify, no_wrap=no_wrap, overflow="fold", min_width=min_width)

    for row in block.rows:
        table.add_row(*(shown(cell.text, "bold" if cell.bold else "") for cell in row))
    return table


def _least_width(block: TableBlock, console: Console) -> int:
    """Return the least width at which no number and no word of a table is cut."""
    unlimited = console.options.update(width=UNLIMITED_WIDTH)
    return Measurement.get(console, unlimited, _rich_table(block)).minimum


def _print_stacked(block: TableBlock, console: Console) -> None:
    """Print the rows of a table below each other."""
    console.print(shown(block.title, "table.title", keep="\n"))
    for row in block.rows:
        heading, *facts = (shown(cell.text, "bold" if cell.bold else "") for cell in row)
        for line in stacked_row(heading, zip(block.header[1:], facts, strict=True), console, console.width):
            console.print(line)


def _split_to_fit(block: TableBlock, console: Console) -> list[TableBlock]:
    """Return the table, or as few parts of it as fit the terminal."""
    unlimited = console.options.update(width=UNLIMITED_WIDTH)

    def fits(part: TableBlock) -> bool:
        width = Measurement.get(console, unlimited, _rich_table(part)).maximum
        return width <= console.options.max_width

    return block.split(fits)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the report in GitHub's Markdown, which MLflow renders, too."""
    parts = []
    for block in blocks:
        match block:
            case TableBlock():
                header = [_escape_markdown(name) for name in block.header]
                rule = ["---" if block.is_text(index) else "---:" for index in range(len(block.header))]
                rows = [header, rule, *([_markdown_cell(cell) for cell in row] for row in block.rows)]
                table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
                parts.append(f"**{_escape_markdown(one_line(block.title))}**\n\n{table}")
            case TextBlock():
                title = [f"**{_escape_markdown(block.title)}**", ""] if block.title else []
                lines = [_escape_markdown_line(line) for text in block.lines for line in text.splitlines()]
                parts.append("\n".join([*title, *(f"- {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """Return the report as elements of a page: a table or a paragraph for each block. They load nothing."""
    parts = []
    for block in blocks:
        match block:
            case TableBlock():
                header = "".join(_html_cell(block, index, Cell(name), "th") for index, name in enumerate(block.header))
                # A line for each cell. What hides a secret ends at white space and must not reach the next cell.
                rows = [
                    "\n".join(
                        ["<tr>", *(_html_cell(block, index, cell, "td") for index, cell in enumerate(row)), "</tr>"]
                    )
                    for row in block.rows
                ]
                caption = escape_html(block.title, keep="\n")
                # On a narrow screen the table scrolls, and the page does not.
                table = (
                    f'<div class="scroll"><table><caption>{caption}</caption>\n<thead><tr>{header}</tr></thead>\n'
                    f"<tbody>{chr(10).join(rows)}</tbody></table></div>"
                )
                if block.is_reference and len(rows) > MAX_OPEN_ROWS:
                    summary = f"{escape_html(block.title.splitlines()[0])}: {counted(len(rows), 'row')}"
                    table = f"<details><summary>{summary}</summary>{table}</details>"
                parts.append(table)
            case TextBlock():
                title = f"<strong>{escape_html(block.title)}</strong><br>" if block.title else ""
                lines = [escape_html(line) for text in block.lines for line in text.splitlines()]
                attribute = ' class="alarming"' if block.is_warning else ""
                parts.append(f"<p{attribute}>{title}{'<br>'.join(lines)}</p>")
    return "\n".join(parts) + "\n"


def escape_html(text: str, keep: str = "") -> str:
    """Return text of users for an element or an attribute of a page, without secrets.

    Args:
        keep: control characters that stay, such as the ends of lines.
    """
    return html.escape(printable(redact(text), keep))


FORMATS: dict[str, Callable[[Sequence[Block]], str]] = {"markdown": to_markdown, "latex": to_latex}
"""Formats of a report that are text. A page of HTML has more than the blocks: `orchestrator/report_page`."""


def to_csv(table: ResultsTable) -> str:
    """Return the numbers of the main table, one line per cell: full precision, accuracies in percent.

    Texts that a spreadsheet would compute begin with an apostrophe.
    A table with published rows has a column `protocol`: the protocol of such a row, and where it differs from ours. The
    column `draws` exists only if a score is a mean over several draws. Its `std` is over draws then.
    """
    text = io.StringIO()
    # The default line ending of csv is CRLF, which would mix with the LF of a terminal.
    writer = csv.writer(text, lineterminator="\n")
    has_protocols = any(row.protocol for row in table.rows)
    has_draws = any(score.draws > 1 for row in table.rows for score in row.scores.values())
    header = ["kind", "method", "backbone", "train_size", "column"]
    header += ["mean", "std", "seeds", "missing", "tuned", "source"]
    header += ["draws"] if has_draws else []
    header += ["protocol"] if has_protocols else []
    writer.writerow(header)

    for row in table.rows:
        for column, score in row.scores.items():
            # repr writes all digits of a float.
            std = "" if score.std is None else repr(score.std)
            tuned = "" if row.tuned is None else repr(row.tuned)
            seeds = " ".join(map(str, score.seeds))
            names = map(csv_text, (row.kind, *row.names, column))
            values = [*names, repr(score.mean), std, seeds, score.missing, tuned, csv_text(row.source)]
            values += [score.draws] if has_draws else []
            values += [csv_text(_protocol_text(row))] if has_protocols else []
            writer.writerow(values)
    return text.getvalue()


def _protocol_text(row: ResultsRow) -> str:
    """Return the protocol of a published row and where it differs from ours."""
    notes = row.notes if row.kind == "published" else ()
    return " ".join([*row.protocol, *(f"Difference from ours: {note}" for note in notes)])


def _escape_markdown(text: str) -> str:
    # Only characters with a meaning in the middle of a line: every text follows `- `, `|` or `**`.
    return re.sub(r"([\\`*_|<>\[\]&~$])", r"\\\1", printable(text))


def _escape_markdown_line(text: str) -> str:
    # After `- `, a list, a heading or a rule could begin inside of the list.
    return re.sub(r"^(\s*\d*)(?=(#{1,6}|[+-]|[.)])(\s|$)|-{3,}|=)", r"\1\\", _escape_markdown(text))


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    return f"**{text}**" if cell.bold else text


def _html_cell(block: TableBlock, index: int, cell: Cell, tag: str) -> str:
    attribute = ""
    if block.last_is_text and index == len(block.header) - 1:
        attribute = ' class="text"'
    elif index < block.names:
        attribute = ' class="name"'

    text = escape_html(cell.text)
    if tag == "th":
        # A table with many columns fits a page if the long names of columns break.
        text = re.sub("[_/]", r"\g<0><wbr>", text)
    if cell.bold:
        text = f"<b>{text}</b>"
    return f"<{tag}{attribute}>{text}</{tag}>"
