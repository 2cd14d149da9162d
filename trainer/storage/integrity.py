"""Checksums: a damaged file is named when it is read, and set aside if it can be made again.

A file of ours holds the text `sptune-crc32:` and eight hexadecimal digits: in the metadata of safetensors and Parquet,
or under the key `checksum` of JSON. The digits are the CRC-32 of the whole file with zeros in their place. So the
checksum is in the file itself, and other programs read the file as before. `checkpoint.pt` is a zip file and has
checksums of its own, as PNG files have. Files of earlier versions have none and are read unchecked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trainer.redaction import redact
from trainer.run_folder import NewerVersion
from trainer.storage.files import move_file, read_bytes

log = logging.getLogger(__name__)

CHECKSUM_KEY = "checksum"
"""Key of the checksum in JSON and in metadata."""
PREFIX = b"sptune-crc32:"
NUM_DIGITS = 8
BLANK_CHECKSUM = f"{PREFIX.decode()}{'0' * NUM_DIGITS}"
"""What a file holds until `seal` writes the digits."""
DAMAGED_SUFFIX = ".damaged"

T = TypeVar("T")


class DamagedFile(ValueError):
    """A file that was whole when it was written and is not any more. The message names it."""


def seal(data: bytes) -> bytes:
    """Return a file with its checksum in the place of the first `BLANK_CHECKSUM`."""
    start = data.index(BLANK_CHECKSUM.encode()) + len(PREFIX)
    return data[:start] + f"{zlib.crc32(data):08x}".encode() + data[start + NUM_DIGITS :]


def verify(data: bytes) -> None:
    """Check a file that `seal` returned. Files without a checksum pass.

    Raises:
        ValueError: if its checksum is wrong.
    """
    view = memoryview(data)
    has_checksum = False
    position = data.find(PREFIX)

    # A name of the user may look like a checksum, so any match counts.
    while position >= 0:
        start = position + len(PREFIX)
        end = start + NUM_DIGITS
        checksum = zlib.crc32(view[end:], zlib.crc32(b"0" * NUM_DIGITS, zlib.crc32(view[:start])))
        if view[start:end] == f"{checksum:08x}".encode():
            return
        has_checksum = True
        position = data.find(PREFIX, end)

    if has_checksum:
        # People edit JSON.
        is_json = data.startswith(b"{")
        edited = " (if you have changed it yourself, delete its line `checksum`)" if is_json else ""
        raise ValueError(f"its checksum is wrong{edited}")


def pack_json(values: dict[str, Any]) -> bytes:
    """Return values as JSON with a checksum."""
    return seal(json.dumps({CHECKSUM_KEY: BLANK_CHECKSUM, **values}, indent=2).encode())


def parse_json(data: bytes) -> dict[str, Any]:
    """Return the values of `pack_json`, or of JSON without a checksum.

    Raises:
        ValueError: if the text is not a JSON object.
    """
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004
    return {key: value for key, value in values.items() if key != CHECKSUM_KEY}


def read_checked(location: str | Path, parse: Callable[[bytes], T]) -> T | None:
    """Return what `parse` makes of a file, or None if it does not exist.

    Raises:
        DamagedFile: if the checksum is wrong, or `parse` raises any error.
        NewerVersion: if `parse` raises it.
        OSError: if the location cannot be read.
    """
    data = read_bytes(location)
    if data is None:
        return None

    name = redact(str(location))
    try:
        verify(data)
        return parse(data)
    # A checkpoint whose checksums are right, with objects that could run code, is not damaged.
    except (MemoryError, pickle.UnpicklingError):
        raise
    except NewerVersion as error:
        raise NewerVersion(f"{name} cannot be read: {error}.") from error
    # A damaged file makes its parser raise more kinds of errors than can be listed.
    except Exception as error:
        raise DamagedFile(f"{name} is damaged: {_reason(data, error)}.") from error


def read_or_set_aside(location: str | Path, parse: Callable[[bytes], T]) -> T | None:
    """Return what `parse` makes of a file that can be made again, or None if it does not exist or is damaged.

    A damaged file is set aside.

    Raises:
        OSError: if the location cannot be read, or a damaged file cannot be moved.
    """
    try:
        return read_checked(location, parse)
    except DamagedFile as error:
        set_aside(location, str(error))
        return None


def set_aside(location: str | Path, problem: str) -> None:
    """Move a damaged file to `NAME.damaged`, where it replaces an earlier one, and log the problem as a warning.

    Args:
        problem: a sentence that names the file.
    """
    # Another process may have moved it already.
    with contextlib.suppress(FileNotFoundError):
        move_file(location, f"{location}{DAMAGED_SUFFIX}")
    log.warning("%s It is now %s%s, and is made again.", problem, Path(str(location)).name, DAMAGED_SUFFIX)


def _reason(data: bytes, error: Exception) -> str:
    """Return why a file cannot be read, without a full stop."""
    if not data:
        return "it is empty"
    if not data.strip(b"\0"):
        return "it holds only zeros"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
