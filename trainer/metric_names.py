"""Names of the metrics of a run. They are stored in databases, files and MLflow, so never rename one.

Accuracies are fractions 0..1, at the end of an epoch. Each split has its own: `val/accuracy`, `test/accuracy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_IMAGES_PER_S = "train/images_per_s"
MICRO_BATCH_SIZE = "train/images_at_once"
"""Only if memory was too short for a whole batch."""

VAL_ACCURACY = "val/accuracy"
PEEKING_ACCURACY = "peeking/accuracy"
"""Test accuracy after an epoch that does not judge the run (`measure_peeking`)."""
PEEKING_GAIN = "peeking/gain"
"""What choosing the best epoch on test would have gained."""

# With the first epoch only.
TRAIN_IMAGES = "train/images"
LABELS = "train/labels"
"""Labels that the study has used: images that its search and this run learn from, and images of val that its search is
scored on. Each image counts once. Images of test do not count."""
LEARNABLE_PARAMETERS = "learnable/parameters"
LEARNABLE_SHARE = "learnable/share"
"""Learnable parameters as a fraction of all."""
PROTOTYPES_SECONDS = "prototypes/seconds"
"""Seconds that building the prototypes took, in the run that built them."""

NMI_LAYER = "nmi/layer_"
"""Prefix of normalized mutual information; a layer's number with two digits follows."""
INITIAL = "initial/"
"""Prefix of a metric before the first step: `initial/nmi/layer_00`. It comes with the first epoch's metrics."""

# Added by the worker.
EPOCH_SECONDS = "epoch/seconds"
MEMORY_PEAK_GB = "memory/peak_gb"
MEMORY_DEVICE_GB = "memory/device_gb"

# Added by the driver, on a GPU.
GPU_SHARE = "gpu/share"
"""The share of its GPU that the trial was given."""
GPU_TRIALS = "gpu/trials"
"""Trials that were on the GPU during the epoch. Missing if their number changed or is not certain."""


def accuracy_of(split: str) -> str:
    """Return the name of the accuracy on a split: `val/accuracy`."""
    return f"{split}/accuracy"


def nmi_of(layer: int) -> str:
    """Return the name of a layer's normalized mutual information: `nmi/layer_03`."""
    return f"{NMI_LAYER}{layer:02d}"


def initial_of(name: str) -> str:
    """Return the name of a metric's value before the first step: `initial/nmi/layer_03`."""
    return f"{INITIAL}{name}"


def metrics_by_epoch(epochs: Iterable[Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """Return a run's metrics by epoch, under their plain names: `nmi/layer_03`, not `initial/nmi/layer_03`.

    Epochs count from 1. Epoch 0 has the values before the first step. It is missing if there are none.

    Args:
        epochs: the metrics of each finished epoch, from the first.
    """
    by_epoch: dict[int, dict[str, float]] = {0: {}}
    for epoch, metrics in enumerate(epochs, start=1):
        by_epoch[epoch] = {}
        for name, value in metrics.items():
            if name.startswith(INITIAL):
                by_epoch[0][name.removeprefix(INITIAL)] = value
            else:
                by_epoch[epoch][name] = value

    if not by_epoch[0]:
        del by_epoch[0]
    return by_epoch
