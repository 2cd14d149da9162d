"""Batches of an epoch: which images in which order, as inputs and labels on the device.

Shapes: N images, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.data.transforms import random_crops
from trainer.plain_text import counted
from trainer.training.feature_cache import InputsOf


class EpochBatches:
    """The whole batches of one epoch.

    Args:
        split: the images to train on.
        inputs_of: returns the inputs of fixed views; random crops are inputs themselves.
        epoch: counted from 1. The order of the images comes from (seed, epoch) alone, so a resumed run has the same.
    """

    def __init__(self, config: TrainConfig, split: Split, inputs_of: InputsOf, epoch: int) -> None:
        generator = torch.Generator().manual_seed(config.stream_seed("order", epoch))
        order_N = torch.randperm(len(split), generator=generator)

        self._config = config
        self._split = split
        self._inputs_of = inputs_of
        self._order_N = order_N
        # The indices are where the images are, so that no step waits for a copy of its own.
        self._rows_N = order_N.to(split.rows_N.device)
        self._labels_N = split.labels_N[order_N.to(split.labels_N.device)]

    def take(self, step: int, crops: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a batch, counted from 0.

        Args:
            crops: source of random crops. Fixed views do not use it.
        """
        batch = slice(step * self._config.batch_size, (step + 1) * self._config.batch_size)
        return self._inputs(batch, crops), self._labels_N[batch]

    def _inputs(self, batch: slice, crops: torch.Generator) -> Tensor:
        if self._split.view != "whole":
            return self._inputs_of(self._split, self._rows_N[batch])

        rows_B = self._order_N[batch]
        transform = self._config.transform
        crops_B5 = random_crops(self._split.whole_sizes(rows_B), transform, crops)
        return self._split.take_crops(rows_B, crops_B5, self._config.pixels, transform)


def steps_per_epoch(config: TrainConfig, num_images: int) -> int:
    """Return the number of whole batches.

    Raises:
        ValueError: if there is none.
    """
    steps = num_images // config.batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {counted(num_images, 'image')} of {config.task} "
            f"{config.train_split} at train_size={config.train_size}; use a smaller batch_size."
        )
    return steps
