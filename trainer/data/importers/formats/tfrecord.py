"""TFRecord files and the `tf.train.Example`s in them, without TensorFlow.

A record is its length (8 bytes), a checksum of the length, the data, and a checksum of the data, all little-endian.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import IO

import numpy as np

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.crc32c import crc32c, masked

HEAD_BYTES, TAIL_BYTES = 12, 4
AGAIN = "Download or prepare it again."

Place = tuple[str, int]
"""The file that a record is in, and the byte at which it starts."""


@dataclass(frozen=True, slots=True)
class Example:
    """One record's features by name."""

    where: str
    """Its file and byte, for errors."""
    features: Mapping[str, tuple[int, list[bytes] | list[float] | list[int]]]
    """The field of `Feature` that is set (1 bytes, 2 floats, 3 ints, 0 none), and its values."""

    def ints(self, name: str) -> list[int]:
        """The values of an int64 feature."""
        return [value for value in self._values(name, 3) if isinstance(value, int)]

    def floats(self, name: str) -> list[float]:
        """The values of a float feature."""
        return [value for value in self._values(name, 2) if isinstance(value, float)]

    def one_int(self, name: str) -> int:
        """The value of an int64 feature that has one."""
        self._must_be_one(name, values := self.ints(name))
        return values[0]

    def one_bytes(self, name: str) -> bytes:
        """The value of a bytes feature that has one."""
        self._must_be_one(name, values := [value for value in self._values(name, 1) if isinstance(value, bytes)])
        return values[0]

    def _must_be_one(self, name: str, values: Sequence[object]) -> None:
        if len(values) != 1:
            raise ImportRefused(f"{self.where} must have one value of the feature {name!r}, got {len(values)}. {AGAIN}")

    def _values(self, name: str, kind: int) -> list[bytes] | list[float] | list[int]:
        if name not in self.features:
            raise ImportRefused(f"{self.where} has no feature {name!r}; it has {', '.join(sorted(self.features))}.")
        found, values = self.features[name]
        # A list without values is written without its kind.
        if values and found != kind:
            kinds = "bytes", "floats", "int64s"
            raise ImportRefused(f"{self.where}: {name!r} must be {kinds[kind - 1]}, got {kinds[found - 1]}.")
        return values


def shard_names(tree: SourceFiles, prefix: str, count: int) -> list[str]:
    """The names `prefix-00000-of-0000n` of all files of a split, in order.

    Raises:
        ImportRefused: if one is not there.
    """
    names = [f"{prefix}-{index:05d}-of-{count:05d}" for index in range(count)]
    if missing := sorted(set(names) - set(tree.names)):
        raise ImportRefused(f"{tree.path} lacks {missing[0]}: {len(missing)} of {count} such files. {AGAIN}")
    return names


def open_shards(tree: SourceFiles, names: Sequence[str]) -> Iterator[IO[bytes]]:
    """Each file in turn, open as long as it is its turn; members of archives come whole into memory."""
    archived = tree.read_all([name for name in names if not (tree.path / name).is_file()])
    for name in names:
        path = tree.path / name
        with path.open("rb") if path.is_file() else io.BytesIO(next(archived)) as file:
            yield file


def offsets(file: IO[bytes], name: str) -> Iterator[int]:
    """The byte at which each record starts; only the lengths are read.

    Raises:
        ImportRefused: if the file ends within a record, or a length is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    offset = 0
    while offset < size:
        file.seek(offset)
        end = offset + HEAD_BYTES + _length(file.read(HEAD_BYTES), name, offset) + TAIL_BYTES
        if end > size:
            raise _truncated(name, offset)
        yield offset
        offset = end


def record_at(file: IO[bytes], name: str, offset: int) -> Example:
    """The record that starts at a byte, checked.

    Raises:
        ImportRefused: if it is damaged, or no tf.train.Example.
    """
    file.seek(offset)
    length = _length(file.read(HEAD_BYTES), name, offset)
    data, tail = file.read(length), file.read(TAIL_BYTES)
    if len(data) < length or len(tail) < TAIL_BYTES:
        raise _truncated(name, offset)
    if masked(crc32c(data)) != int.from_bytes(tail, "little"):
        raise ImportRefused(f"{name} is damaged: the record at byte {offset} does not match its checksum. {AGAIN}")
    return parse_example(data, f"{name} at byte {offset}")


def read_images(tree: SourceFiles, places: Sequence[Place]) -> Iterator[bytes]:
    """The `image` feature of records, in their order."""
    shards = [(name, list(group)) for name, group in itertools.groupby(places, key=itemgetter(0))]
    for (name, group), file in zip(shards, open_shards(tree, [name for name, _ in shards]), strict=True):
        for _, offset in group:
            yield record_at(file, name, offset).one_bytes("image")


def parse_example(data: bytes, where: str) -> Example:
    """A serialised tf.train.Example.

    Raises:
        ImportRefused: if it is none.
    """
    features: dict[str, tuple[int, list[bytes] | list[float] | list[int]]] = {}
    try:
        for _, group in _messages(memoryview(data), 1):
            for _, entry in _messages(group, 1):
                name, feature = b"", memoryview(b"")
                for number, part in _messages(entry, 1, 2):
                    name, feature = (bytes(part), feature) if number == 1 else (name, part)
                features[name.decode()] = _feature(feature)
    except (ValueError, IndexError) as error:
        raise ImportRefused(f"{where} is no tf.train.Example: {error}. {AGAIN}") from error
    return Example(where, features)


def _length(head: bytes, name: str, offset: int) -> int:
    if len(head) < HEAD_BYTES:
        raise _truncated(name, offset)
    length, checksum = struct.unpack("<QI", head)
    if masked(crc32c(head[:8])) != checksum:
        raise ImportRefused(
            f"{name} is damaged, or no TFRecord: the length at byte {offset} does not match its checksum. {AGAIN}"
        )
    return int(length)


def _truncated(name: str, offset: int) -> ImportRefused:
    return ImportRefused(f"{name} is truncated: it ends within the record at byte {offset}. {AGAIN}")


def _feature(data: memoryview) -> tuple[int, list[bytes] | list[float] | list[int]]:
    """What a `Feature` holds: the number of its field, and the values of the list there."""
    for number, values in _messages(data, 1, 2, 3):
        if number == 1:
            return 1, [bytes(value) for _, value in _messages(values, 1)]
        if number == 2:
            # Packed or one by one, the floats are all that the message holds besides tags and lengths.
            floats = [np.frombuffer(value, "<f4") for _, value in _fields(values) if isinstance(value, memoryview)]
            return 2, [float(value) for packed in floats for value in packed]
        ints: list[int] = []
        for _, value in _fields(values):
            ints += [value] if isinstance(value, int) else _varints(value)
        return 3, [value - (1 << 64) if value >= 1 << 63 else value for value in ints]
    return 0, []


def _messages(data: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    """The fields with these numbers that hold bytes, text or messages."""
    for number, value in _fields(data):
        if number in numbers and isinstance(value, memoryview):
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Each field of a message: its number, and its bytes or its integer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} in it")
        if at + size > len(data):
            raise ValueError("a field is longer than the record")
        yield tag >> 3, data[at : at + size]
        at += size


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than 10 bytes")
