"""A method from outside of the package, written as trainer/README.md describes: one class and one row.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.catalog import Method
from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone


class ShiftedMlp(nn.Module):
    """An MLP with a learnable shift of its output."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.shift_D = nn.Parameter(torch.zeros(width))

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        shifted_BTD: Tensor = self.mlp(inputs_BTD) + self.shift_D
        return shifted_BTD


class Toy(Adaptation):
    """Trains the last norm, and shifts the output of each MLP."""

    def learns(self, name: str, backbone: Backbone) -> bool:
        return name.startswith("vit.norm.")

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        for block in backbone.layers():
            block.mlp = ShiftedMlp(block.mlp, backbone.embed_dim)


ROW = Method(name="toy", paper_name="Toy", adaptation=f"{__name__}:Toy", has_weight_decay=False)
