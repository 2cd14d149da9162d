"""What a checkpoint holds, under the names that it is stored with, and how tensors are written and read bit for bit."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from trainer.storage.files import write_bytes
from trainer.storage.integrity import read_or_set_aside

SCHEMA_VERSION = 1
"""Version of `checkpoint.pt`. Checkpoints without one are of version 1."""


# The keys of these three are stored in every `checkpoint.pt`. A rename would make old checkpoints unreadable.
class StoredEpoch(TypedDict):
    """A finished epoch."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]


class StoredPartialEpoch(TypedDict):
    """An epoch that was interrupted after some of its steps."""

    done: int
    """Number of finished steps."""
    loss: Tensor
    """Sum of the losses of these steps, on the CPU."""
    seconds: float
    """Seconds spent on the epoch so far, in all attempts."""
    crops: Tensor
    """State of the generator of random crops."""
    dropout: list[Tensor]
    """State of torch's own generators, see `get_random_state`."""


class StoredRun(TypedDict):
    """The content of `checkpoint.pt`."""

    schema_version: int
    config: str
    """Fingerprint of the TrainConfig."""
    backbone: str
    """SHA-256 of the backbone's weights."""
    images: NotRequired[str]
    """Fingerprint of the images that it learns from. Absent before 0.2.0."""
    device: NotRequired[str]
    """Kind of the device that it was last trained on. Absent before 0.2.0."""
    engine: NotRequired[str]
    """What runs its steps, see `trainer.training.engine`. Absent before 0.2.0, when it was eager."""
    learnable: dict[str, Tensor]
    """The learnable parameters by name."""
    average: dict[str, Tensor]
    """Their moving average by name; empty without `ema_decay`."""
    optimizer: dict[str, Any]
    """The optimizer's own state."""
    part: int
    """Images that go through the network at once."""
    epochs: list[StoredEpoch]
    """The finished epochs, from the first."""
    under_way: StoredPartialEpoch | None
    """The epoch that was interrupted, if there is one."""


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Return a state as the bytes of a file.

    The state holds tensors and plain Python values. `load_state` refuses any other object.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file (path or URI)."""
    write_bytes(path, pack_state(state))


def load_state(path: str | Path) -> dict[str, Any] | None:
    """Return a saved state, bit for bit and on the CPU, or None if there is no file.

    A damaged file is set aside, and is none.
    """
    return read_or_set_aside(path, _unpack_state)


def _unpack_state(data: bytes) -> dict[str, Any]:
    """Return the state of `pack_state`.

    Raises:
        Exception: of many kinds, if the file is damaged.
    """
    # The file is a zip file. torch does not compare the checksums in it.
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        damaged_record = records.testzip()
    if damaged_record is not None:
        raise ValueError(f"the checksum of its part {damaged_record} is wrong")

    # weights_only: a checkpoint from someone else must not be able to run code.
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def get_random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's own generators: of the CPU and, if a run trains on one, of its GPU."""
    # Dropout draws from the generator of the device that it runs on.
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Set torch's own generators. A GPU that was not used at saving keeps the state of `torch.manual_seed`."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
