"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

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
from trainer.data.importers.formats.crc32c import crc32c, mask_crc
from trainer.plain_text import counted

HEAD_BYTES = 12
"""The length of a record and the checksum of the length."""
TAIL_BYTES = 4
"""The checksum of the data."""
GET_AGAIN = "Download or prepare it again."

RecordPosition = tuple[str, int]
"""Name of the file that contains a record, and the byte at which the record starts."""


@dataclass(frozen=True, slots=True)
class Example:
    """The features of one record, by name."""

    where: str
    """File and byte of the record, for error messages."""
    features: Mapping[str, tuple[int, list[bytes] | list[float] | list[int]]]
    """The field of `Feature` that is set (1 bytes, 2 floats, 3 ints, 0 none), and its values."""

    def ints(self, name: str) -> list[int]:
        """Return the values of an int64 feature."""
        return [value for value in self._values(name, 3) if isinstance(value, int)]

    def floats(self, name: str) -> list[float]:
        """Return the values of a float feature."""
        return [value for value in self._values(name, 2) if isinstance(value, float)]

    def one_int(self, name: str) -> int:
        """Return the value of an int64 feature that has exactly one."""
        values = self.ints(name)
        self._check_one(name, values)
        return values[0]

    def one_bytes(self, name: str) -> bytes:
        """Return the value of a bytes feature that has exactly one."""
        values = [value for value in self._values(name, 1) if isinstance(value, bytes)]
        self._check_one(name, values)
        return values[0]

    def _check_one(self, name: str, values: Sequence[object]) -> None:
        if len(values) != 1:
            raise ImportRefused(
                f"{self.where} must have one value of the feature {name!r}, got {len(values)}. {GET_AGAIN}"
            )

    def _values(self, name: str, kind: int) -> list[bytes] | list[float] | list[int]:
        if name not in self.features:
            names = ", ".join(sorted(self.features))
            raise ImportRefused(f"{self.where} must have the feature {name!r}; it has {names}. {GET_AGAIN}")

        stored_kind, values = self.features[name]
        # A list without values is written without its kind.
        if values and stored_kind != kind:
            kinds = ("bytes", "floats", "int64s")
            raise ImportRefused(
                f"{self.where}: {name!r} must be {kinds[kind - 1]}, got {kinds[stored_kind - 1]}. {GET_AGAIN}"
            )

        return values


def shard_names(tree: SourceFiles, prefix: str, count: int) -> list[str]:
    """Return the names `prefix-00000-of-0000n` of all shards of a split, in order.

    Raises:
        ImportRefused: if a shard is missing.
    """
    names = [f"{prefix}-{index:05d}-of-{count:05d}" for index in range(count)]

    missing = sorted(set(names) - set(tree.names))
    if missing:
        raise ImportRefused(
            f"{tree.path} must contain all {counted(count, 'shard')} of {prefix}; missing shards: {len(missing)}, "
            f"the first is {missing[0]}. {GET_AGAIN}"
        )

    return names


def open_shards(tree: SourceFiles, names: Sequence[str]) -> Iterator[IO[bytes]]:
    """Yield each file in turn, open until the next one is asked for. Members of archives are read into memory."""
    # Opened where they lie if unpacked: a shard may be larger than the memory.
    archived = tree.read_all([name for name in names if not (tree.path / name).is_file()])

    for name in names:
        path = tree.path / name
        with path.open("rb") if path.is_file() else io.BytesIO(next(archived)) as file:
            yield file


def record_offsets(file: IO[bytes], name: str) -> Iterator[int]:
    """Yield the byte at which each record starts. Only the lengths are read.

    Raises:
        ImportRefused: if the file ends within a record, or a length is damaged.
    """
    # The size first, so that a record cut at the end of the file is noticed without reading its data.
    size = file.seek(0, io.SEEK_END)

    offset = 0
    while offset < size:
        file.seek(offset)
        end = offset + HEAD_BYTES + _record_length(file.read(HEAD_BYTES), name, offset) + TAIL_BYTES
        if end > size:
            raise _truncated(name, offset)

        yield offset
        offset = end


def read_record(file: IO[bytes], name: str, offset: int) -> Example:
    """Read the record that starts at a byte, and verify its checksums.

    Raises:
        ImportRefused: if the record is damaged or is not a tf.train.Example.
    """
    file.seek(offset)
    length = _record_length(file.read(HEAD_BYTES), name, offset)
    data = file.read(length)
    tail = file.read(TAIL_BYTES)

    if len(data) < length or len(tail) < TAIL_BYTES:
        raise _truncated(name, offset)
    if mask_crc(crc32c(data)) != int.from_bytes(tail, "little"):
        raise ImportRefused(f"{name} is damaged: the record at byte {offset} does not match its checksum. {GET_AGAIN}")

    return parse_example(data, f"{name} at byte {offset}")


def read_images(tree: SourceFiles, positions: Sequence[RecordPosition]) -> Iterator[bytes]:
    """Yield the `image` feature of records, in their order."""
    # Neighbours in one shard are read together, so that the shard is opened once.
    shards = [(name, list(group)) for name, group in itertools.groupby(positions, key=itemgetter(0))]

    for (name, group), file in zip(shards, open_shards(tree, [name for name, _ in shards]), strict=True):
        for _, offset in group:
            yield read_record(file, name, offset).one_bytes("image")


def parse_example(data: bytes, where: str) -> Example:
    """Parse a serialised tf.train.Example.

    Raises:
        ImportRefused: if the data is not one.
    """
    features: dict[str, tuple[int, list[bytes] | list[float] | list[int]]] = {}

    # Example.features (1) is a message with a map: each entry (1) has a name (1) and a Feature (2).
    try:
        for _, group in _messages(memoryview(data), 1):
            for _, entry in _messages(group, 1):
                name = b""
                feature = memoryview(b"")
                for number, part in _messages(entry, 1, 2):
                    if number == 1:
                        name = bytes(part)
                    else:
                        feature = part
                features[name.decode()] = _parse_feature(feature)
    except (ValueError, IndexError) as error:
        raise ImportRefused(f"{where} is not a tf.train.Example: {error}. {GET_AGAIN}") from error

    return Example(where, features)


def _record_length(head: bytes, name: str, offset: int) -> int:
    if len(head) < HEAD_BYTES:
        raise _truncated(name, offset)

    length, checksum = struct.unpack("<QI", head)
    if mask_crc(crc32c(head[:8])) != checksum:
        raise ImportRefused(
            f"{name} is damaged or is not a TFRecord file: the length at byte {offset} does not match its checksum. "
            f"{GET_AGAIN}"
        )

    return int(length)


def _truncated(name: str, offset: int) -> ImportRefused:
    return ImportRefused(f"{name} is truncated: it ends within the record at byte {offset}. {GET_AGAIN}")


def _parse_feature(data: memoryview) -> tuple[int, list[bytes] | list[float] | list[int]]:
    """Return the number of the field that a `Feature` sets, and the values of the list in it."""
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

        # A negative int64 is written as its unsigned 64-bit number.
        return 3, [value - (1 << 64) if value >= 1 << 63 else value for value in ints]

    return 0, []


def _messages(data: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields with these numbers that hold bytes, text or messages."""
    for number, value in _fields(data):
        if number in numbers and isinstance(value, memoryview):
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number of each field of a message, and its bytes or its integer."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7

        # Varints (0) are integers; the other types are bytes of a size of their own (2) or of 8 or 4 bytes (1, 5).
        if wire_type == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue

        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in {1, 5}:
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"it has a field of wire type {wire_type}")

        if position + size > len(data):
            raise ValueError("a field is longer than the record")
        yield tag >> 3, data[position : position + size]
        position += size


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a varint (seven bits per byte, the lowest first) and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position

    raise ValueError("a number has more than 10 bytes")
