"""Outputs of the frozen network, computed once: if nothing below the head learns or varies, they replace the images."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trainer.data.split import Split
from trainer.model.adapted_vit import prompted_features
from trainer.model.backbone import Backbone
from trainer.model.execution import eval_batch_size, evaluate_in_batches, with_precision

InputsOf = Callable[[Split, Tensor], Tensor]
"""Returns the inputs of rows of a split: images ``[B, 3, S, S]`` or features ``[B, D]``, on the device."""

FEATURES_KEPT = 4
"""Splits whose features the process keeps for each network."""


class FrozenFeatures:
    """The head's inputs of whole splits, computed once a process: trials share them.

    It keeps neither the images of a split nor a network alive.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Backbone, dict[tuple[str, int, str], Tensor]] = WeakKeyDictionary()

    def __call__(self, backbone: Backbone, split: Split, precision: str) -> Tensor:
        """Return the head's input for each image ``[N, D]``, without prompts."""
        kept = self._kept.setdefault(backbone, {})
        key = (split.fingerprint, len(split), precision)
        # Put at the end, so that the first is the one that was not used for longest.
        features_ND = kept.pop(key) if key in kept else _compute(backbone, split, precision)
        kept[key] = features_ND

        if len(kept) > FEATURES_KEPT:
            del kept[next(iter(kept))]
        return features_ND

    def cache_clear(self) -> None:
        """Forget all features."""
        self._kept.clear()


frozen_features = FrozenFeatures()


def feature_source(backbone: Backbone, precision: str) -> InputsOf:
    """Return a source of features, which stands in for `Split.take`."""

    def features_of(split: Split, rows_B: Tensor) -> Tensor:
        features_ND = frozen_features(backbone, split, precision)
        return features_ND[rows_B.to(features_ND.device)]

    return features_of


def _compute(backbone: Backbone, split: Split, precision: str) -> Tensor:
    device = str(split.labels_N.device)
    network = with_precision(lambda images_BCHW: prompted_features(backbone, images_BCHW, []), precision, device)
    batches = split.in_order(eval_batch_size(device, 1 + backbone.num_patches))
    return torch.cat([evaluate_in_batches(network, images_BCHW) for images_BCHW in batches])
