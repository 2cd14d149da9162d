"""Text lists of two columns, with the number of each line to name it by when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.importers.archive import ImportRefused


@dataclass(frozen=True, slots=True)
class TwoColumnRow:
    """A line of such a list."""

    first: str
    second: str
    where: str
    """The list's name and the line's number."""

    def number(self) -> int:
        """The second column as a whole number from 0.

        Raises:
            ImportRefused: if it is none.
        """
        return whole(self.second, self.where)


def read_two_columns(data: bytes, name: str, *, split_at: str = "first") -> list[TwoColumnRow]:
    """The lines of a list that are not blank.

    Args:
        split_at: which run of blanks parts the columns, the `first` or the `last`: the other column may hold more.

    Raises:
        ImportRefused: if the list is empty or not text, or a line has one column.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{name} must be UTF-8 text: {error}. Get it again.") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        columns = line.split(maxsplit=1) if split_at == "first" else line.rsplit(maxsplit=1)
        if not columns:
            continue
        where = f"{name}, line {number}"
        if len(columns) < 2:
            raise ImportRefused(f"{where} must have two columns, got {line.strip()!r}. Get the list again.")
        found.append(TwoColumnRow(columns[0].strip(), columns[1].strip(), where))
    if not found:
        raise ImportRefused(f"{name} must list images, and is empty. Get it again.")
    return found


def index_by_first(found: list[TwoColumnRow]) -> dict[str, TwoColumnRow]:
    """Lines by their first column.

    Raises:
        ImportRefused: if two lines have the same.
    """
    lines: dict[str, TwoColumnRow] = {}
    for pair in found:
        if pair.first in lines:
            raise ImportRefused(f"{pair.where} names {pair.first} again, as {lines[pair.first].where} does.")
        lines[pair.first] = pair
    return lines


def whole(text: str, where: str) -> int:
    """A whole number from 0.

    Raises:
        ImportRefused: if the text is none.
    """
    if not (text.isascii() and text.isdigit()):
        raise ImportRefused(f"{where} must give a whole number from 0, got {text!r}.")
    return int(text)
