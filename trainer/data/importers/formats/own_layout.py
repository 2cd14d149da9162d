"""What an import of a user's own folders says about classes and files: none of them is lost without a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

from trainer.data.images import suffixes
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.names import by_suffix, first_names, printable, suffix_of
from trainer.plain_text import counted

MAX_SUFFIXES = 10
"""Suffixes of files that are left out and get a sentence of their own."""
MAX_FOLDERS = 20
"""Folders without an image that are named in an error."""


def is_image_name(name: str) -> bool:
    """Return whether Pillow reads files with the suffix of this name."""
    return suffix_of(name) in suffixes()


def class_name(folder: str) -> str:
    """Return the name of a class, given that of its folder: composed characters, without blanks around them."""
    # macOS decomposes characters in the names of files, and other systems do not.
    return unicodedata.normalize("NFC", folder).strip() or folder


def check_class_names(names: Iterable[str], what: str) -> None:
    """Raise ImportRefused if two classes look the same, or the name of one cannot be printed.

    Args:
        names: of the classes, as the source spells them.
        what: where the names are from, such as `folders`.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(class_name(name), []).append(name)

    twins = [group for group in spellings.values() if len(group) > 1]
    if twins:
        raise ImportRefused(
            f"{what} of different classes must not look the same; {', '.join(map(ascii, twins[0]))} differ in blanks "
            "or in the form of their characters (Unicode NFC and NFD). Rename one of them, or join them."
        )

    unprintable = [name for name in spellings if not name.isprintable()]
    if unprintable:
        raise ImportRefused(
            f"the name of a class must not have tabs, line breaks or other control characters, got "
            f"{', '.join(map(ascii, unprintable[:3]))}. Rename it."
        )


def check_folders(tree: SourceFiles, expected: Collection[str], images: Iterable[str]) -> None:
    """Raise ImportRefused if a folder that should hold images, as its neighbours do, has none that is read.

    Args:
        expected: the folders of parts and classes.
        images: the names of all images.
    """
    with_images = {"/".join(parts[:end]) for parts in (name.split("/") for name in images) for end in range(len(parts))}
    lost = sorted(set(expected) - with_images)
    if not lost:
        return

    listed = "\n".join(f"  {printable(folder)}: {_content(tree, folder)}" for folder in lost[:MAX_FOLDERS])
    more = f"\n  and {len(lost) - MAX_FOLDERS} more" if len(lost) > MAX_FOLDERS else ""
    raise ImportRefused(
        f"each folder beside the classes must hold images that can be read; {len(lost)} hold none, and would be lost "
        f"as classes. Convert their files to JPEG or PNG, put images there, or move the folders away:\n{listed}{more}"
    )


def left_out(tree: SourceFiles, images: Collection[str]) -> list[str]:
    """Return a sentence for each kind of file that is not taken: number and first names."""
    groups = list(by_suffix(name for name in tree.names if name not in images).items())
    sentences = [
        f"left out {counted(len(names), 'file')} {suffix}, {_no_images(len(names))} that Pillow reads: "
        f"{first_names(names)}"
        for suffix, names in groups[:MAX_SUFFIXES]
    ]
    rest = [name for _, names in groups[MAX_SUFFIXES:] for name in names]
    if rest:
        sentences.append(f"left out {counted(len(rest), 'file')} of other kinds: {first_names(rest)}")

    for reason in sorted(set(tree.unreadable.values())):
        names = sorted(name for name in tree.unreadable if tree.unreadable[name] == reason)
        sentences.append(f"left out {counted(len(names), 'file')} ({reason}): {first_names(names)}")
    if tree.system_names:
        hidden = ("hidden file or folder", "hidden files and folders")
        num_hidden = counted(len(tree.system_names), *hidden)
        sentences.append(f"left out {num_hidden}, or of a system: {first_names(tree.system_names)}")
    return sentences


def _no_images(number: int) -> str:
    return "which is no image" if number == 1 else "which are no images"


def describe(names: Iterable[str]) -> str:
    """Return how many files of each suffix there are, the most frequent first: `12 .heic, 3 .txt`."""
    groups = list(by_suffix(names).items())
    more = ", ..." if len(groups) > MAX_SUFFIXES else ""
    return ", ".join(f"{len(group):,} {suffix}" for suffix, group in groups[:MAX_SUFFIXES]) + more


def _content(tree: SourceFiles, folder: str) -> str:
    """Return what a folder without images holds."""
    within = f"{folder}/"
    content = [describe(name for name in tree.names if name.startswith(within))]
    reasons = [reason for name, reason in tree.unreadable.items() if name.startswith(within)]
    content += [f"{counted(reasons.count(reason), 'file')} ({reason})" for reason in sorted(set(reasons))]
    return ", ".join(filter(None, content)) or "nothing"
