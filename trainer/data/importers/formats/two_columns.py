"""Text lists with two columns. Each row keeps its line number for error messages."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.importers.archive import ImportRefused


@dataclass(frozen=True, slots=True)
class TwoColumnRow:
    """A line of such a list."""

    first: str
    second: str
    where: str
    """Name of the list and number of the line."""

    def number(self) -> int:
        """Return the second column as a whole number, 0 or more.

        Raises:
            ImportRefused: if it is not such a number.
        """
        return parse_whole_number(self.second, self.where)


def read_two_columns(data: bytes, name: str, *, split_at: str = "first") -> list[TwoColumnRow]:
    """Read the rows of a list, without its blank lines.

    Args:
        split_at: the blanks that separate the two columns, the `first` of a line or the `last`. The column on the
            other side may contain blanks.

    Raises:
        ImportRefused: if the list is empty or not text, or a line has only one column.
    """
    # utf-8-sig: some editors of Windows write a mark at the start of the file.
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{name} must be UTF-8 text: {error}. Download it again.") from error

    rows = []
    # Not splitlines: it also splits at characters that a file name may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        columns = line.split(maxsplit=1) if split_at == "first" else line.rsplit(maxsplit=1)
        if not columns:
            continue

        where = f"{name}, line {number}"
        if len(columns) < 2:
            raise ImportRefused(f"{where} must have two columns, got {line.strip()!r}. Download the list again.")

        rows.append(TwoColumnRow(columns[0].strip(), columns[1].strip(), where))

    if not rows:
        raise ImportRefused(f"{name} must list images, but it is empty. Download it again.")
    return rows


def index_by_first(rows: list[TwoColumnRow]) -> dict[str, TwoColumnRow]:
    """Return rows by their first column.

    Raises:
        ImportRefused: if two rows have the same first column.
    """
    index: dict[str, TwoColumnRow] = {}
    for row in rows:
        if row.first in index:
            raise ImportRefused(
                f"{row.where} names {row.first} a second time, after {index[row.first].where}. "
                "Each name may be listed once. Download the list again."
            )
        index[row.first] = row

    return index


def parse_whole_number(text: str, where: str) -> int:
    """Return a text as a whole number, 0 or more.

    Raises:
        ImportRefused: if it is not such a number.
    """
    # isdigit alone is also true for digits of other scripts and for superscripts.
    if not (text.isascii() and text.isdigit()):
        raise ImportRefused(f"{where} must give a whole number from 0, got {text!r}. Correct it or download it again.")

    return int(text)
