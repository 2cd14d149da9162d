"""Lists that data sets ship: the part and the label of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.source import SourceRecord

ONE_PART = {"train": "all", "val": "all", "test": "all"}
TWO_PARTS = {"train": "train", "val": "train", "test": "test"}
THREE_PARTS = {"train": "train", "val": "val", "test": "test"}
"""The part that each split is drawn from, for data sets published in one, two or three parts."""


def read_lines(tree: SourceFiles, name: str) -> list[str]:
    """Read the lines of a text file, without blank lines and surrounding blanks.

    Raises:
        ImportRefused: if the file is not text.
    """
    # utf-8-sig: some editors of Windows write a mark at the start of the file.
    try:
        text = tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{tree.path}: {name} must be UTF-8 text: {error}. Download it again.") from error

    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_label(image: str, value: int | str, first: int, num_classes: int) -> int:
    """Return a label counted from 0, given the label of a source that counts from `first`.

    Raises:
        ImportRefused: if the value is not a number or is out of range.
    """
    last = first + num_classes - 1
    text = str(value)

    # isdigit alone is also true for digits of other scripts and for superscripts.
    is_number = text.isascii() and text.isdigit()
    if not (is_number and first <= int(text) <= last):
        raise ImportRefused(
            f"the label of {image} must be {first} to {last}, got {text}. Download the list of labels again."
        )

    return int(text) - first


def check_present(tree: SourceFiles, records: Iterable[SourceRecord], lists: str) -> None:
    """Raise ImportRefused if the source does not have every file that its lists name."""
    names = set(tree.names)
    refuse_missing(tree, [str(record.place) for record in records if record.place not in names], lists)


def refuse_missing(tree: SourceFiles, missing: Sequence[str], lists: str) -> None:
    """Raise ImportRefused with the names of the missing images, if there are any."""
    if not missing:
        return

    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise ImportRefused(
        f"{tree.path} does not contain {', '.join(missing[:3])}{more}, which {lists} names. "
        "Put the images next to the lists, in an archive or unpacked."
    )
