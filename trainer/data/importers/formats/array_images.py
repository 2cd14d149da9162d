"""Sources that store the images of a part as the rows of one array."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.formats.split_lists import parse_label
from trainer.data.importers.source import SourceRecord, encode_png

Row = Callable[[int], NDArray[np.uint8]]
"""Returns one image ``[H, W, 3]`` by its row number."""


def numbered_records(part: str, labels: Iterable[int], num_classes: int, first: int = 0) -> list[SourceRecord]:
    """Return the records of a part, with their row numbers as keys.

    Args:
        first: the number that the source gives its first class.

    Raises:
        ImportRefused: if a label is out of range.
    """
    records = []
    for row, label in enumerate(labels):
        # Six digits, so that keys sort as rows do.
        key = f"{part}/{row:06d}"
        records.append(SourceRecord(key, parse_label(key, int(label), first, num_classes), part, row))

    return records


def png_rows(
    open_part: Callable[[str, Path], AbstractContextManager[Row]],
) -> Callable[[Sequence[SourceRecord]], Iterator[bytes]]:
    """Return a function that reads records as PNG images. Each record gives its row in the array of its part.

    Args:
        open_part: opens a part by its name. It also gets a temporary folder for files that it unpacks.
    """

    def read(records: Sequence[SourceRecord]) -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            rows: dict[str, Row] = {}

            for record in records:
                # Opened when first needed: a part may have to be unpacked, and the caller may want one part only.
                if record.part not in rows:
                    rows[record.part] = stack.enter_context(open_part(record.part, Path(folder)))

                yield encode_png(rows[record.part](int(record.place)))

    return read
