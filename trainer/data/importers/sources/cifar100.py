"""CIFAR-100 in the two forms that its author publishes. Images have the same keys in both."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.array_images import Row, numbered_records, png_rows
from trainer.data.importers.formats.split_lists import TWO_PARTS, read_lines
from trainer.data.importers.source import Listing
from trainer.plain_text import counted

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BINARY = ("fine_label_names.txt", "train.bin", "test.bin")
PICKLES = ("meta", "train", "test")


def recognise(tree: SourceFiles) -> bool:
    """Return whether the source has all files of one form."""
    return _has_all(tree, BINARY) or _has_all(tree, PICKLES)


def listing(tree: SourceFiles, task: str) -> Listing:
    """List CIFAR-100, from the binary form if the source has both.

    Raises:
        ImportRefused: if a file is damaged, or a label is out of range.
    """
    if _has_all(tree, BINARY):
        read_table = _read_binary
        class_names = read_lines(tree, tree.one(BINARY[0]))
    else:
        read_table = _read_pickle
        class_names = _read_pickled_names(tree)

    @contextmanager
    def open_part(part: str, folder: Path) -> Iterator[Row]:
        _, pixels = read_table(tree, part, folder)
        # Three colour planes of rows, from red to blue.
        yield lambda i: pixels[i].reshape(3, SIDE, SIDE).transpose(1, 2, 0)

    records = []
    for part in ("train", "test"):
        with tempfile.TemporaryDirectory() as folder:
            labels, _ = read_table(tree, part, Path(folder))
            records += numbered_records(part, labels.tolist(), len(class_names))

    return Listing(records=records, class_names=class_names, read=png_rows(open_part), draw=TWO_PARTS)


def _has_all(tree: SourceFiles, names: tuple[str, ...]) -> bool:
    return all(tree.find(name) for name in names)


def _read_binary(tree: SourceFiles, part: str, folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Read labels and pixels of a .bin file. A record is the coarse label, the fine label and three colour planes."""
    name = tree.one(f"{part}.bin")
    path = tree.local(name, folder)

    size = path.stat().st_size
    if size == 0 or size % (2 + PIXELS):
        raise ImportRefused(
            f"{tree.path}: {name} must consist of records of {2 + PIXELS} bytes, got {counted(size, 'byte')}. "
            "Download it again."
        )

    # Mapped, not read: labels are listed without the 150 MB of pixels.
    table = np.memmap(path, np.uint8, "r").reshape(-1, 2 + PIXELS)
    return table[:, 1], table[:, 2:]


def _read_pickled_names(tree: SourceFiles) -> list[str]:
    name = tree.one("meta")
    names = _unpickle(tree, name, tree.read(name)).get("fine_label_names")
    if not isinstance(names, list):
        raise ImportRefused(
            f"{tree.path}: {name} must contain the list fine_label_names. Download cifar-100-python.tar.gz again."
        )

    return [text.decode() if isinstance(text, bytes) else str(text) for text in names]


def _read_pickle(tree: SourceFiles, part: str, folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Read labels and pixels of a pickle."""
    name = tree.one(part)
    table = _unpickle(tree, name, tree.local(name, folder).read_bytes())
    labels = np.asarray(table.get("fine_labels"))
    pixels = table.get("data")

    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or labels.dtype.kind not in "iu"
        or pixels.shape != (*labels.shape, PIXELS)
    ):
        raise ImportRefused(
            f"{tree.path}: {name} must contain fine_labels, and data with {PIXELS} bytes for each of them. "
            "Download cifar-100-python.tar.gz again."
        )

    return labels, pixels


def _unpickle(tree: SourceFiles, name: str, data: bytes) -> dict[str, Any]:
    """Load a pickled dictionary and return it with text keys. Python 2 wrote the keys as bytes."""
    try:
        table = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in table.items()}

    except ImportRefused as refused:
        raise ImportRefused(f"{tree.path}: {name} {refused}") from refused

    # pickle does not document which errors a damaged file raises.
    except Exception as error:
        raise ImportRefused(f"{tree.path}: {name} is not a complete pickle: {error}. Download it again.") from error


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for codecs.encode, with which Python 3 pickles bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


# The function that makes an empty array when an array is unpickled. Its module has been renamed by numpy.
_NEW_ARRAY = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _NEW_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _NEW_ARRAY,
    ("_codecs", "encode"): _encode_latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler for containers, numbers, text, bytes and numpy arrays. Anything else in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ImportRefused(
                f"may contain only numbers, text and arrays, but it asks for {module}.{name}, which could run code; "
                "it is not opened. Use cifar-100-binary.tar.gz, or download the file again from its author."
            )
        return _ALLOWED[module, name]
