"""Trains learnable prompts on a frozen ViT. A library that needs no Ray, Optuna or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.inference import Classifier


def load(folder: str | Path, *, weights: str | None = None, device: str = "cpu") -> Classifier:
    """Return the model of a finished run, ready to classify images.

    Only `card.json` and `prompt.safetensors` are read from the folder. The backbone's weights are found as in training.

    Args:
        folder: the run's folder, a path or a URI.
        weights: a file, or a folder of files, that is searched first for the backbone's weights.
        device: device of the model, such as cpu or cuda.

    Raises:
        ValueError: if the path cannot be used, the folder holds no finished run, or the backbone's weights are not
            those it was trained on.
        OSError: if the folder cannot be read.
    """
    # Here, because torch takes a second to import and trainer.config needs none.
    from trainer.inference import load_classifier
    from trainer.storage.addresses import absolute_address

    return load_classifier(absolute_address(str(folder)), weights=weights, device=device)
