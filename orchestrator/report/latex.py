r"""Rendering of a report as LaTeX, for `\input` in a paper.

The file is in ASCII and compiles with every engine. Accents are TeX's own commands. pdfTeX has no fonts for other
letters, so it prints their code points; LuaTeX and XeTeX print the letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock, one_line
from trainer.catalog import METHODS
from trainer.plain_text import printable

SYMBOLS = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "—": "---",
    "–": "--",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
    "`": r"\`{}",
    "|": r"\textbar{}",
    "\N{NO-BREAK SPACE}": "~",
    # After the end of a row, these would be an argument of the end.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
"""Characters that mean something else in LaTeX, or that are not in ASCII, with their commands."""
ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": r"\`",
    "\N{COMBINING ACUTE ACCENT}": r"\'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": r"\^",
    "\N{COMBINING TILDE}": r"\~",
    "\N{COMBINING DIAERESIS}": r"\"",
    "\N{COMBINING RING ABOVE}": r"\r",
    "\N{COMBINING CEDILLA}": r"\c",
    "\N{COMBINING CARON}": r"\v",
    "\N{COMBINING BREVE}": r"\u",
    "\N{COMBINING MACRON}": r"\=",
    "\N{COMBINING DOT ABOVE}": r"\.",
    "\N{COMBINING DOUBLE ACUTE ACCENT}": r"\H",
}
"""Accents that the fonts of every LaTeX have."""
PREAMBLE = r"% The preamble of the paper needs \usepackage{array,booktabs,threeparttable}."
LETTER = r"""% pdfTeX prints the code points of letters that its fonts lack. LuaTeX and XeTeX print the letters.
\ifdefined\Umathchar
\providecommand{\sptuneletter}[2]{\symbol{#1}}
\else
\providecommand{\sptuneletter}[2]{#2}
\fi"""
LINE_CHARACTERS = 80
"""Characters in small print that a line of a paper with one column of text has room for."""
GAP_CHARACTERS = 2
"""Room between two columns of a table."""
METHOD_COLUMNS = ("method", "methods", "studies")
WORDS = ("linear", "full", "bias", "adapter")
"""Methods whose names are words of a sentence, too."""
METHOD = re.compile(rf"(?<![\w/.-])({'|'.join(METHODS)})(?![\w/.-])")


def to_latex(blocks: Sequence[Block]) -> str:
    r"""Return tables for a paper, to `\input`. The first line names the packages that the preamble needs."""
    parts: list[str] = []
    labels: set[str] = set()
    for index, block in enumerate(blocks):
        match block:
            case TableBlock():
                notes = _notes_after(blocks, index)
                parts += _tables(block, notes, labels)
            case TextBlock() if not _is_note(blocks, index):
                parts.append(_paragraph(block))

    text = "\n\n".join(parts)
    head = [PREAMBLE, LETTER] if r"\sptuneletter" in text else [PREAMBLE]
    return "\n".join(head) + f"\n\n{text}\n"


def _is_note(blocks: Sequence[Block], index: int) -> bool:
    """Return whether a block is a note of a table that stands before it, with only notes between them."""
    block = blocks[index]
    if index == 0 or isinstance(block, TableBlock) or not block.is_note:
        return False
    return isinstance(blocks[index - 1], TableBlock) or _is_note(blocks, index - 1)


def _notes_after(blocks: Sequence[Block], index: int) -> list[TextBlock]:
    notes = []
    for later in range(index + 1, len(blocks)):
        block = blocks[later]
        if isinstance(block, TableBlock) or not _is_note(blocks, later):
            break
        notes.append(block)
    return notes


def _paragraph(block: TextBlock) -> str:
    title = f"\\textbf{{{_escape(block.title)}}}\\\\\n" if block.title else ""
    lines = [line for text in block.lines for line in text.splitlines()]
    # A warning may quote a file or a key, which must stay as it is.
    shown = [_escape(line) if block.is_warning else _sentence(line) for line in lines]
    # Braces keep the small font inside the paragraph.
    return "\\noindent{\\footnotesize\\raggedright\n" + title + "\\\\\n".join(shown) + "\\par}"


def _tables(block: TableBlock, notes: Sequence[TextBlock], labels: set[str]) -> Iterator[str]:
    """Yield a table, or the parts of one that is wider than a line. The last part has the notes."""
    parts = block.split(lambda part: sum(_widths(part)) <= LINE_CHARACTERS)
    name = _label(block.title, labels)
    marks = {mark for note in notes for line in note.lines if (mark := _marked(line)[0])}
    caption = _escape(one_line(block.title).rstrip("."))

    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        label = name if number == 1 else f"{name}-{number}"
        of_parts = f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        where = "" if is_last or not notes else f" The notes are under Table~\\ref{{{name}-{len(parts)}}}."
        lines = [
            r"\begin{table}",
            r"\begin{threeparttable}",
            f"\\caption{{{caption}{of_parts}.{where}}}",
            f"\\label{{{label}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            f"\\begin{{tabular*}}{{\\linewidth}}{{@{{\\extracolsep{{\\fill}}}}{_columns(part)}@{{}}}}",
            r"\toprule",
            " & ".join(map(_escape, part.header)) + r" \\",
            r"\midrule",
            *(_row(part, row, marks) for row in part.rows),
            r"\bottomrule",
            r"\end{tabular*}",
            *(_tablenotes(notes) if is_last else ()),
            r"\end{threeparttable}",
            r"\end{table}",
        ]
        yield "\n".join(lines)


def _label(title: str, labels: set[str]) -> str:
    """Return a label that no other table of the file has, and add it to them."""
    words = re.findall(r"[a-z]+", title.partition("\n")[0].partition(",")[0].lower())
    label = f"tab:{'-'.join(words) or 'sptune'}"
    while label in labels:
        label += "-more"
    labels.add(label)
    return label


def _widths(block: TableBlock) -> list[int]:
    """Return the characters that each column takes, with the gap beside it."""
    texts = [block.header, *([cell.text for cell in row] for row in block.rows)]
    return [max(map(len, column)) + GAP_CHARACTERS for column in zip(*texts, strict=True)]


def _columns(block: TableBlock) -> str:
    """Return the types of the columns. Where a table is too wide, the text of its text columns wraps."""
    widths = _widths(block)
    text_columns = [index for index in range(len(widths)) if block.is_text(index)]
    room = LINE_CHARACTERS - sum(widths[index] for index in range(len(widths)) if index not in text_columns)
    needed = sum(widths[index] for index in text_columns)

    kinds = []
    for index, width in enumerate(widths):
        if index not in text_columns:
            kinds.append("r")
        elif needed <= room:
            kinds.append("l")
        else:
            # A short column keeps its width, so that a name does not wrap.
            share = (max(room, LINE_CHARACTERS // 4) * width / needed - GAP_CHARACTERS) / LINE_CHARACTERS
            kinds.append(f">{{\\raggedright\\arraybackslash}}p{{{share:.2f}\\linewidth}}")
    return "".join(kinds)


def _row(block: TableBlock, row: Sequence[Cell], marks: Collection[str]) -> str:
    texts = []
    for index, cell in enumerate(row):
        text, mark = _split_mark(cell.text, marks) if index == 0 else (cell.text, "")
        is_method = block.header[index] in METHOD_COLUMNS
        if not block.is_text(index):
            # A number has a minus sign, not a hyphen.
            text = re.sub(r"^-(?=\d)", "−", text)

        # A row that belongs to the row above is indented.
        indent = r"\quad " if text.startswith("  ") else ""
        shown = indent + _escape(_paper_names(text) if is_method else text)
        if cell.bold:
            shown = f"\\textbf{{{shown}}}"
        texts.append(f"{shown}\\tnote{{{mark}}}" if mark else shown)
    return " & ".join(texts) + r" \\"


def _tablenotes(notes: Sequence[TextBlock]) -> list[str]:
    if not notes:
        return []

    items = []
    for note in notes:
        if note.title:
            items.append(f"\\item {_escape(note.title)}:")
        for line in note.lines:
            mark, text = _marked(line)
            label = f"[{mark}]" if mark else ""
            items += [f"\\item{label} {_sentence(sentence)}" for sentence in text.splitlines()]
    return [r"\begin{tablenotes}[flushleft]", r"\footnotesize", *items, r"\end{tablenotes}"]


def _marked(line: str) -> tuple[str, str]:
    """Return the mark of a note, empty if it has none, and its text."""
    match = re.match(r"\[([a-z]+)\] ", line)
    return (match[1], line[match.end() :]) if match else ("", line)


def _split_mark(text: str, marks: Collection[str]) -> tuple[str, str]:
    """Return the text of a cell, and the mark of the note that explains it."""
    match = re.search(r" \[([a-z]+)\]$", text)
    return (text[: match.start()], match[1]) if match and match[1] in marks else (text, "")


def _paper_names(text: str) -> str:
    return METHOD.sub(lambda match: METHODS[match[1]].paper_name, text)


def _sentence(text: str) -> str:
    """Return a sentence of ours with the names of methods as papers print them. Words such as `full` stay words."""
    names = METHOD.sub(lambda match: match[1] if match[1] in WORDS else METHODS[match[1]].paper_name, text)
    return _escape(names)


def _escape(text: str) -> str:
    # Two hyphens or apostrophes would become one other sign.
    pieces = re.split(r"(?<=['-])(?=['-])", printable(unicodedata.normalize("NFC", text)))
    return "{}".join("".join(map(_escape_character, piece)) for piece in pieces)


def _escape_character(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    if character.isascii():
        return character

    letter, *accents = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and len(accents) == 1 and accents[0] in ACCENTS:
        # An accent takes the place of the dot.
        base = f"\\{letter}" if letter in "ij" else letter
        return f"{ACCENTS[accents[0]]}{{{base}}}"

    return f"\\sptuneletter{{{ord(character)}}}{{U+{ord(character):04X}}}"
