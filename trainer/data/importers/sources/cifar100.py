"""CIFAR-100 in both forms that its author publishes; their images have the same keys."""

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

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BINARY = ("fine_label_names.txt", "train.bin", "test.bin")
PICKLES = ("meta", "train", "test")


def recognise(tree: SourceFiles) -> bool:
    """Whether the files of one form are there."""
    return any(all(tree.find(name) for name in form) for form in (BINARY, PICKLES))


def listing(tree: SourceFiles, task: str) -> Listing:
    """Lists CIFAR-100, from the binary form if both are there.

    Raises:
        ImportRefused: if a file is damaged, or a label out of range.
    """
    table = _binary if all(tree.find(name) for name in BINARY) else _pickled
    class_names = read_lines(tree, tree.one(BINARY[0])) if table is _binary else _pickled_names(tree)

    @contextmanager
    def open_part(part: str, folder: Path) -> Iterator[Row]:
        _, pixels = table(tree, part, folder)
        yield lambda i: pixels[i].reshape(3, SIDE, SIDE).transpose(1, 2, 0)

    records = []
    for part in ("train", "test"):
        with tempfile.TemporaryDirectory() as folder:
            labels, _ = table(tree, part, Path(folder))
            records += numbered_records(part, labels.tolist(), len(class_names))
    return Listing(records=records, class_names=class_names, read=png_rows(open_part), draw=TWO_PARTS)


def _binary(tree: SourceFiles, part: str, folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Labels and pixels of a .bin file: a record is the coarse label, the fine label, and the three colour planes."""
    name = tree.one(f"{part}.bin")
    path = tree.local(name, folder)
    size = path.stat().st_size
    if size == 0 or size % (2 + PIXELS):
        raise ImportRefused(
            f"{tree.path}: {name} must be records of {2 + PIXELS} bytes, got {size} bytes. Download it again."
        )
    table = np.memmap(path, np.uint8, "r").reshape(-1, 2 + PIXELS)
    return table[:, 1], table[:, 2:]


def _pickled_names(tree: SourceFiles) -> list[str]:
    name = tree.one("meta")
    names = _unpickled(tree, name, tree.read(name)).get("fine_label_names")
    if not isinstance(names, list):
        raise ImportRefused(
            f"{tree.path}: {name} must hold the list fine_label_names. Download cifar-100-python.tar.gz again."
        )
    return [text.decode() if isinstance(text, bytes) else str(text) for text in names]


def _pickled(tree: SourceFiles, part: str, folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Labels and pixels of a pickle."""
    name = tree.one(part)
    found = _unpickled(tree, name, tree.local(name, folder).read_bytes())
    labels, pixels = np.asarray(found.get("fine_labels")), found.get("data")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or labels.dtype.kind not in "iu"
        or pixels.shape != (*labels.shape, PIXELS)
    ):
        raise ImportRefused(
            f"{tree.path}: {name} must hold fine_labels, and data of {PIXELS} bytes for each of them. "
            "Download cifar-100-python.tar.gz again."
        )
    return labels, pixels


def _unpickled(tree: SourceFiles, name: str, data: bytes) -> dict[str, Any]:
    """A pickled dictionary, by text keys; Python 2 wrote them as bytes."""
    try:
        found = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    except ImportRefused as refused:
        raise ImportRefused(f"{tree.path}: {name} {refused}") from refused
    except Exception as error:  # pickle does not say which errors a damaged file raises
        raise ImportRefused(f"{tree.path}: {name} is no whole pickle: {error}. Download it again.") from error


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


_NEW_ARRAY = np.empty(0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _NEW_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _NEW_ARRAY,
    ("_codecs", "encode"): _latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers, text, bytes and numpy arrays; a pickle that names anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ImportRefused(
                f"may hold numbers, text and arrays only, and asks for {module}.{name}, which could run code; "
                "it is not opened. Use cifar-100-binary.tar.gz, or download it again from its author."
            )
        return _KNOWN[module, name]
