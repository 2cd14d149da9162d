"""`PromptedViT`: learnable prompts and a linear head around the backbone.

Shapes: B batch, L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.model.adapted_vit import AdaptedViT, prompted_features
from trainer.model.backbone import Backbone


class PromptedViT(AdaptedViT):
    """A backbone with learnable prompts and a linear head.

    Its tokens are CLS, patches, prompts, in this order. Prompts have no position embedding (VPT, section 3.2).
    With L = 1 the prompts pass through all layers (shallow). With L = number of layers each layer's prompts replace
    those that leave the layer before it (deep). With L = 0 there are no prompts. A ViT does not depend on the order of
    its tokens, so this equals the papers' `[CLS, prompts, patches]`.

    Args:
        prompt_LPD: initial value of the prompts.
        prompt_dropout: rate of VPT's dropout on the prompts, in training mode only.
        generator: draws the head's initial weight.
        head_std: standard deviation of the head's initial weight.
        backbone_learns: whether the backbone's parameters are trained.

    Raises:
        ValueError: if the parameters that require gradients are not exactly the expected ones.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        prompt_LPD: Tensor,
        prompt_dropout: float,
        generator: torch.Generator,
        head_std: float = 0.02,
        backbone_learns: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, generator=generator, head_std=head_std)
        self.prompt_LPD: nn.Parameter = nn.Parameter(prompt_LPD.clone())
        self.dropout = nn.Dropout(prompt_dropout)

        expected = {"prompt"} if prompt_LPD.numel() else set()
        if backbone_learns:
            expected |= {f"backbone.{name}" for name, _ in backbone.named_parameters()}
        self.check_learnable(expected)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of uint8 images, the input of the head."""
        return prompted_features(
            self.backbone, images_BCHW, self.prompts(len(images_BCHW)), run_block=self.block_runner
        )

    def prompts(self, num_images: int) -> Sequence[Tensor]:
        """Return the prompts of each layer: ``[1, P, D]``, or ``[B, P, D]`` under dropout."""
        # With dropout each image has its own copy of the prompts, because each needs its own mask.
        has_dropout = self.training and self.dropout.p > 0
        copies = num_images if has_dropout else 1

        return [self.dropout(prompt_PD.expand(copies, -1, -1)) for prompt_PD in self.prompt_tokens()]

    def prompt_tokens(self) -> Tensor:
        """Return the prompts as they enter each prompted layer, ``[L, P, D]``, without dropout."""
        return self.prompt_LPD
