"""Places in a YAML file: the line and column of a key, and the line itself with carets below the key and its value."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator

import yaml

from orchestrator.errors import Problem
from orchestrator.redaction import has_secret, redact
from trainer.plain_text import printable

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What ends a line for PyYAML."""
MAX_WIDTH = 100
"""Most characters of a line that are shown."""
CUT = "..."

Span = tuple[int, int, int]
"""Line and first column, from 0, and the column after the last one."""


class SourceText:
    """The text of a YAML file.

    Args:
        content: the bytes of the file, in an encoding that PyYAML recognizes.
    """

    def __init__(self, content: bytes) -> None:
        encoding = "utf-8"
        if content.startswith(codecs.BOM_UTF16_LE):
            encoding = "utf-16-le"
        elif content.startswith(codecs.BOM_UTF16_BE):
            encoding = "utf-16-be"

        text = content.decode(encoding, errors="replace").removeprefix("\ufeff")
        self._lines = LINE_BREAK.split(text)
        self._root: yaml.Node | None = None
        self._hidden: set[int] | None = None

    @property
    def written(self) -> str:
        """The text as its author wrote it, comments included."""
        return "\n".join(self._lines)

    def set_root(self, root: yaml.Node) -> None:
        """Set the node of the whole document, by which `locate` finds keys."""
        self._root = root

    def locate(self, text: str) -> Problem:
        """Return a problem with the place of the key that its sentence begins with.

        If the key is not in the file, the place is that of the part that it belongs to.
        """
        return self.at(text, *_span_of(self._root, text))

    def at_node(self, text: str, node: yaml.Node) -> Problem:
        """Return a problem with the place of a node."""
        return self.at(text, *_span(node.start_mark, node.end_mark))

    def at_mark(self, text: str, mark: yaml.Mark | None) -> Problem:
        """Return a problem with the place of one character, or none if it has no place."""
        return Problem(text) if mark is None else self.at(text, mark.line, mark.column, mark.column + 1)

    def at(self, text: str, line: int, start: int, end: int) -> Problem:
        """Return a problem with a place. Line and columns count from 0, and the last one is not included."""
        return Problem(text, line + 1, start + 1, self._excerpt(line, start, end))

    def _excerpt(self, line: int, start: int, end: int) -> str:
        """Return three lines as compilers print them; an empty text for a line that holds a secret, or nothing."""
        source = self._lines[line] if line < len(self._lines) else ""
        if not source.strip() or line in self._secret_lines():
            return ""

        # Of a long line, the part around the place.
        first = max(0, min(start - MAX_WIDTH // 3, len(source) - MAX_WIDTH))
        head = CUT if first else ""
        tail = CUT if first + MAX_WIDTH < len(source) else ""
        last = min(end, first + MAX_WIDTH)

        before = head + _shown(source[first:start])
        marked = _shown(source[start:last])
        after = _shown(source[max(start, last) : first + MAX_WIDTH]) + tail
        number = f"{line + 1}"
        margin = " " * len(number)
        carets = " " * _width(before) + "^" * max(1, _width(marked))
        return f"{margin} |\n{number} | {before}{marked}{after}".rstrip() + f"\n{margin} | {carets}"

    def _secret_lines(self) -> set[int]:
        if self._hidden is None:
            self._hidden = {index for index, line in enumerate(self._lines) if redact(line) != line}
            # A value is read to its end: a password may have spaces or end in another line.
            for node in nodes_of(self._root):
                if isinstance(node, yaml.ScalarNode) and has_secret(str(node.value)):
                    self._hidden |= {*range(node.start_mark.line, node.end_mark.line + 1)}
        return self._hidden


def nodes_of(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Yield each node once, however many aliases it has."""
    waiting = [] if root is None else [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += _children(node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _span_of(root: yaml.Node | None, sentence: str) -> Span:
    """Return the place of the key that a sentence begins with, such as `space.lr.low: must be a number`."""
    span = (0, 0, 1)
    node = root
    rest = sentence
    if node is not None:
        span = (node.start_mark.line, node.start_mark.column, node.start_mark.column + 1)

    while node is not None and rest:
        child = _child(node, rest)
        if child is None:
            break
        node, span, rest = child

    return span


def _child(node: yaml.Node, rest: str) -> tuple[yaml.Node, Span, str] | None:
    """Return the child that a path begins with, its place, and the rest of the path; None if there is no such child.

    Args:
        rest: keys joined by dots, ended by a colon, such as `backbones.vit_base_patch16_224.mae.gpus: must be`.
    """
    if isinstance(node, yaml.SequenceNode):
        match = re.match(r"(\d+)([.:])", rest)
        if match is None or int(match[1]) >= len(node.value):
            return None
        child = node.value[int(match[1])]
        return child, _span(child.start_mark, child.end_mark), rest[match.end() :] if match[2] == "." else ""

    if not isinstance(node, yaml.MappingNode):
        return None

    # Keys may have dots, so the longest one counts. Of equal ones, PyYAML takes the last.
    matches = [(str(key.value), key, value) for key, value in node.value if _begins_with(rest, str(key.value))]
    if not matches:
        return None
    longest = max(len(name) for name, _, _ in matches)
    name, key, value = [match for match in matches if len(match[0]) == longest][-1]

    # The whole entry if it is on one line, else its key. The value of an alias stands elsewhere.
    is_beside = value.start_mark.index >= key.end_mark.index and value.end_mark.line == key.start_mark.line
    end = value.end_mark if is_beside else key.end_mark
    tail = rest[len(name) :]
    return value, _span(key.start_mark, end), tail[1:] if tail.startswith(".") else ""


def _begins_with(path: str, key: str) -> bool:
    return path.startswith((f"{key}.", f"{key}:"))


def _span(start: yaml.Mark, end: yaml.Mark) -> Span:
    """Return a place on one line. Of several lines, it is the first character."""
    return start.line, start.column, max(end.column if end.line == start.line else 0, start.column + 1)


def _shown(text: str) -> str:
    """Return a part of a line without anything that would move the carets away from it."""
    return printable(text.replace("\t", " "))


def _width(text: str) -> int:
    """Return the number of columns that a terminal gives a text."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
