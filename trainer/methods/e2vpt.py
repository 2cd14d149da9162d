"""E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning (Han et al., ICCV 2023, arXiv 2307.13770).

Shapes: B batch, L layers, P prompt_length, Q key_value_length, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.methods.prompts import Prompts
from trainer.methods.protocol import seeded
from trainer.model.adapted_vit import prompted_features
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT


class KeyValuePrompts(Prompts):
    """Prompts at every layer, and in each block Q learnable keys and values that no token has (section 3.2).

    Keys and values join those of the tokens behind their projections. As in the authors' published code, they are one
    matrix, each block has its own, and it starts by He's uniform rule over the inputs of a head. Prompts start as in
    VPT-Deep, and have the dropout of their published commands, 0.1. Keys and values have none.

    The paper's pruning of prompts (section 3.3) is left out: it trains a network, drops the prompts with the smallest
    scores, and trains anew. So this is not the method of the paper's tables, and its name says so.
    """

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> PromptedViT:
        """Return the network with prompts of the given initial value."""
        length = self.config.key_value_length
        key_value_LQD = torch.empty(backbone.num_layers, length, backbone.embed_dim)
        bound = math.sqrt(6 / (length * backbone.head_dim))
        nn.init.uniform_(key_value_LQD, -bound, bound, generator=seeded(self.config, "adaptation"))

        model = KeyValuePromptedViT(backbone, prompt_LPD=prompt_LPD, prompt_dropout=self.prompt_dropout, **head)
        model.key_value_LQD = nn.Parameter(key_value_LQD)
        return model


class KeyValuePromptedViT(PromptedViT):
    """A backbone with prompts, and with keys and values that no token has.

    Attributes:
        key_value_LQD: the keys of each block, which are its values too. Attention heads have consecutive columns.
    """

    key_value_LQD: nn.Parameter

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of uint8 images, the input of the head."""
        return prompted_features(
            self.backbone,
            images_BCHW,
            self.prompts(len(images_BCHW)),
            run_block=self.block_runner,
            keys_and_values=[matrix_QD.unsqueeze(0) for matrix_QD in self.key_value_LQD],
        )
