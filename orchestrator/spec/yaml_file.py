"""Reads a YAML file into plain values, and refuses what YAML would silently read as something else.

Only plain values are read: no tags, no second document. Anchors, aliases and merge keys (`<<`) work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.source_text import LINE_BREAK, SourceText, nodes_of
from trainer.plain_text import counted

MAX_BYTES = 1_000_000
"""Largest spec that is read. Real ones have a few thousand bytes."""
MAX_DEPTH = 30
"""Deepest nesting that is read. A spec has six levels."""
MAX_VALUES = 100_000
"""Most values of a spec, after its aliases are replaced by what they stand for."""
MAX_DIGITS = 40
"""Longest whole number that is read. Python refuses to read more than 4,300 digits."""

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
_TAB = "'\\t'"
PLAIN_TAGS = {f"{TAG}{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}


class _PlainLoader(yaml.SafeLoader):
    """Reads dates, and the sign `=`, as the text that they are."""


# A copy: the resolvers of a class are shared with its base.
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN_TAGS or tag == MERGE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class YamlFile:
    """What a YAML file holds."""

    values: Any
    """Plain values; None for an empty file."""
    problems: list[Problem]
    """One for each value that YAML reads as something else."""
    text: SourceText


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file.

    Raises:
        SpecError: if the file cannot be read as YAML at all.
    """
    content = _read_bytes(path)
    text = SourceText(content)

    try:
        # From bytes, so that PyYAML recognizes UTF-16 and a byte order mark.
        loader = _PlainLoader(content)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlFile(None, [], text)
            _measure(node, {}, set())
            # Before the values are built, which changes nodes with merge keys.
            problems = [*_node_problems(node, text)]
            values = loader.construct_document(node)
            text.set_root(node)
            return YamlFile(values, problems, text)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise SpecError(str(path), [_at_character(text, content, error)]) from None
    except RecursionError:
        raise SpecError(str(path), [f"is nested more than {MAX_DEPTH} levels deep; a spec has six."]) from None
    except yaml.MarkedYAMLError as error:
        problem = text.at_mark(f"is not valid YAML: {_explain(error)}.", _place(error))
        raise SpecError(str(path), [problem]) from None


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SpecError(str(path), ["is a folder; name the YAML file in it."])

        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(
                str(path), [f"has {counted(size, 'byte')}, and a spec has at most {MAX_BYTES:,}: is it a YAML file?"]
            )
        return path.read_bytes()
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror}."]) from None


def _at_character(text: SourceText, content: bytes, error: yaml.reader.ReaderError) -> Problem:
    """Return the problem of a character that YAML does not have, with its place."""
    # PyYAML counts characters if it could decode the file, and bytes if not.
    position = error.position
    is_decoded = error.encoding == "unicode"
    before = content.decode(errors="replace")[:position] if is_decoded else content[:position].decode(errors="replace")
    *lines, last = LINE_BREAK.split(before)
    return text.at("is not a text file in UTF-8; save it as UTF-8.", len(lines), len(last), len(last) + 1)


def _explain(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's error on one line."""
    if isinstance(error, yaml.composer.ComposerError) and "expected a single document" in str(error):
        return "it holds several documents; a spec is one, without a line `---` between two parts"

    return f"{error.problem}{'; indent with spaces' if _TAB in str(error.problem) else ''}"


def _place(error: yaml.MarkedYAMLError) -> yaml.Mark | None:
    """Return where an error is: where it was noticed, or what was begun if that is missing at the end of the file."""
    is_at_end = any(words in str(error.problem) for words in ("<stream end>", "end of stream"))
    marks = (error.context_mark, error.problem_mark) if is_at_end else (error.problem_mark, error.context_mark)
    return marks[0] or marks[1]


def _measure(node: yaml.Node, sizes: dict[int, tuple[int, int]], parents: set[int]) -> tuple[int, int]:
    """Return the number of values and of levels below a node, with what its aliases stand for.

    Args:
        sizes: results so far, by the node's id.
        parents: ids of the nodes around it.

    Raises:
        yaml.MarkedYAMLError: for a tag, a loop, too many values, or a number that is too long to read.
        RecursionError: for too many levels.
    """
    if id(node) in sizes:
        return sizes[id(node)]

    problem = ""
    if node.tag not in PLAIN_TAGS and node.tag != MERGE:
        problem = f"the tag {node.tag.replace(TAG, '!!')} is not read, only plain values"
    elif id(node) in parents:
        problem = "an alias stands inside of its own anchor"
    elif node.tag == f"{TAG}int" and len(node.value) > MAX_DIGITS:
        problem = f"no key takes a number of {counted(len(node.value), 'digit')}"
    elif node.tag == f"{TAG}int" and not re.search("[0-9A-Fa-f]", re.sub("^[-+]?0[bx]", "", node.value)):
        problem = f"{node.value} is a number without digits"

    num_values = 1
    num_levels = 1
    if not problem and isinstance(node, yaml.CollectionNode):
        is_mapping = isinstance(node, yaml.MappingNode)
        children = [part for pair in node.value for part in pair] if is_mapping else node.value
        for child in children:
            values, levels = _measure(child, sizes, parents | {id(node)})
            num_values += values
            num_levels = max(num_levels, levels + 1)

    if num_levels > MAX_DEPTH:
        raise RecursionError
    if num_values > MAX_VALUES:
        problem = f"aliases make it more than {MAX_VALUES:,} values"
    if problem:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    sizes[id(node)] = num_values, num_levels
    return num_values, num_levels


def _node_problems(root: yaml.Node, text: SourceText) -> Iterator[Problem]:
    """Yield a problem for each value that a reader would take for another one."""
    for node in nodes_of(root):
        if isinstance(node, yaml.MappingNode):
            yield from _key_problems(node, text)
        elif isinstance(node, yaml.ScalarNode):
            sentence = _number_problem(node)
            if sentence:
                yield text.at_node(sentence, node)


def _key_problems(node: yaml.MappingNode, text: SourceText) -> Iterator[Problem]:
    first: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
        if key.tag == MERGE and isinstance(value, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="<< needs a mapping", problem_mark=value.start_mark)

        # PyYAML would silently take the last one. A key beside a merge key is given once: it replaces what is merged.
        if key.value in first:
            line = first[key.value].start_mark.line + 1
            yield text.at_node(f"{key.value} given twice; keep one of them. The first is in line {line}.", key)
        first.setdefault(key.value, key)


def _number_problem(node: yaml.ScalarNode) -> str:
    """Return why a number is not the one that stands there, or an empty text.

    YAML 1.1 reads 042 as octal and 1:30 as base sixty.
    """
    if node.style is not None or node.tag not in (f"{TAG}int", f"{TAG}float"):
        return ""

    text = str(node.value)
    if ":" in text:
        return f'YAML reads {text} as a number in base sixty; write "{text}" if it is text.'
    if node.tag == f"{TAG}int" and re.fullmatch(r"[-+]?0[0-7_]+", text):
        sign = "-" if text.startswith("-") else ""
        digits = text.lstrip("+-").replace("_", "")
        plain = f"{sign}{digits.lstrip('0') or '0'}"
        return f'YAML reads {text} as {sign}{int(digits, 8)}; write {plain}, or "{text}" if it is text.'
    return ""
