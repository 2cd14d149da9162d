"""The lists that data sets ship: which images are in which part, and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.source import SourceRecord

ONE_PART = {"train": "all", "val": "all", "test": "all"}
TWO_PARTS = {"train": "train", "val": "train", "test": "test"}
THREE_PARTS = {"train": "train", "val": "val", "test": "test"}
"""From which part each split is drawn, by how many parts a data set's makers made."""


def read_lines(tree: SourceFiles, name: str) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        ImportRefused: if the file is not text.
    """
    try:
        text = tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{tree.path}: {name} must be UTF-8 text: {error}. Download it again.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def label_of(image: str, value: int | str, first: int, num_classes: int) -> int:
    """A label counted from 0, from one that the source counts from `first`.

    Raises:
        ImportRefused: if it is no number or out of range.
    """
    last = first + num_classes - 1
    text = str(value)
    if not (text.isascii() and text.isdigit() and first <= int(text) <= last):
        raise ImportRefused(f"the label of {image} must be {first} to {last}, got {text}. Download its list again.")
    return int(text) - first


def check_present(tree: SourceFiles, records: Iterable[SourceRecord], lists: str) -> None:
    """See that the source has every file that its lists name.

    Raises:
        ImportRefused: if it lacks one.
    """
    names = set(tree.names)
    refuse_missing(tree, [str(record.place) for record in records if record.place not in names], lists)


def refuse_missing(tree: SourceFiles, missing: Sequence[str], lists: str) -> None:
    """Name the images that are missing, if there are any.

    Raises:
        ImportRefused: if there are.
    """
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ImportRefused(
            f"{tree.path} lacks {', '.join(missing[:3])}{more}, which {lists} names. "
            "Put the images beside the lists, as an archive or unpacked."
        )
