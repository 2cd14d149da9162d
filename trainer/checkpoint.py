"""Tensors and plain values on disk and back, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from trainer.storage import read_bytes, write_bytes


def save_state(place: str | Path, state: dict[str, Any]) -> None:
    """Write tensors and plain Python values (no other objects: reading refuses them)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(place, buffer.getvalue())


def load_state(place: str | Path) -> dict[str, Any] | None:
    """What `save_state` wrote, bit for bit and on the CPU, or None where there is nothing."""
    data = read_bytes(place)
    if data is None:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state
