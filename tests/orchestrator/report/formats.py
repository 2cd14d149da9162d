"""Readers of rendered reports, and a report of texts that each format must escape."""

from __future__ import annotations

import html.parser
import re
import unicodedata
from collections.abc import Sequence

from markdown_it import MarkdownIt
from pylatexenc import latex2text, latexwalker, macrospec  # type: ignore[import-untyped]
from pylatexenc.latexwalker import (  # type: ignore[import-untyped]
    LatexEnvironmentNode,
    LatexMacroNode,
    LatexNode,
    LatexSpecialsNode,
    LatexWalker,
)

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock
from trainer.plain_text import printable

AWKWARD = (
    r"a_b | c*d* **e** `f` [g](h) <i> \j & 50 % # $k$ {l} ~m^ n_o_ ± − — &amp; ~~p~~ é 字",
    "[me]", "[/INST]", "[red]x", ":smile:", "# one", "1. one", "7) x", "- x", "+ x", "---", "===", "```", "$a$", "$5",
    "a--b", "''x''", "``x''", "[[x]]", "<script>alert(1)</script>", "=1+1", "\\input{x}", "x\\", "%", "*x",
    "https://x.org/?a=b&c=d", "@ada", "!x", "{x", "x}", "^", "~",
    r"\\", "|", "||", "_", "*", "%", "5 < 6 > 4", "&lt;", "http://a_b.example/c_d", "~~x~~",
)  # fmt: skip
CONTROLS = ("a\nb", "\x1b[2J", "evil\u202egpj.exe", "caf\udce9", "\x07", "a\tb", "\x00", "a\x85b", "a\rb")


def awkward() -> list[Block]:
    rows: list[tuple[Cell, ...]] = [
        (Cell(text), Cell(text, bold=True), Cell("1.0 ± 0.5")) for text in AWKWARD + CONTROLS
    ]
    header = ("name_of | it", "50 % & *more*", "last")
    return [
        TableBlock(title="a_title *with* 50 %\nand <b>", header=header, rows=rows, names=1),
        TextBlock(title="reproducibility", lines=tuple(f"failed: {text}" for text in AWKWARD), is_warning=True),
    ]


Rows = list[list[tuple[str, bool]]]
"""Texts of a table's cells, and whether they are bold."""


def expected(table: TableBlock) -> Rows:
    return [
        [(name, False) for name in table.header],
        *([(printable(cell.text).strip(), cell.bold) for cell in row] for row in table.rows),
    ]


def of_markdown(text: str) -> list[Rows]:
    tables: list[Rows] = []
    for token in (reader := iter(MarkdownIt("gfm-like", {"linkify": False}).parse(text))):
        match token.type:
            case "table_open":
                tables.append([])
            case "tr_open":
                tables[-1].append([])
            case "th_open" | "td_open":
                inline = next(reader)
                kinds = [child.type for child in inline.children or ()]
                assert {*kinds} <= {"text", "strong_open", "strong_close"}, "text is taken for nothing else"
                words = "".join(child.content for child in inline.children or ())
                tables[-1][-1].append((words, "strong_open" in kinds))
    return tables


MACROS = latexwalker.get_default_latex_context_db()
MACROS.add_context_category(
    "report",
    prepend=True,
    macros=[macrospec.std_macro(name, "{" * number) for name, number in (("tnote", 1), ("sptuneletter", 2))],
    environments=[
        macrospec.std_environment("tabular*", "{{"),
        macrospec.std_environment("threeparttable", ""),
        macrospec.std_environment("tablenotes", "["),
    ],
)


def _grave(node: LatexMacroNode, l2tobj: latex2text.LatexNodes2Text) -> str:
    letter = l2tobj.nodelist_to_text(node.nodeargd.argnlist)
    return unicodedata.normalize("NFC", f"{letter}\N{COMBINING GRAVE ACCENT}") if letter else "`"


TEXTS = latex2text.get_default_latex_context_db()
TEXTS.add_context_category(
    "report",
    prepend=True,
    macros=[
        latex2text.MacroTextSpec("tnote", " [%s]"),
        latex2text.MacroTextSpec("textbar", "|"),
        latex2text.MacroTextSpec("textasciicircum", "^"),
        # The only accent that stands on nothing.
        latex2text.MacroTextSpec("`", _grave),
        latex2text.MacroTextSpec(
            "sptuneletter", lambda node: chr(int(node.nodeargd.argnlist[0].latex_verbatim().strip("{}")))
        ),
    ],
)


def latex_nodes(text: str) -> list[LatexNode]:
    """Parse a whole file, which raises if braces, environments or formulas are not balanced."""
    nodes: list[LatexNode] = LatexWalker(text, MACROS, tolerant_parsing=False).get_latex_nodes()[0]
    return nodes


def latex_text(nodes: Sequence[LatexNode]) -> str:
    """Return what a reader of the paper sees."""
    reader = latex2text.LatexNodes2Text(TEXTS, math_mode="text", strict_latex_spaces=True)
    text: str = reader.nodelist_to_text(nodes)
    return text.strip()


def of_latex(text: str) -> list[Rows]:
    tables: list[Rows] = []

    def walk(nodes: Sequence[LatexNode]) -> None:
        for node in nodes:
            if isinstance(node, LatexEnvironmentNode) and node.environmentname == "tabular*":
                tables.append(rows_of(node))
            elif getattr(node, "nodelist", None):
                walk(node.nodelist)

    walk(latex_nodes(text))
    return tables


def rows_of(tabular: LatexEnvironmentNode) -> Rows:
    # @{...} is no column, >{...} belongs to the next one, and p{...} is one.
    kinds = re.sub(r"[@>]?\{(?:[^{}]|\{[^{}]*\})*\}", "", tabular.nodeargd.argnlist[1].latex_verbatim()[1:-1])
    kinds = kinds.replace("@", "").replace(">", "")
    assert {*kinds} <= {*"lrp"}
    rows: Rows = [[]]
    entry: list[LatexNode] = []

    def end() -> None:
        rows[-1].append((latex_text(entry), any(getattr(node, "macroname", "") == "textbf" for node in entry)))
        entry.clear()

    begun = False
    for node in tabular.nodelist:
        if isinstance(node, LatexMacroNode) and node.macroname in ("toprule", "midrule", "bottomrule"):
            begun = True
        elif isinstance(node, LatexSpecialsNode) and node.specials_chars == "&":
            end()
        elif isinstance(node, LatexMacroNode) and node.macroname == "\\":
            end()
            rows.append([])
        elif begun:
            entry.append(node)
    assert rows.pop() == [], "each row is ended"
    assert {len(row) for row in rows} == {len(kinds)}, "as many entries as the tabular has columns"
    return rows


class Page(html.parser.HTMLParser):
    """Tables and paragraphs of a page whose tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tables: list[Rows] = []
        self.paragraphs: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "br":
            self.paragraphs[-1] += "\n"
        if tag in ("br", "meta", "wbr"):
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(("", False))
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & {*self.open}:
            words, bold = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (words + data, bold or "b" in self.open)
        elif "p" in self.open:
            self.paragraphs[-1] += data
