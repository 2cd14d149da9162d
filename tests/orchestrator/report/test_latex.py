r"""LaTeX for a paper: whole tables with notes, names as papers print them, and letters that every engine takes.

No engine is needed: a parser reads the files. Where one is installed, it compiles them, too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock, cells
from orchestrator.report.latex import to_latex
from tests.orchestrator.report.formats import AWKWARD, Rows, awkward, expected, latex_nodes, latex_text, of_latex
from tests.orchestrator.report.reports import lines_of, table_blocks
from trainer.catalog import METHODS, TASKS

PREAMBLE = r"\documentclass{article}\usepackage{array,booktabs,threeparttable}\begin{document}"
PAPER_NAMES = {
    "spt_deep": "SPT-Deep", "spt_shallow": "SPT-Shallow", "vpt_deep": "VPT-Deep", "vpt_shallow": "VPT-Shallow",
    "linear": "Linear", "full": "Full", "bias": "Bias", "adapter": "Adapter", "partial_1": "Partial-1", "lora": "LoRA",
    "ssf": "SSF", "gate_vpt": "GateVPT", "vfpt": "VFPT", "bpt_shallow": "BPT-Shallow", "bpt_deep": "BPT-Deep",
    "gate_vpt_prototypes": "GateVPT from prototypes", "e2vpt_unpruned": "Unpruned E2VPT",
    "e2vpt_unpruned_prototypes": "Unpruned E2VPT from prototypes",
}  # fmt: skip
KNOWN = frozenset(
    re.findall(r"\w+", """
    begin end caption label ref footnotesize setlength tabcolsep linewidth extracolsep fill toprule midrule
    bottomrule raggedright arraybackslash tnote item textbf noindent par quad textbackslash textasciitilde
    textasciicircum textbar textquoteleft textquoteright textquotedblleft textquotedblright ldots pm times cdot
    circ mu ss ae AE oe OE o O l L i j r c v u H sptuneletter providecommand symbol ifdefined Umathchar else fi
    usepackage
    """)
)  # fmt: skip
"""Commands of the LaTeX kernel with its first font encoding, of array, booktabs and threeparttable, and our own."""


def in_one(parts: Sequence[Rows], block: TableBlock) -> Rows:
    """The table of these parts: each repeats the text columns."""
    first, *others = parts
    return [
        [*row, *(cell for part in others for cell in part[index][block.names :])] for index, row in enumerate(first)
    ]


def as_printed(block: TableBlock) -> Rows:
    """The cells of a table as a paper shows them."""
    rows = []
    for index, row in enumerate(expected(block)):
        shown = []
        for name, (words, bold) in zip(block.header, row, strict=True):
            if index and name in ("method", "methods", "studies"):
                shown.append((re.sub(r"\b(\w+)\b", lambda word: PAPER_NAMES.get(word[1], word[1]), words), bold))
            else:
                shown.append((words, bold))
        rows.append(shown)
    return rows


def without_spaces(rows: Rows) -> Rows:
    return [[(re.sub(r"\s+", "", words.replace("−", "-")), bold) for words, bold in row] for row in rows]


def num_parts(text: str) -> list[int]:
    """Number of parts of each table."""
    parts = [re.search(r"\(part (\d+) of (\d+)\)", caption) for caption in re.findall(r"\\caption\{(.*)\}\n", text)]
    return [int(part[2]) if part else 1 for part in parts if part is None or part[1] == "1"]


def test_latex_has_every_cell_with_the_names_and_the_bold_of_the_report(blocks: list[Block]) -> None:
    text = to_latex(blocks)
    tables = iter(of_latex(text))
    for block, number in zip(table_blocks(blocks), num_parts(text), strict=True):
        table = in_one([next(tables) for _ in range(number)], block)
        assert without_spaces(table) == without_spaces(as_printed(block)), block.title
    assert next(tables, None) is None


def test_latex_shows_special_characters_as_they_are() -> None:
    (table,) = of_latex(to_latex(awkward()))
    shown = without_spaces(table)
    for row, wanted in zip(shown, without_spaces(expected(table_blocks(awkward())[0])), strict=True):
        assert [bold for _, bold in row] == [bold for _, bold in wanted]
        for (words, _), (plain, _) in zip(row, wanted, strict=True):
            assert words == plain


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_latex_uses_ascii_and_what_every_engine_knows(source: str, blocks: list[Block]) -> None:
    text = to_latex(blocks if source == "report" else awkward())
    assert text.isascii()
    assert r"\resizebox" not in text
    assert {*re.findall(r"\\([A-Za-z]+)", re.sub(r"\\\\", "", text))} <= KNOWN
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"\{#[12]\}|\{#2\}", "", text).replace(r"\symbol{#1}", ""))

    # Each label once, after its caption, and each reference to one of them.
    labels = re.findall(r"\\caption\{.*\}\n\\label\{([a-z0-9:-]+)\}\n", text)
    assert len({*labels}) == len(labels) == text.count(r"\label") == text.count(r"\begin{table}")
    assert {*re.findall(r"\\ref\{(.*?)\}", text)} <= {*labels}


def test_notes_stand_under_their_table_and_marks_point_to_them(blocks: list[Block]) -> None:
    text = to_latex(blocks)
    main = text[: text.index(r"\end{tablenotes}")]
    notes = main[main.index(r"\begin{tablenotes}") :]
    assert {*re.findall(r"\\tnote\{(\w+)\}", main)} == {*re.findall(r"\\item\[(\w+)\] ", notes)} != set()
    assert r"\item Values are mean $\pm$ std over seeds" in notes
    assert r"\item Bold: not significantly worse (5 \%)" in notes

    # The rest is text outside of the floats, and a warning quotes what it is about.
    floats = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)
    assert not any("Trials: " in each or "failed: " in each for each in floats)
    assert r"failed: vtab/dtd spt\_deep" in text
    assert "SPT-Deep 0.5 beats full fine-tuning" in text


def test_every_line_of_a_report_can_be_read(blocks: list[Block]) -> None:
    shown = re.sub(r"\s+", "", latex_text(latex_nodes(to_latex(blocks))))
    for line in lines_of(blocks):
        words = re.sub(r"^\[\w+\] ", "", line)
        if not words.startswith(("failed: ", "missing: ")):
            names = "|".join(PAPER_NAMES.keys() - {"linear", "full", "bias", "adapter"})
            words = re.sub(rf"(?<![\w/.-])({names})(?![\w/.-])", lambda name: PAPER_NAMES[name[1]], words)
        assert re.sub(r"\s+", "", words).replace("−", "-") in shown


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("Müller", r"M\"{u}ller"),
        ("façade à Łódź", r"fa\c{c}ade \`{a} \L{}\'{o}d\'{z}"),
        ("naïve", r"na\"{\i}ve"),
        ("Straße – Smørrebrød", r"Stra\ss{}e -- Sm\o{}rrebr\o{}d"),
        ("“x”", r"\textquotedblleft{}x\textquotedblright{}"),
        ("学", r"\sptuneletter{23398}{U+5B66}"),
        ("Ж", r"\sptuneletter{1046}{U+0416}"),
        ("e\N{COMBINING ACUTE ACCENT}", r"\'{e}"),
        ("ế", r"\sptuneletter{7871}{U+1EBF}"),
    ],
)
def test_letters_are_written_in_ascii(name: str, latex: str) -> None:
    table = TableBlock(title="names", header=("task", "test"), rows=[(Cell(name), Cell("-1.0", bold=True))], names=1)
    text = to_latex([table])
    assert f"\n{latex} & \\textbf{{$-$1.0}} \\\\\n" in text
    # Only a file that needs the command defines it.
    assert (r"\providecommand{\sptuneletter}" in text) == (r"\sptuneletter{" in latex)


def test_words_and_tasks_that_are_named_like_methods_stay_as_they_are() -> None:
    table = TableBlock(
        title="one", header=("task", "method"), rows=[cells("own/full", "full"), cells("linear", "linear, published")],
        names=2,
    )  # fmt: skip
    text = to_latex([table, TextBlock(lines=("spt_deep beats full fine-tuning; not own/spt_deep",), is_note=True)])
    assert "own/full & Full \\\\\nlinear & Linear, published" in text
    assert r"\item SPT-Deep beats full fine-tuning; not own/spt\_deep" in text


def test_a_table_that_is_too_wide_is_split_or_wraps() -> None:
    tasks = [f"vtab/a_long_name_{number}" for number in range(19)]
    numbers = TableBlock(
        title="test accuracy", header=("method", *tasks), rows=[cells("spt_deep", *["89.5 ± 0.5"] * 19)], names=1,
        spans=(7, 4, 8),
    )  # fmt: skip
    text = to_latex([numbers])
    parts = of_latex(text)
    assert num_parts(text) == [len(parts)]
    assert in_one(parts, numbers) == as_printed(numbers)
    for rows in parts:
        assert sum(max(len(row[index][0]) for row in rows) + 2 for index in range(len(rows[0]))) <= 80

    words = TableBlock(
        title="chosen", header=("task", "val", "params"), rows=[cells("vtab/dtd", "1.0", "lr 0.1, " * 40)], names=1,
        last_is_text=True,
    )  # fmt: skip
    widths = [float(width) for width in re.findall(r"p\{([0-9.]+)\\linewidth\}", to_latex([words]))]
    assert len(widths) == 2 and 0.8 < sum(widths) < 1


@pytest.mark.parametrize("engine", ["pdflatex", "lualatex", "xelatex"])
def test_latex_compiles(engine: str, blocks: list[Block], tmp_path: Path) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    assert repr(AWKWARD[0])[1:-1] in str(blocks), "with letters of other scripts"
    (tmp_path / "report.tex").write_text(f"{PREAMBLE}\n{to_latex(blocks)}\n\\end{{document}}\n", encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_no_table_of_numbers_is_wider_than_a_line_of_a_paper(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    tasks = [name for name in TASKS if name.startswith("vtab/")]
    accuracies = TableBlock(
        title="test accuracy", header=("method", "tuned %", *tasks), names=1, spans=(1, 7, 4, 8),
        rows=[cells(method, "0.638", *["97.0 ± 0.9"] * 19) for method in METHODS],
    )  # fmt: skip
    columns = ("methods", "difference", "better on", "p over tasks", "p over seeds, same search")
    pairs = TableBlock(
        title="between methods", header=columns, names=1,
        rows=[cells("spt_shallow − vpt_shallow", "−12.0", "10 of 19", "needs 8 tasks", "0.698 (2)")],
    )  # fmt: skip
    (tmp_path / "report.tex").write_text(f"{PREAMBLE}\n{to_latex([accuracies, pairs])}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "report.tex"]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    # A point or two are not seen.
    assert [width for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(width) > 2] == []
