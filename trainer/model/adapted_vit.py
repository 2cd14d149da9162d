"""`AdaptedViT`: a backbone, what a method adds to it, and a linear head.

Shapes: B batch, A prompts in a batch, P prompt_length, X context tokens, T tokens, Q keys that no token has, D width,
K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.backbone import Backbone, run_block

RunBlock = Callable[..., Tensor]
"""Computes a block, with the arguments of `run_block`."""


class AdaptedViT(nn.Module):
    """A backbone with a linear head. Methods that add tokens or parameters of their own inherit from it.

    Args:
        generator: draws the head's initial weight.
        head_std: standard deviation of the head's initial weight.

    Attributes:
        run_block: computes a block in training mode. In evaluation mode it is `run_block` itself.
    """

    def __init__(
        self, backbone: Backbone, *, num_classes: int, generator: torch.Generator, head_std: float = 0.02
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.run_block: RunBlock = run_block

        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of uint8 images."""
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of uint8 images, the input of the head."""
        return prompted_features(self.backbone, images_BCHW, [], run_block=self.block_runner)

    @property
    def block_runner(self) -> RunBlock:
        """What computes a block in the present mode."""
        return self.run_block if self.training else run_block

    def learnable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by the names under which checkpoints store them."""
        return {name: parameter for name, parameter in self.stored_parameters().items() if parameter.requires_grad}

    def stored_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters by name: those of the backbone, the head's, then the model's own.

        The order is that of the optimizer's state in a checkpoint. Shape suffixes are no part of a name: `prompt_LPD`
        is stored as `prompt`.
        """
        own = dict(self.named_parameters(recurse=False))
        parameters = {name: value for name, value in self.named_parameters() if name not in own} | own

        return {
            re.sub("_[A-Z0-9]+$", "", name): parameter for name, parameter in parameters.items() if parameter.numel()
        }

    def check_learnable(self, expected: Collection[str]) -> None:
        """Compare the names of the learnable parameters with those that a method trains, and the head's.

        Raises:
            ValueError: if they differ.
        """
        # A frozen parameter that requires gradients would be trained unnoticed: compare names before the first step.
        expected = {"head.weight", "head.bias", *expected}
        different = expected ^ self.learnable().keys()
        if different:
            raise ValueError(
                f"the learnable parameters must be {', '.join(sorted(expected))}; these differ: {sorted(different)}."
            )


def prompted_features(
    backbone: Backbone,
    images_BCHW: Tensor,
    prompts: Sequence[Tensor],
    *,
    run_block: RunBlock = run_block,
    keys_and_values: Sequence[Tensor] = (),
) -> Tensor:
    """Return the features ``[B, D]`` of uint8 images, with prompts at the first layers.

    Args:
        prompts: one tensor ``[A, P, D]`` per prompted layer. Every image has its own prompts (A = B), all images share
            them (A = 1), or each serves B / A consecutive images. The prompts of a single layer pass through all
            layers; those of several layers are replaced behind their block by the next layer's.
        run_block: computes a block.
        keys_and_values: one tensor ``[1, Q, D]`` per layer of keys, which are the values too, that no token has.
    """
    cls_B1D, patches_BND, _ = backbone.embed(images_BCHW)
    tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)

    reads_all_tokens = backbone.readout == "mean"
    is_shallow = len(prompts) == 1

    for i, block in enumerate(backbone.layers()):
        is_last = i == backbone.num_layers - 1
        options: dict[str, Any] = {"num_outputs": 1 if is_last and not reads_all_tokens else None}

        if i < len(prompts):
            # A prompt's output is needed by the head, or by a next block that has no prompts of its own.
            options |= {"context_AXD": prompts[i], "output_context": reads_all_tokens if is_last else is_shallow}
        if i < len(keys_and_values):
            options["key_value_1QD"] = keys_and_values[i]

        tokens_BTD = run_block(block, tokens_BTD, **options)

    return backbone.read_out(tokens_BTD)
