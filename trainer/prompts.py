"""`PromptedViT`: learnable prompts and a linear head around the frozen backbone.

Shapes: B batch, L prompted layers, P prompt_length, N patch tokens, D width, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.backbone import Backbone


class PromptedViT(nn.Module):
    """Tokens are `[CLS, prompts, patches]`; prompts carry no position embedding (VPT, section 3.2).

    With L = 1 the prompts run through all layers (shallow); with L = number of layers the prompt slots are replaced
    before each layer (deep); with L = 0 there are none and only the head learns (linear).

    Args:
        prompt_LPD: the prompts' first value.
        prompt_dropout: VPT's dropout on the prompts, in training mode only.
        generator: draws the head's first weight.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        prompt_LPD: Tensor,
        prompt_dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.prompt_LPD: nn.Parameter = nn.Parameter(prompt_LPD.clone())
        self.dropout = nn.Dropout(prompt_dropout)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to logits ``[B, K]``."""
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to what the head reads, ``[B, D]``; without prompts nothing here learns."""
        cls_B1D, patches_BND, _ = self.backbone.embed(images_BCHW)
        layers, length, _ = self.prompt_LPD.shape
        tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)
        for i, block in enumerate(self.backbone.layers()):
            if i < layers:
                prompt_BPD = self.dropout(self.prompt_LPD[i].expand(len(tokens_BTD), -1, -1))
                behind = 1 + (length if i else 0)
                tokens_BTD = torch.cat([tokens_BTD[:, :1], prompt_BPD, tokens_BTD[:, behind:]], dim=1)
            tokens_BTD = block(tokens_BTD)
        return self.backbone.read_out(tokens_BTD)

    def learnable(self) -> dict[str, nn.Parameter]:
        """What learns, by name: the head, and the prompt if there is one."""
        named = dict(self.head.named_parameters(prefix="head")) | {"prompt": self.prompt_LPD}
        return {name: parameter for name, parameter in named.items() if parameter.numel()}


def uniform_prompt(backbone: Backbone, *, num_layers: int, prompt_length: int, generator: torch.Generator) -> Tensor:
    """VPT's first value ``[L, P, D]``: uniform in ± sqrt(6 / (3 p² + D)), p the patch size (VPT, section 3.2)."""
    bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
    prompt_LPD = torch.empty(num_layers, prompt_length, backbone.embed_dim)
    return prompt_LPD.uniform_(-bound, bound, generator=generator)
