"""Adapters: a bottleneck of two layers beside or behind each MLP.

Sequential: Pfeiffer et al., EACL 2021, arXiv 2005.00247, the form of the row Adapter in VPT's tables (arXiv
2203.12119, which cites it). Parallel: AdaptFormer, NeurIPS 2022, arXiv 2205.13535.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone

PARALLEL_SCALE = 0.1
"""Factor s of the parallel adapter (AdaptFormer, section 4.1)."""


class Adapters(Adaptation):
    """An adapter in each block. Only adapters and the head learn."""

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put an adapter at the MLP of each block."""
        adapter_class = {"sequential": SequentialAdapter, "parallel": ParallelAdapter}[self.config.adapter_form]
        for block in backbone.layers():
            block.mlp = adapter_class(block.mlp, backbone.embed_dim, self.config.adapter_dim, generator)


class Bottleneck(nn.Module):
    """An MLP of the network, and the two layers of its adapter.

    The second layer starts at 0, so the network starts as it was pretrained (AdaptFormer, section 3.2; the other papers
    ask for a start near the identity). The first starts from Kaiming's uniform values, both biases start at 0.
    """

    def __init__(self, mlp: nn.Module, width: int, adapter_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(width, adapter_dim)
        self.up = nn.Linear(adapter_dim, width)

        # Kaiming's values for a linear layer, with the gain that torch takes for it.
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)


class SequentialAdapter(Bottleneck):
    """h + W_up GELU(W_down h) behind an MLP with output h, within the block's residual branch.

    The paper searches the place and takes this one, with a residual connection of its own. It uses ReLU for language;
    here GELU, as in the MLPs of a ViT.
    """

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return the MLP's output with the adapter's."""
        hidden_BTD: Tensor = self.mlp(inputs_BTD)
        adapted_BTD: Tensor = hidden_BTD + self.up(F.gelu(self.down(hidden_BTD)))
        return adapted_BTD


class ParallelAdapter(Bottleneck):
    """MLP(x) + s ReLU(x W_down) W_up, where x is the normalized input of the MLP (AdaptFormer, section 3.2)."""

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return the MLP's output with the adapter's."""
        adapted_BTD: Tensor = self.mlp(inputs_BTD) + PARALLEL_SCALE * self.up(F.relu(self.down(inputs_BTD)))
        return adapted_BTD
