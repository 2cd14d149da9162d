"""`Adaptation`, what a method tells of itself, and the model that is built of it.

Shapes: L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

import pkgutil
from typing import Any

import torch
from torch import Tensor

from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import Backbone
from trainer.model.precision import training_variant


class Adaptation:
    """What a method adds to the frozen network and what it trains. A method overrides what it needs.

    The base adds nothing and trains the head alone. So it is the method `linear`.

    What learns is what requires gradients; it is saved, averaged and resumed under the names of
    `AdaptedViT.learnable`. Its group in the optimizer follows from name and shape: vectors do not decay.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def learns(self, name: str, backbone: Backbone) -> bool:
        """Return whether a parameter of the network is trained. The model has a copy of its own of those that are.

        Args:
            name: the parameter's name in the network, such as `vit.blocks.0.attn.qkv.weight`.
        """
        return False

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put modules with parameters of the method into the network, which is the model's own copy.

        A module that takes the place of a block's `attn.qkv` is called as `project_rows` says.

        Args:
            generator: draws initial values.
        """

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> AdaptedViT:
        """Return the network with its head, and with what the method adds outside of the network.

        Args:
            prompt_LPD: initial value of the prompts; empty for methods without prompts.
            head: what `AdaptedViT` takes for its head.
        """
        return AdaptedViT(backbone, **head)

    def merge(self, backbone: Backbone, frozen: Backbone) -> None:
        """Replace inserted modules by weights of the network that compute the same, if the method can.

        Args:
            backbone: the model's network, with what was learnt. It is changed.
            frozen: the network that it was made of, with weights in float32.
        """


def adaptation_of(config: TrainConfig) -> Adaptation:
    """Return the adaptation of a config's method.

    Raises:
        ValueError: if the class cannot be imported.
    """
    name = METHODS[config.method].adaptation
    try:
        adaptation_class = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"method {config.method}: its class {name} cannot be imported ({error}). Correct its row in "
            "trainer/catalog.py, or install its package on every machine that runs trials."
        ) from error

    adaptation = adaptation_class(config)
    assert isinstance(adaptation, Adaptation), f"the catalog names an Adaptation for {config.method}"
    return adaptation


def build_model(
    config: TrainConfig,
    frozen: Backbone,
    *,
    num_classes: int,
    prompt_LPD: Tensor,
) -> AdaptedViT:
    """Return the model of a config around a copy of the frozen network, at its initial values.

    Args:
        frozen: the network. It stays as it is; the model shares the weights that do not learn.
        prompt_LPD: initial value of the prompts; empty for methods without prompts.

    Raises:
        ValueError: if the parameters that require gradients are not those that the method adds or trains.
    """
    adaptation = adaptation_of(config)
    trained = {name for name, _ in frozen.named_parameters() if adaptation.learns(name, frozen)}
    backbone = training_variant(frozen, config.precision, learns=trained, drop_path=config.drop_path)

    frozen_weights = {id(parameter) for name, parameter in backbone.named_parameters() if name not in trained}
    adaptation.insert(backbone, seeded(config, "adaptation"))
    model = adaptation.model(
        backbone,
        num_classes=num_classes,
        prompt_LPD=prompt_LPD,
        generator=seeded(config, "head"),
        head_std=config.backbone_row.head_std,
    )
    # All others learn. A frozen weight may have another name than before: that of the module that holds it now.
    model.check_learnable(
        {name for name, parameter in model.stored_parameters().items() if id(parameter) not in frozen_weights}
    )
    return model


def seeded(config: TrainConfig, purpose: str) -> torch.Generator:
    """Return the source of random numbers of one purpose, on the CPU."""
    return torch.Generator("cpu").manual_seed(config.stream_seed(purpose))
