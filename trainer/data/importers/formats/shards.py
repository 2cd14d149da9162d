"""Data sets that are divided into numbered files: which part a file belongs to, and whether a file is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainer.data.importers.archive import ImportRefused
from trainer.data.importers.names import first_names
from trainer.plain_text import counted

PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Parts by the names that users give their folders and files."""

_PART = re.compile(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])")
# Until 2023, `datasets` put a hash behind the number of shards.
_COUNTED = re.compile(
    r"(?P<prefix>.*)[-_.](?P<number>\d+)[-_]of[-_](?P<count>\d+)([-_.][0-9a-z]+)?(?P<suffix>(\.[a-z]\w*)+)", re.I
)
_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>(\.[a-z]\w*)+)", re.I)


def part_of_file(stem: str) -> str | None:
    """Return the part that a file's name begins with, or else the only one it has as a word. None if there is none."""
    text = stem.lower()
    match = _PART.match(text)
    parts = {PART_OF[match[1]]} if match else {PART_OF[word] for word in _PART.findall(text)}
    return parts.pop() if len(parts) == 1 else None


def without_number(name: str) -> str:
    """Return the name of a data set, given that of one of its shards."""
    match = _COUNTED.fullmatch(name)
    return match["prefix"] if match else name


def check_counted(names: Iterable[str]) -> None:
    """Raise ImportRefused if a file of a series `NAME-00000-of-00003` is missing or is there twice.

    The hash that `datasets` once wrote behind the count may differ from file to file.
    """
    series: dict[tuple[str, str], list[re.Match[str]]] = {}
    for match in filter(None, map(_COUNTED.fullmatch, names)):
        series.setdefault((match["prefix"], match["suffix"]), []).append(match)
    for (prefix, _), matches in series.items():
        _check_counted(prefix, matches)


def check_numbered(names: Iterable[str]) -> None:
    """Raise ImportRefused if a number is missing between files that are numbered from 0 or 1, without their count."""
    series: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        match = None if _COUNTED.fullmatch(name) else _NUMBERED.fullmatch(name)
        if match is not None:
            series.setdefault((match["prefix"], match["suffix"]), {})[int(match["number"])] = name

    for (prefix, suffix), present in series.items():
        first = min(present)
        missing = sorted(set(range(first, max(present))) - present.keys())
        # Numbers that begin elsewhere, such as years, are no series.
        if missing and first in {0, 1}:
            width = len(present[first]) - len(prefix) - len(suffix)
            example = f"{prefix}{missing[0]:0{width}d}{suffix}"
            raise ImportRefused(
                f"the numbers of {first_names(list(present.values()))} must have no gap; {example} is missing"
                f"{_and_more(missing)}. Download it too, or give the files names without numbers."
            )


def _check_counted(prefix: str, matches: Sequence[re.Match[str]]) -> None:
    counts = sorted({int(match["count"]) for match in matches})
    if len(counts) > 1:
        raise ImportRefused(
            f"{prefix} must have one number of files, got {' and '.join(map(str, counts))}: two versions lie together. "
            "Remove one of them."
        )

    (count,) = counts
    names: dict[int, str] = {}
    for match in matches:
        number = int(match["number"])
        if number in names:
            raise ImportRefused(
                f"{prefix} must have each number once; {names[number]} and {match[0]} have the same. Remove one."
            )
        names[number] = match[0]

    # Some programs count from 1.
    first = 1 if 0 not in names and count in names else 0
    missing = sorted(set(range(first, first + count)) - names.keys())
    if missing:
        width = len(matches[0]["number"])
        example = f"{prefix}-{missing[0]:0{width}d}-of-{matches[0]['count']}"
        raise ImportRefused(
            f"{prefix} must consist of {counted(count, 'file')}; number {missing[0]} is missing ({example})"
            f"{_and_more(missing)}. Download it too."
        )


def _and_more(missing: Sequence[int]) -> str:
    return f", and {len(missing) - 1} more" if len(missing) > 1 else ""
