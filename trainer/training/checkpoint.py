"""Tensors and plain values on disk and back, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from trainer.storage.files import read_bytes, write_bytes


def pack_state(state: dict[str, Any]) -> bytes:
    """Tensors as they are now, and plain Python values (no other objects: reading refuses them), as a file's bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_state(place: str | Path, state: dict[str, Any]) -> None:
    """Write a state."""
    write_bytes(place, pack_state(state))


def load_state(place: str | Path) -> dict[str, Any] | None:
    """What was saved, bit for bit and on the CPU, or None where there is nothing."""
    data = read_bytes(place)
    if data is None:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def get_random_state() -> list[torch.Tensor]:
    """Where torch's own random numbers are, on the CPU and on the GPU that is in use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_random_state(states: list[torch.Tensor]) -> None:
    """Go on from there; a GPU that was not there before starts as `torch.manual_seed` left it."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) > 1:
        torch.cuda.set_rng_state(states[1])
