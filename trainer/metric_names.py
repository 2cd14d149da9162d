"""Names of the metrics of a run. They are stored in databases, files and MLflow, so never rename one.

Accuracies are fractions 0..1, at the end of an epoch. Each split has its own: `val/accuracy`, `test/accuracy`.
"""

from __future__ import annotations

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
"""Labels that the study has used: the images that its search and this run learn from, and the images of val that judge
its search. Each image counts once; test does not count."""
LEARNABLE_PARAMETERS = "learnable/parameters"
LEARNABLE_SHARE = "learnable/share"
"""Learnable parameters as a fraction of all."""
PROTOTYPES_SECONDS = "prototypes/seconds"
"""Seconds that building the prototypes took, in the run that built them."""

NMI_LAYER = "nmi/layer_"
"""Prefix of normalized mutual information; a layer's number with two digits follows."""

# Added by the worker.
EPOCH_SECONDS = "epoch/seconds"
MEMORY_PEAK_GB = "memory/peak_gb"
MEMORY_DEVICE_GB = "memory/device_gb"


def accuracy_of(split: str) -> str:
    """Return the name of the accuracy on a split: `val/accuracy`."""
    return f"{split}/accuracy"


def nmi_of(layer: int) -> str:
    """Return the name of a layer's normalized mutual information: `nmi/layer_03`."""
    return f"{NMI_LAYER}{layer:02d}"
