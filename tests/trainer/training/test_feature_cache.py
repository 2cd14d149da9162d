"""Features of a frozen network: computed once for each split, and kept without the split and the network."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from torch import Tensor

from trainer.data.split import Split
from trainer.model.adapted_vit import prompted_features
from trainer.model.backbone import Backbone
from trainer.model.execution import evaluate_in_batches
from trainer.training.feature_cache import FEATURES_KEPT, FrozenFeatures


def split_of(fingerprint: str, count: int = 3) -> Split:
    return Split(
        images_R=torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator()),
        rows_N=torch.arange(count),
        labels_N=torch.zeros(count, dtype=torch.int64),
        keys=("a", "b", "c", "d")[:count],
        view="fixed",
        fingerprint=fingerprint,
    )


@pytest.fixture
def network(backbone: Backbone) -> Backbone:
    """Return a network of its own, which no other cache keeps alive."""
    return Backbone(copy.deepcopy(backbone.vit), readout=backbone.readout, sha256="")


@pytest.fixture
def looked_at(network: Backbone) -> list[int]:
    """Return a list that gets the number of images of each pass through the network."""
    passes: list[int] = []
    network.vit.patch_embed.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    return passes


def test_features_are_those_of_the_network_and_known_by_the_fingerprint(
    network: Backbone, looked_at: list[int]
) -> None:
    features = FrozenFeatures()
    split = split_of("train")
    found_ND = features(network, split, "fp32")
    assert torch.equal(found_ND, evaluate_in_batches(lambda x: prompted_features(network, x, []), split.all_images()))

    # Another object with the same images, as after `load_split` has forgotten the first.
    looked_at.clear()
    assert features(network, split_of("train"), "fp32") is found_ND and looked_at == []

    # Other images, another number of them, another precision, another network.
    features(network, split_of("val"), "fp32")
    features(network, split_of("train", 4), "fp32")
    features(network, split_of("train"), "bf16")
    assert looked_at == [3, 4, 3]
    other = Backbone(copy.deepcopy(network.vit), readout="cls", sha256="")
    assert not torch.equal(features(other, split, "fp32"), found_ND)


def test_neither_images_nor_networks_stay_alive_for_their_features(network: Backbone) -> None:
    features = FrozenFeatures()
    split = split_of("train")
    own = Backbone(copy.deepcopy(network.vit), readout="mean", sha256="")
    assert isinstance(split.images_R, Tensor)
    images, weights = weakref.ref(split.images_R), weakref.ref(own.vit.norm.weight)
    features(own, split, "fp32")

    del split
    assert images() is None
    del own
    gc.collect()
    assert weights() is None


def test_the_features_that_were_not_used_for_longest_are_forgotten(network: Backbone, looked_at: list[int]) -> None:
    features = FrozenFeatures()
    names = [str(number) for number in range(FEATURES_KEPT)]
    for name in (*names, names[0], "one more"):
        features(network, split_of(name), "fp32")

    looked_at.clear()
    features(network, split_of(names[0]), "fp32")
    assert looked_at == []
    features(network, split_of(names[1]), "fp32")
    assert looked_at == [3]
    features.cache_clear()
    features(network, dataclasses.replace(split_of(names[0])), "fp32")
    assert looked_at == [3, 3]
