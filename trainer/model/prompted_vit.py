"""`PromptedViT`: learnable prompts and a linear head around the backbone.

Shapes: B batch, A prompts in a batch, L prompted layers, P prompt_length, N patch tokens, T tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.model.backbone import Backbone, run_block


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
        drops = self.training and self.dropout.p > 0
        copies = len(images_BCHW) if drops else 1  # each image's prompts with dropout of their own
        prompts = [self.dropout(prompt_PD.expand(copies, -1, -1)) for prompt_PD in self.prompt_LPD]
        return prompted_features(self.backbone, images_BCHW, prompts)

    def learnable(self) -> dict[str, nn.Parameter]:
        """What learns, by name: head.weight, head.bias; the prompt if there is one; the network if it does."""
        named = dict(self.named_parameters())
        named["prompt"] = named.pop("prompt_LPD")
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad and parameter.numel()}


def prompted_features(backbone: Backbone, images_BCHW: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """uint8 images to what the head reads, ``[B, D]``, with prompts at the first layers.

    Args:
        prompts: of each prompted layer ``[A, P, D]``: of every image (A = B), of all together (A = 1), or of as many
            images each as there are, in order (A divides B). One layer's run through all layers; those of several
            give way, behind their block, to the next layer's.
    """
    cls_B1D, patches_BND, _ = backbone.embed(images_BCHW)
    tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)
    reads_all = backbone.readout == "mean"
    for i, block in enumerate(backbone.layers()):
        last = i == backbone.num_layers - 1
        leaving = 1 if last and not reads_all else None
        if i >= len(prompts):
            tokens_BTD = run_block(block, tokens_BTD, leaving=leaving)
        else:
            # Who reads a prompt behind its block: the head, or the next block if it has none of its own.
            read = reads_all if last else len(prompts) == 1
            tokens_BTD = run_block(block, tokens_BTD, context_AXD=prompts[i], leaving=leaving, context_leaves=read)
    return backbone.read_out(tokens_BTD)
