"""Text for people: names and messages in which nothing is an instruction to a program, and numbers with their nouns."""

from __future__ import annotations

import unicodedata

KEPT_CATEGORIES = frozenset({"Zs", "Co", "Cn"})
"""Categories of Unicode that Python counts as not printable and that do no harm: spaces, private and new letters."""
JOINERS = "\u200c\u200d"
"""Characters without width that are part of words and emoji."""
FORMULA_STARTS = tuple("=+-@\t\r")
"""First characters of a cell that a spreadsheet computes instead of showing it."""


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with control characters, marks of direction and undecodable bytes escaped, such as `\x1b`.

    Args:
        keep: control characters that stay, such as the ends of lines in a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(character if character in keep else _escape(character) for character in text)


def _escape(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) in KEPT_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode()


def csv_text(text: str) -> str:
    """Return a text for a cell of a CSV file. A spreadsheet shows it and computes nothing.

    Numbers need no protection: pass them as they are.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 study`, `2 studies`, `1,234 images`.

    Args:
        noun: in the singular.
        plural: where it is not regular, such as `runs created` for `run created`.
    """
    if number != 1:
        noun = plural or _plural(noun)
    # A whole number of GPUs may be a float.
    return f"{int(number) if number == int(number) else number:,} {noun}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "sh", "tch")) else f"{noun}s"


def format_train_size(train_size: float | int | str) -> str:
    """Return a train size as part of a name: 0.1 for a share, 200 for a number of images, or `5 per class`."""
    return f"{train_size:g}" if isinstance(train_size, float) else str(train_size)
