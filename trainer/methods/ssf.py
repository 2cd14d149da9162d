"""SSF: Scaling and Shifting Your Features (Lian et al., NeurIPS 2022, arXiv 2210.08823).

Shapes: B batch, T tokens, D width of an operation's output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone, project_rows

OF_A_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""Operations of a block."""
PATCHES, PROJECTION = "vit.patch_embed.norm", "vit.patch_embed.proj"
"""Where the patch embedding's output passes as tokens, which is empty in the catalog's ViTs; and what makes it."""


class SSF(Adaptation):
    """Section 3.2: y = gamma * x + beta behind each operation, where gamma and beta learn.

    Operations are the patch embedding, the norms, the projections of attention and the layers of MLPs (figure 2). Norms
    include the last one. Initial values are a choice of this package: gamma is 1 and beta 0, so the network starts as
    it was pretrained.
    """

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put a scale and a shift behind each operation."""
        for name in _operations(backbone):
            operation = backbone.get_submodule(name)
            width = backbone.embed_dim if name == PATCHES else operation.get_parameter("bias").numel()
            backbone.set_submodule(name, ScaledAndShifted(operation, width))

    @torch.no_grad()
    def merge(self, backbone: Backbone, frozen: Backbone) -> None:
        """Multiply scales into weights and add shifts to biases (section 3.2, re-parameterization)."""
        for name in _operations(backbone):
            adapted = backbone.get_submodule(name)
            assert isinstance(adapted, ScaledAndShifted), "what `insert` has put there"

            # The weights of the frozen network, in float32.
            source = PROJECTION if name == PATCHES else name
            merged = copy.deepcopy(frozen.get_submodule(source))
            weight, bias = merged.get_parameter("weight"), merged.get_parameter("bias")
            weight.copy_(weight * adapted.scale_D.view(-1, *[1] * (weight.ndim - 1)))
            bias.copy_(bias * adapted.scale_D + adapted.shift_D)

            backbone.set_submodule(source, merged)
            if name == PATCHES:
                backbone.set_submodule(name, adapted.operation)


class ScaledAndShifted(nn.Module):
    """An operation, with a scale and a shift of each of its outputs."""

    def __init__(self, operation: nn.Module, width: int) -> None:
        super().__init__()
        self.operation = operation
        self.scale_D = nn.Parameter(torch.ones(width))
        self.shift_D = nn.Parameter(torch.zeros(width))

    def forward(self, inputs_BTD: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the outputs, or some rows of those of a projection."""
        # A slice of all rows would add a step to the backward pass.
        if rows == slice(None):
            return torch.addcmul(self.shift_D, self.operation(inputs_BTD), self.scale_D)

        outputs_BTD = project_rows(self.operation, inputs_BTD, rows)
        return torch.addcmul(self.shift_D[rows], outputs_BTD, self.scale_D[rows])


def _operations(backbone: Backbone) -> Iterator[str]:
    yield PATCHES
    for i in range(backbone.num_layers):
        yield from (f"vit.blocks.{i}.{name}" for name in OF_A_BLOCK)
    yield "vit.norm"
