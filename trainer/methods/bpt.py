"""BPT: Attention to the Burstiness in Visual Prompt Tuning (Wang et al., ICCV 2025, arXiv 2506.22908).

Shapes: L prompted layers, P prompt_length, R bpt_rank, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.methods.prompts import Prompts
from trainer.methods.protocol import seeded
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT


class BPT(Prompts):
    """BPT-bilinear, the paper's compact form: prompts are the product A B^T of two matrices that learn.

    A is ``[P, R]`` and B is ``[D, R]``; each prompted layer has its own. As in the authors' published code, A starts
    normally with standard deviation 0.02, B by Glorot's uniform rule, and there is no dropout. The number of parameters
    that the paper prints for its deep form, 0.1836 M on ViT-B, fits four matrices B, and the published code for MoCo v3
    has one in each block, as this package.

    The forms that start B from a whitening matrix are left out. The matrix is the inverse square root of a covariance
    of N patch tokens in D dimensions. With N < D that does not exist, and what the published code gets for it depends
    on rounding. The paper's tables have the form without it.
    """

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> PromptedViT:
        """Return the network with prompts that are a product. Of their initial value, only the number is taken."""
        num_layers, length, _ = prompt_LPD.shape
        width = backbone.embed_dim
        rank = self.config.bpt_rank
        generator = seeded(self.config, "adaptation")

        left_LPR = torch.empty(num_layers, length, rank)
        right_LDR = torch.empty(num_layers, width, rank)
        nn.init.normal_(left_LPR, std=0.02, generator=generator)
        bound = math.sqrt(6 / (rank + width))
        nn.init.uniform_(right_LDR, -bound, bound, generator=generator)

        model = BilinearPromptedViT(backbone, prompt_LPD=left_LPR, prompt_dropout=self.prompt_dropout, **head)
        model.basis_LDR = nn.Parameter(right_LDR)
        return model


class BilinearPromptedViT(PromptedViT):
    """A backbone with prompts that are a product. The parameter `prompt` is A, `basis` is B.

    Attributes:
        basis_LDR: the matrix B of each prompted layer.
    """

    basis_LDR: nn.Parameter

    def prompt_tokens(self) -> Tensor:
        """Return the prompts as they enter each prompted layer."""
        return self.prompt_LPD @ self.basis_LDR.transpose(1, 2)
