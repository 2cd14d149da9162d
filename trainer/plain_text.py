"""Text of users as text: names and messages in which nothing is an instruction to a terminal or a page."""

from __future__ import annotations

import unicodedata

KEPT_CATEGORIES = frozenset({"Zs", "Co", "Cn"})
"""Categories of Unicode that Python counts as not printable and that do no harm: spaces, private and new letters."""
JOINERS = "\u200c\u200d"
"""Characters without width that are part of words and emoji."""


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
