"""Names of files in a source: those that systems add, those that are no text, and how many are shown in a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

SYSTEM_NAMES = frozenset(
    {
        # macOS
        "__macosx",
        "icon\r",
        # Windows
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "system volume information",
        # NAS of Synology and QNAP
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        # Linux and Python
        "lost+found",
        "__pycache__",
    }
)
"""Files and folders that systems and programs put beside a user's own, in lower case. Hidden ones are left out, too."""


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system adds. `name` is without folders."""
    is_hidden = name.startswith(".") and name.strip(".") != ""
    return is_hidden or name.lower() in SYSTEM_NAMES


def system_part(path: str) -> str | None:
    """Return the part of a path, up to its first file or folder that a system adds; None if it has none."""
    above = ""
    for part in path.split("/"):
        if is_system_name(part):
            return above + part
        above += f"{part}/"
    return None


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Return the first names and the number of the others, for a message."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return f"{', '.join(map(printable, names[:count]))}{more}"


def printable(text: str) -> str:
    """Return a text without bytes that are no UTF-8 and without control characters, which are escaped."""
    escaped = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in escaped)


def not_text(names: Iterable[str]) -> list[str]:
    """Return the names that are no UTF-8, as old archives and disks have them."""
    return [name for name in names if not _is_text(name)]


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, with its dot; `without suffix` if it has none."""
    return PurePosixPath(name).suffix.lower() or "without suffix"


def by_suffix(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by their suffix, the most frequent suffix first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(suffix_of(name), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
