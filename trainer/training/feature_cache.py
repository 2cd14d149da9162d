"""What the frozen network makes of a split: where nothing below the head learns, it takes the images' place."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from trainer.data.split import Split
from trainer.model.backbone import Backbone
from trainer.model.execution import eval_batch_size, evaluate_in_batches, with_precision
from trainer.model.prompted_vit import prompted_features


@functools.lru_cache(maxsize=4)
def frozen_features(backbone: Backbone, split: Split, precision: str) -> Tensor:
    """What the head reads of each image ``[N, D]`` without prompts, computed once a process: trials share it."""
    device = str(split.labels_N.device)
    network = with_precision(lambda images_BCHW: prompted_features(backbone, images_BCHW, []), precision, device)
    parts = split.in_order(eval_batch_size(device, 1 + backbone.num_patches))
    return torch.cat([evaluate_in_batches(network, images_BCHW) for images_BCHW in parts])
