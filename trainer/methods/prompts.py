"""Prompts at the first layer or at every layer: SPT (arXiv 2402.02382) and VPT (arXiv 2203.12119).

The two differ in the initial value of the prompts, which `trainer.prompt_init` makes, and in VPT's dropout.

Shapes: L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.catalog import METHODS
from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT


class Prompts(Adaptation):
    """Learnable tokens beside those of the image. The network is frozen."""

    @property
    def prompt_dropout(self) -> float:
        """Rate of dropout on the prompts."""
        return METHODS[self.config.method].prompt_dropout

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> PromptedViT:
        """Return the network with prompts of the given initial value."""
        return PromptedViT(backbone, prompt_LPD=prompt_LPD, prompt_dropout=self.prompt_dropout, **head)
