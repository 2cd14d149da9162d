"""Outputs of the frozen network, computed once: if nothing below the head learns or varies, they replace the images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.data.split import Split
from trainer.model.backbone import Backbone
from trainer.model.execution import eval_batch_size, evaluate_in_batches, with_precision
from trainer.model.prompted_vit import prompted_features

InputsOf = Callable[[Split, Tensor], Tensor]
"""Returns the inputs of rows of a split: images ``[B, 3, S, S]`` or features ``[B, D]``, on the device."""


@functools.lru_cache(maxsize=4)
def frozen_features(backbone: Backbone, split: Split, precision: str) -> Tensor:
    """Return the head's input for each image ``[N, D]``, without prompts.

    It is computed once a process: trials share it.
    """
    device = str(split.labels_N.device)
    network = with_precision(lambda images_BCHW: prompted_features(backbone, images_BCHW, []), precision, device)
    batches = split.in_order(eval_batch_size(device, 1 + backbone.num_patches))
    return torch.cat([evaluate_in_batches(network, images_BCHW) for images_BCHW in batches])


def feature_source(backbone: Backbone, precision: str) -> InputsOf:
    """Return a source of features, which stands in for `Split.take`."""

    def features_of(split: Split, rows_B: Tensor) -> Tensor:
        features_ND = frozen_features(backbone, split, precision)
        return features_ND[rows_B.to(features_ND.device)]

    return features_of
