"""Every format contains the same tables and lines, with all special characters escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import pytest
from markdown_it import MarkdownIt

from orchestrator.report.blocks import Block, TableBlock, TextBlock, cells
from orchestrator.report.latex import to_latex
from orchestrator.report.render import to_csv, to_html, to_markdown
from orchestrator.report.results_table import build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.study.study import Study
from tests.orchestrator.report.formats import AWKWARD, Page, awkward, expected, of_markdown
from tests.orchestrator.report.reports import (
    FGVC,
    VTAB,
    cells_of,
    lines_of,
    printed,
    run,
    small,
    table_block,
    table_blocks,
)


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_markdown_contains_every_cell(source: str, blocks: list[Block]) -> None:
    report = blocks if source == "report" else awkward()
    assert of_markdown(to_markdown(report)) == [expected(table) for table in table_blocks(report)]


def test_markdown_reads_a_line_as_plain_text() -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(to_markdown(awkward()[1:]))
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.type for token in inline[0].children or ()][1:2] == ["strong_open"], "the title"
    assert ["".join(child.content for child in token.children or ()) for token in inline[1:]] == lines_of(awkward())


@pytest.mark.parametrize("line", AWKWARD)
def test_a_line_that_begins_like_markdown_is_one_item_of_plain_text(line: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(to_markdown([TextBlock(lines=(line,))]))
    kinds = ["bullet_list_open", "list_item_open", "paragraph_open", "inline"]
    assert [token.type for token in tokens[:4]] == kinds
    assert len(tokens) == 7
    assert "".join(child.content for child in tokens[3].children or ()) == line


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_html_contains_every_cell_and_loads_no_other_file(source: str, blocks: list[Block]) -> None:
    report = blocks if source == "report" else awkward()
    text = to_html(report)
    page = Page(text)
    assert [[[(words.strip(), bold) for words, bold in row] for row in rows] for rows in page.tables] == [
        expected(table) for table in table_blocks(report)
    ]
    sentences = [line for paragraph in page.paragraphs for line in paragraph.split("\n")]
    for line in lines_of(report):
        assert line in sentences, "escaped once"
    assert not page.tags & {"script", "link", "img", "i"}
    assert "src=" not in text and "href=" not in text


def test_a_page_folds_a_long_table_in_which_people_look_up_rows_and_no_other() -> None:
    def page(num_rows: int, *, is_reference: bool) -> str:
        rows = [cells(f"m{index}", "1.0") for index in range(num_rows)]
        table = TableBlock(title="pairs\nof <all>", header=("a", "b"), rows=rows, names=1, is_reference=is_reference)
        return to_html([table])

    assert "<details><summary>pairs: 41 rows</summary>" in page(41, is_reference=True)
    assert "<details>" not in page(40, is_reference=True) + page(41, is_reference=False)


def test_csv_contains_the_numbers_to_the_last_digit(record_url: str) -> None:
    studies = run(small(), record_url, metrics=lambda _: {"learnable/share": 1 / 3})
    board = build_results_table(studies)
    lines_read = [*csv.DictReader(io.StringIO(to_csv(board)))]
    assert len(lines_read) == sum(len(row.scores) for row in board.rows)
    lines = iter(lines_read)
    for row in board.rows:
        for column, score in row.scores.items():
            line = next(lines)
            assert (line["kind"], line["method"], line["backbone"], line["train_size"]) == (row.kind, *row.names)
            assert (line["column"], line["source"]) == (column, row.source)
            assert float(line["mean"]) == score.mean
            assert (float(line["std"]) if line["std"] else None) == score.std
            assert (float(line["tuned"]) if line["tuned"] else None) == row.tuned
            assert tuple(map(int, line["seeds"].split())) == score.seeds
            assert int(line["missing"]) == score.missing


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_a_narrow_terminal_splits_tables_and_cuts_off_no_text(width: int, wide: list[Block]) -> None:
    text = printed(wide, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for title in ("test accuracy", "peeking"):
        table = cells_of(table_block(wide, title))
        for column in (*VTAB, *FGVC):
            assert f" {column}: " in text or re.search(rf"┃ +{re.escape(column)} ┃", text), "in one piece"
        for (name, column), cell in table.items():
            if column not in ("method", "backbone", "train_size"):
                # The rows of a table of which no column fits are stacked, each number beside its name.
                stacked = f"{column}: {cell.text}" in text
                assert stacked or re.search(rf"│ +{re.escape(cell.text)} │", text), (name, column)


def test_a_table_that_fits_is_not_split(natural: list[Study]) -> None:
    assert printed(build_sections(natural), 1000).count("spt_deep, published") == 1
    parts = printed(build_sections(natural), 120).count("spt_deep, published")
    assert 1 < parts < printed(build_sections(natural), 60).count("spt_deep, published")


def test_long_names_leave_room_for_the_text_beside_them() -> None:
    """On 80 columns, what a study searches had a column of three letters beside its name and its search."""
    row = ("spt_deep (demo/shapes_loc)", "20 trials, sampler tpe, pruner asha, seed 0", "lr 0.005 to 0.05 (log); " * 4)
    block = TableBlock(
        title="what is searched",
        header=("studies", "search", "params"),
        rows=[cells(*row)],
        names=2,
        last_is_text=True,
    )
    lines = printed([block], 80).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 12
    assert any("lr 0.005 to" in line for line in lines)


@pytest.mark.parametrize("write", [printed, to_markdown, to_latex, to_html])
def test_the_end_of_a_line_in_a_title_or_a_note_is_no_letter(write: Callable[[list[Block]], str]) -> None:
    table = TableBlock(title="first\nsecond", header=("task",), rows=[cells("demo/digits")], names=1)
    note = TextBlock(title="notes", lines=("one: this\ntwo: that",))
    warning = TextBlock(lines=("failed: this\nand that",), is_warning=True)
    text = write([table, note, warning])
    for words in ("first", "second", "one: this", "two: that", "failed: this", "and that"):
        assert words in text
    for escaped in (r"first\nsecond", r"this\ntwo", r"this\nand"):
        assert escaped not in text


def test_a_terminal_prints_an_error_without_reading_it_as_markup() -> None:
    assert AWKWARD[0] in printed(awkward())
    assert "[red]" in printed([TextBlock(lines=("failed: [red]x[/red]",), is_warning=True)]), "brackets are no markup"
