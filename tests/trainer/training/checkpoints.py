"""Checkpoints of runs under way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trainer.training.checkpoint import load_state


def checkpoint_after(epochs: int, folder: str | Path) -> dict[str, Any]:
    """A run's checkpoint after so many epochs: it is written behind the run, so it may be there a moment later."""
    for _ in range(3000):
        state = load_state(f"{folder}/checkpoint.pt")
        if state is not None and len(state["epochs"]) == epochs:
            return state
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of {epochs} epochs in {folder}")
