"""Trains learnable prompts on a frozen ViT; has never heard of Ray, Optuna or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.inference import Classifier


def load(folder: str | Path, *, weights: str | None = None, device: str = "cpu") -> Classifier:
    """The model that a finished run left in its folder (path or URI), ready to classify images.

    Only `card.json` and `prompt.safetensors` are needed; the backbone comes from where it always does.

    Args:
        weights: a file, or a folder of files, in which the backbone's weights are looked for first.

    Raises:
        ValueError: if the folder holds no finished run, or the backbone's weights are others than it was trained on.
        OSError: if the folder cannot be read.
    """
    from trainer.inference import load_classifier  # torch takes a second, and trainer.config does without it

    return load_classifier(folder, weights=weights, device=device)
