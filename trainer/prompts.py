"""`PromptedViT`: learnable prompts and a linear head around the backbone.

Shapes: B batch, L prompted layers, P prompt_length, N patch tokens, T tokens, D width, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.backbone import Backbone, run_block


class PromptedViT(nn.Module):
    """The tokens are CLS, patches, prompts; prompts carry no position embedding (VPT, section 3.2).

    With L = 1 the prompts run through all layers (shallow); with L = number of layers the prompts that leave a layer
    give way to the next layer's (deep); with L = 0 there are none (linear, full). A ViT does not see the order of its
    tokens, so this is the papers' `[CLS, prompts, patches]`.

    Args:
        prompt_LPD: the prompts' first value.
        prompt_dropout: VPT's dropout on the prompts, in training mode only.
        head_std: standard deviation of the head's first weight.
        generator: draws the head's first weight.

    Raises:
        ValueError: if other parameters learn than those that `learnable` names.
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
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.prompt_LPD: nn.Parameter = nn.Parameter(prompt_LPD.clone())
        self.dropout = nn.Dropout(prompt_dropout)
        expected = {"head.weight", "head.bias"} | ({"prompt"} if prompt_LPD.numel() else set())
        if backbone_learns:
            expected |= {f"backbone.{name}" for name, _ in backbone.named_parameters()}
        if wrong := expected ^ self.learnable().keys():
            raise ValueError(f"what learns must be {', '.join(sorted(expected))}; these differ: {sorted(wrong)}.")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to logits ``[B, K]``."""
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to what the head reads, ``[B, D]``."""
        cls_B1D, patches_BND, _ = self.backbone.embed(images_BCHW)
        tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)
        layers, _, _ = self.prompt_LPD.shape
        reads_all = self.backbone.readout == "mean"
        for i, block in enumerate(self.backbone.layers()):
            last = i == self.backbone.num_layers - 1
            leaving = 1 if last and not reads_all else None
            if i >= layers:
                tokens_BTD = run_block(block, tokens_BTD, leaving=leaving)
            elif layers == 1 or (last and reads_all):
                # These prompts are read behind the block: by the next one (shallow), or by the head.
                tokens_BTD = torch.cat([tokens_BTD, self._prompt_of(i, len(tokens_BTD))], dim=1)
                tokens_BTD = run_block(block, tokens_BTD, leaving=leaving)
            else:
                # The next layer has prompts of its own: what leaves this one's slots would be thrown away.
                context_AXD = self._prompt_of(i, len(tokens_BTD) if self._drops else 1)
                leaving = leaving or tokens_BTD.shape[1]
                tokens_BTD = run_block(block, tokens_BTD, context_AXD=context_AXD, leaving=leaving)
        return self.backbone.read_out(tokens_BTD)

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout.p > 0

    def _prompt_of(self, layer: int, batch: int) -> Tensor:
        """A layer's prompts ``[batch, P, D]``, each image's with dropout of its own."""
        prompt_BPD: Tensor = self.dropout(self.prompt_LPD[layer].expand(batch, -1, -1))
        return prompt_BPD

    def learnable(self) -> dict[str, nn.Parameter]:
        """What learns, by name: head.weight, head.bias; the prompt if there is one; the network if it does."""
        named = dict(self.named_parameters())
        named["prompt"] = named.pop("prompt_LPD")
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad and parameter.numel()}


def uniform_prompt(backbone: Backbone, *, num_layers: int, prompt_length: int, generator: torch.Generator) -> Tensor:
    """VPT's first value ``[L, P, D]``: uniform in ± sqrt(6 / (3 p² + D)), p the patch size (VPT, section 3.2)."""
    bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
    prompt_LPD = torch.empty(num_layers, prompt_length, backbone.embed_dim)
    return prompt_LPD.uniform_(-bound, bound, generator=generator)
