"""LoRA: Low-Rank Adaptation (Hu et al., ICLR 2022, arXiv 2106.09685), on the query and value projections.

Shapes: B batch, T tokens, D width, R lora_rank.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone, project_rows

ADAPTED = ("query", "value")
"""Projections that are adapted; the key's is frozen (section 4.2 and table 5)."""


class LoRA(Adaptation):
    """Section 4.1, equation 3: h = W x + B A x, where A and B learn and the product B A has rank R.

    The paper scales B A by alpha / R, sets alpha to the first R that is tried, and does not tune it. Here alpha is R,
    so the scale is 1. B starts at 0, so the network starts as it was pretrained. A starts Gaussian; the paper gives no
    standard deviation, here it is 1 / sqrt(D). There is no dropout.
    """

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put the low-rank terms beside each block's projection of queries, keys and values."""
        for name in _projections(backbone):
            frozen = backbone.get_submodule(name)
            assert isinstance(frozen, nn.Linear), "the projection of the catalog's ViTs"
            backbone.set_submodule(name, LowRankProjection(frozen, self.config.lora_rank, generator))

    def merge(self, backbone: Backbone, frozen: Backbone) -> None:
        """Add each product B A to the weight that it stands beside (section 4.1: no additional inference latency)."""
        for name in _projections(backbone):
            adapted, source = backbone.get_submodule(name), frozen.get_submodule(name)
            assert isinstance(adapted, LowRankProjection) and isinstance(source, nn.Linear), "what `insert` put there"
            backbone.set_submodule(name, adapted.merged(source))


class LowRankProjection(nn.Module):
    """The joint projection of queries, keys and values, with low-rank terms. Its outputs are those, in this order."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.query = LowRankTerm(frozen.in_features, rank, generator)
        self.value = LowRankTerm(frozen.in_features, rank, generator)

    def forward(self, inputs_BTD: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return some rows of the outputs: all, the queries, or keys and values."""
        width = self.frozen.in_features
        outputs = project_rows(self.frozen, inputs_BTD, rows).split(width, dim=-1)
        names = ("query", "key", "value")[(rows.start or 0) // width :]

        parts = [
            part + getattr(self, name)(inputs_BTD) if name in ADAPTED else part
            for name, part in zip(names, outputs, strict=False)
        ]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def merged(self, frozen: nn.Linear) -> nn.Linear:
        """Return a linear layer that computes the same.

        Args:
            frozen: the layer in float32.
        """
        width = frozen.in_features
        merged = copy.deepcopy(frozen)
        merged.weight[:width] += self.query.product()
        merged.weight[2 * width :] += self.value.product()
        return merged


class LowRankTerm(nn.Module):
    """B A x, with A `down` and B `up`."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.down.weight, std=width**-0.5, generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return the term for each token."""
        term_BTD: Tensor = self.up(self.down(inputs_BTD))
        return term_BTD

    def product(self) -> Tensor:
        """Return B A, ``[D, D]``."""
        return self.up.weight @ self.down.weight


def _projections(backbone: Backbone) -> list[str]:
    """Return the names of the blocks' joint projections of queries, keys and values."""
    return [f"vit.blocks.{i}.attn.qkv" for i in range(backbone.num_layers)]
