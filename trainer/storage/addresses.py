"""Addresses of files and folders as people write them, and as every process on this machine reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
FILE_URI = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/))")
"""Beginning of a file URI before its path: `file:///folder`, `file://localhost/folder` and `file:/folder`."""


def absolute_address(address: str) -> str:
    """Return an address that means the same in every working directory.

    A local path becomes absolute, with `~` expanded and without a slash at its end. A file URI becomes the path that it
    names. An address of a bucket is returned unchanged.

    Raises:
        ValueError: if a path begins with `~` and there is no such user, or if its characters are not valid.
    """
    file_uri = FILE_URI.match(address)
    if file_uri is not None:
        # The bytes of a name need not be UTF-8.
        address = os.fsdecode(unquote_to_bytes(address[file_uri.end() :]))
    elif SCHEME.match(address):
        return address

    try:
        path = str(Path(address).expanduser().absolute())
    except RuntimeError:
        raise ValueError(f"{address}: there is no user of this name; write the folder's path in full.") from None

    try:
        is_valid = b"\0" not in path.encode()
    except UnicodeEncodeError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{address!a}: the name of a folder must be valid UTF-8; rename it.")
    return path
