"""Prompts at the first layer or at every layer: SPT (arXiv 2402.02382) and VPT (arXiv 2203.12119).

The two differ in the initial value of the prompts, which `trainer.prompt_init` makes, and in VPT's dropout.

Shapes: L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.catalog import METHODS
from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT


class Prompts(Adaptation):
    """Learnable tokens beside those of the image. The network is frozen."""

    model_class: type[PromptedViT] = PromptedViT
    """What takes the prompts through the network."""

    def model(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        prompt_LPD: Tensor,
        generator: torch.Generator,
        head_std: float,
    ) -> PromptedViT:
        """Return the network with prompts of the given initial value."""
        return self.model_class(
            backbone,
            num_classes=num_classes,
            prompt_LPD=prompt_LPD,
            prompt_dropout=METHODS[self.config.method].prompt_dropout,
            generator=generator,
            head_std=head_std,
        )
