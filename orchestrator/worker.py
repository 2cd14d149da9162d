"""`run_trial` joins the trainer to a driver: a config goes in, epochs or one failure come out.

Backbone, images and prototypes stay in the process (the trainer's loaders keep them), so a later trial costs its
training only.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.home import Workplace
from orchestrator.results import Failure
from trainer.config import TrainConfig
from trainer.loop import EpochMetrics, TrainingDiverged, train


def run_trial(config: dict[str, Any], workplace: Workplace) -> Iterator[EpochMetrics | Failure]:
    """Train one config, from its checkpoint if it has one.

    Yields:
        Each epoch, earlier attempts' first; a `Failure` as the last item if it did not come to its end.
    """
    torch.set_num_threads(workplace.cpus)
    try:
        train_config = TrainConfig(**config)
        yield from train(
            train_config,
            data_root=workplace.data_root,
            device="cuda" if workplace.gpus else "cpu",
            weights=workplace.weights,
            bank=workplace.bank,
            folder=f"{workplace.trials}/{train_config.fingerprint()}",
        )
    except Exception as error:  # the worker stays; what went wrong goes to the record with its trace
        told = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        yield Failure(error=told, may_pass=not isinstance(error, TrainingDiverged | ValueError))
