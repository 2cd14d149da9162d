"""Sources whose images are the rows of an array, a file a part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.formats.split_lists import label_of
from trainer.data.importers.source import SourceRecord, encode_png

Row = Callable[[int], NDArray[np.uint8]]
"""One image ``[H, W, 3]`` by its number."""


def numbered_records(part: str, labels: Iterable[int], num_classes: int, first: int = 0) -> list[SourceRecord]:
    """The rows of a part, named by their numbers.

    Raises:
        ImportRefused: if a label is out of range.
    """
    keys = ((i, f"{part}/{i:06d}", int(label)) for i, label in enumerate(labels))
    return [SourceRecord(key, label_of(key, label, first, num_classes), part, i) for i, key, label in keys]


def png_rows(
    open_part: Callable[[str, Path], AbstractContextManager[Row]],
) -> Callable[[Sequence[SourceRecord]], Iterator[bytes]]:
    """Reads records whose place is a row of their part, as PNG.

    Args:
        open_part: opens a part by its name, with a folder for what it must unpack.
    """

    def read(records: Sequence[SourceRecord]) -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            parts: dict[str, Row] = {}
            for record in records:
                if record.part not in parts:
                    parts[record.part] = stack.enter_context(open_part(record.part, Path(folder)))
                yield encode_png(parts[record.part](int(record.place)))

    return read
