"""Tensors in safetensors files with a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import load, save
from torch import Tensor

from trainer.storage.integrity import BLANK_CHECKSUM, CHECKSUM_KEY, seal


def pack_tensors(tensors: dict[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """Return tensors and notes as the bytes of a safetensors file."""
    return seal(save(tensors, metadata={CHECKSUM_KEY: BLANK_CHECKSUM, **(notes or {})}))


def unpack_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and notes of a safetensors file. Read it with `read_checked`, which compares the checksum."""
    tensors = load(data)
    # safetensors cannot read its metadata from bytes: the header is JSON behind its length in eight bytes.
    header_length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_length])
    return tensors, header.get("__metadata__", {})
