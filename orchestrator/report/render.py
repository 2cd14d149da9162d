"""A report as a terminal, Markdown, LaTeX or HTML shows it, and its numbers as CSV."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock
from orchestrator.report.results_table import ResultsTable

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "—": "---",
    "<": "$<$",
    ">": "$>$",
}
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; margin: 1.5em 0 .5em }
caption { text-align: left; white-space: pre-line; color: #555 }
th, td { padding: .2em .8em; text-align: right; white-space: nowrap } tr > .name { text-align: left }
td.text { text-align: left; white-space: normal } thead th { border-bottom: 1px solid #222 }
tbody tr:last-child td { border-bottom: 1px solid #222 } p.alarming { color: #a00 }"""


def print_blocks(blocks: Sequence[Block], console: Console) -> None:
    """Show a report in a terminal; a table that is too wide for it is parted between groups of columns."""
    for block in blocks:
        match block:
            case TableBlock():
                for part in _parted(block, console):
                    console.print(_rich(part))
            case TextBlock():
                if block.title:
                    console.print(Text(block.title, style="bold"))
                for line in block.lines:
                    kind, colon, rest = line.partition(":")
                    told = Text.assemble((kind, "red"), colon, rest) if block.is_warning else Text(line)
                    console.print(told)


def _rich(grid: TableBlock) -> Table:
    """A table in which nothing is cut: with spans no entry is broken either, for `_parted` sees to the width."""
    table = Table(title=grid.title)
    for place, name in enumerate(grid.header):
        justify: Literal["left", "right"] = "left" if _is_text(grid, place) else "right"
        broken = grid.last_is_text and place == len(grid.header) - 1
        longest = max((len(word) for row in grid.rows for word in row[place].text.split()), default=0)
        whole = bool(grid.spans) or (grid.last_is_text and not broken)
        table.add_column(name, justify=justify, no_wrap=whole, overflow="fold", min_width=longest if broken else None)
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style="bold" if cell.bold else "") for cell in row))
    return table


def _parted(grid: TableBlock, console: Console) -> list[TableBlock]:
    """The grid, or where it is too wide as few as fit: parted between its spans, within those that are too wide."""
    unlimited = console.options.update(width=1_000_000)

    def part(columns: Sequence[int]) -> TableBlock:
        kept = [*range(grid.names), *columns]
        rows = [tuple(row[place] for place in kept) for row in grid.rows]
        header = tuple(grid.header[place] for place in kept)
        return dataclasses.replace(grid, header=header, rows=rows, spans=(len(columns),))

    def fits(columns: Sequence[int]) -> bool:
        return Measurement.get(console, unlimited, _rich(part(columns))).maximum <= console.options.max_width

    numbers = [*range(grid.names, len(grid.header))]
    if not grid.spans or fits(numbers):
        return [grid]
    parts: list[list[int]] = [[]]
    for span in grid.spans:
        own, numbers = numbers[:span], numbers[span:]
        for together in [own] if fits(own) else [[place] for place in own]:
            if parts[-1] and not fits([*parts[-1], *together]):
                parts.append([])
            parts[-1] += together
    return [part(columns) for columns in parts]


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown, which MLflow shows too."""
    parts = []
    for block in blocks:
        match block:
            case TableBlock():
                rule = ["---" if _is_text(block, place) else "---:" for place in range(len(block.header))]
                rows = [[*map(_escaped, block.header)], rule, *([_marked(cell) for cell in row] for row in block.rows)]
                table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
                parts.append(f"**{_escaped(_one_line(block.title))}**\n\n{table}")
            case TextBlock():
                lines = [_escaped(line) for text in block.lines for line in text.splitlines()]
                title = [f"**{block.title}**", ""] if block.title else []
                parts.append("\n".join([*title, *(f"- {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def to_latex(blocks: Sequence[Block]) -> str:
    r"""Tables for a paper: `\input` it; the preamble needs booktabs and graphicx."""
    parts = [r"% needs \usepackage{booktabs,graphicx}"]
    for block in blocks:
        match block:
            case TableBlock():
                kinds = "".join("l" if _is_text(block, place) else "r" for place in range(len(block.header)))
                rows = [" & ".join(map(_tex, block.header)) + r" \\ \midrule"]
                rows += [" & ".join(map(_tex_cell, row)) + r" \\" for row in block.rows]
                body = "\n".join(rows)
                parts.append(
                    "\\begin{table}\n\\caption{" + _tex(_one_line(block.title)) + "}\n\\resizebox{\\linewidth}{!}{%\n"
                    f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{table}}"
                )
            case TextBlock():
                title = f"\\textbf{{{_tex(block.title)}}}\\\\\n" if block.title else ""
                lines = [_tex(line) for text in block.lines for line in text.splitlines()]
                parts.append("\\noindent{\\footnotesize\n" + title + "\\\\\n".join(lines) + "}\n")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """One HTML page that needs nothing else."""
    parts = []
    for block in blocks:
        match block:
            case TableBlock():
                head = "".join(_html_cell(block, p, Cell(name), "th") for p, name in enumerate(block.header))
                rows = [
                    f"<tr>{''.join(_html_cell(block, place, cell, 'td') for place, cell in enumerate(row))}</tr>"
                    for row in block.rows
                ]
                parts.append(
                    f"<table><caption>{html.escape(block.title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
                    f"<tbody>{chr(10).join(rows)}</tbody></table>"
                )
            case TextBlock():
                lines = [html.escape(line) for text in block.lines for line in text.splitlines()]
                title = f"<strong>{html.escape(block.title)}</strong><br>" if block.title else ""
                kind = ' class="alarming"' if block.is_warning else ""
                parts.append(f"<p{kind}>{title}{'<br>'.join(lines)}</p>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>sptune report</title>\n<style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


FORMATS: dict[str, Callable[[Sequence[Block]], str]] = {"markdown": to_markdown, "latex": to_latex, "html": to_html}
"""How a report can be written beside a terminal's way."""


def to_csv(board: ResultsTable) -> str:
    """The numbers of the main table, a line a cell: full precision, accuracies in per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["kind", "method", "backbone", "train_size", "column", "mean", "std", "seeds", "missing", "tuned", "source"]
    )
    for row in board.rows:
        for column, score in row.scores.items():
            seeds = " ".join(map(str, score.seeds))
            std, tuned = ("" if value is None else repr(value) for value in (score.std, row.tuned))
            entries = [row.kind, *row.names, column, repr(score.mean), std, seeds, score.missing, tuned, row.source]
            writer.writerow(entries)
    return text.getvalue()


def _is_text(grid: TableBlock, place: int) -> bool:
    return place < grid.names or (grid.last_is_text and place == len(grid.header) - 1)


def _one_line(text: str) -> str:
    return "; ".join(part for part in text.splitlines() if part)


def _escaped(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_|<>\[\]&~])", r"\\\1", text)


def _marked(cell: Cell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.bold else text


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    return f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)


def _html_cell(grid: TableBlock, place: int, cell: Cell, tag: str) -> str:
    last = grid.last_is_text and place == len(grid.header) - 1
    kind = ' class="text"' if last else ' class="name"' if place < grid.names else ""
    text = f"<b>{html.escape(cell.text)}</b>" if cell.bold else html.escape(cell.text)
    return f"<{tag}{kind}>{text}</{tag}>"
