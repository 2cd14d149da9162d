"""Writer of TFRecord files and of the files that TFDS puts next to them, independent of the code that reads them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = bytes | Sequence[int] | Sequence[float]


def _bit_by_bit(crc: int) -> int:
    for _ in range(8):
        crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


BYTES = [_bit_by_bit(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """Return the CRC-32C, computed byte by byte and bit by bit from the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = BYTES[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """Return a record with its length and checksums."""

    def checksum(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def varint(value: int) -> bytes:
    """Return a varint: seven bits per byte. A negative number has ten bytes."""
    value &= (1 << 64) - 1
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7

    return encoded + bytes([value])


def field(number: int, data: bytes) -> bytes:
    """Return a field with bytes or a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(value: Value, packed: bool = True) -> bytes:
    """Return a `Feature` of bytes, floats or integers."""
    if isinstance(value, bytes):
        return field(1, field(1, value))
    if any(isinstance(number, float) for number in value):
        floats = [struct.pack("<f", number) for number in value]
        return field(2, field(1, b"".join(floats)) if packed else b"".join(b"\x0d" + number for number in floats))
    ints = [varint(int(number)) for number in value]
    return field(3, field(1, b"".join(ints)) if packed else b"".join(b"\x08" + number for number in ints))


def example(features: Mapping[str, Value], packed: bool = True) -> bytes:
    """Return a serialised tf.train.Example."""
    entries = [field(1, name.encode()) + field(2, feature(value, packed)) for name, value in features.items()]
    return field(1, b"".join(field(1, entry) for entry in entries))


def write_shards(prefix: Path, shards: Sequence[Sequence[bytes]]) -> None:
    """Write framed records as `prefix-00000-of-0000n`, one file per shard."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for index, records in enumerate(shards):
        prefix.with_name(f"{prefix.name}-{index:05d}-of-{len(shards):05d}").write_bytes(b"".join(records))


def write_prepared(
    root: Path, dataset: str, version: str, splits: Mapping[str, Sequence[Sequence[bytes]]], *, older: bool = False
) -> Path:
    """Write a directory as TFDS prepares it, of framed records.

    Args:
        older: as an older TFDS, which writes the config only into the path.
    """
    name, _, config = dataset.partition("/")
    folder = root / dataset / version
    for split, shards in splits.items():
        write_shards(folder / f"{name}-{split}.tfrecord", shards)
    info: dict[str, object] = {"name": name, "version": version, "description": "", "fileFormat": "tfrecord"}
    if config and not older:
        info["configName"] = config
    info["splits"] = [
        {"name": split, "numBytes": "1", "shardLengths": [str(len(records)) for records in shards]}
        for split, shards in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text("{}")
    return folder
