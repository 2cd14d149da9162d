"""`PromptedViT`: learnable prompts and a linear head around the backbone.

Shapes: B batch, A prompts in a batch, L prompted layers, P prompt_length, N patch tokens, T tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainer.model.backbone import Backbone, run_block

RunBlock = Callable[..., Tensor]
"""Computes a block, with the arguments of `run_block`."""


class PromptedViT(nn.Module):
    """A backbone with learnable prompts and a linear head.

    Its tokens are CLS, patches, prompts, in this order. Prompts have no position embedding (VPT, section 3.2).
    With L = 1 the prompts pass through all layers (shallow). With L = number of layers each layer's prompts replace
    those that leave the layer before it (deep). With L = 0 there are no prompts (linear, full). A ViT does not depend
    on the order of its tokens, so this equals the papers' `[CLS, prompts, patches]`.

    Args:
        prompt_LPD: initial value of the prompts.
        prompt_dropout: rate of VPT's dropout on the prompts, in training mode only.
        generator: draws the head's initial weight.
        head_std: standard deviation of the head's initial weight.
        backbone_learns: whether the backbone's parameters are trained.

    Attributes:
        run_block: computes a block in training mode. In evaluation mode it is `run_block` itself.

    Raises:
        ValueError: if the parameters that require gradients are not exactly the expected ones.
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
        self.run_block: RunBlock = run_block

        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=generator)
        nn.init.zeros_(self.head.bias)

        self.prompt_LPD: nn.Parameter = nn.Parameter(prompt_LPD.clone())
        self.dropout = nn.Dropout(prompt_dropout)

        # A frozen parameter that requires gradients would be trained unnoticed: compare names before the first step.
        expected = {"head.weight", "head.bias"}
        if prompt_LPD.numel():
            expected.add("prompt")
        if backbone_learns:
            expected |= {f"backbone.{name}" for name, _ in backbone.named_parameters()}
        different = expected ^ self.learnable().keys()
        if different:
            raise ValueError(
                f"the learnable parameters must be {', '.join(sorted(expected))}; these differ: {sorted(different)}."
            )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of uint8 images."""
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of uint8 images, the input of the head."""
        # With dropout each image has its own copy of the prompts, because each needs its own mask.
        has_dropout = self.training and self.dropout.p > 0
        copies = len(images_BCHW) if has_dropout else 1

        prompts = [self.dropout(prompt_PD.expand(copies, -1, -1)) for prompt_PD in self.prompt_LPD]
        return prompted_features(
            self.backbone, images_BCHW, prompts, run_block=self.run_block if self.training else run_block
        )

    def learnable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name: head.weight, head.bias, the prompt and the backbone if they learn."""
        parameters = dict(self.named_parameters())
        # Checkpoints store it under this name; a renamed attribute must not change them.
        parameters["prompt"] = parameters.pop("prompt_LPD")

        return {
            name: parameter for name, parameter in parameters.items() if parameter.requires_grad and parameter.numel()
        }


def prompted_features(
    backbone: Backbone, images_BCHW: Tensor, prompts: Sequence[Tensor], *, run_block: RunBlock = run_block
) -> Tensor:
    """Return the features ``[B, D]`` of uint8 images, with prompts at the first layers.

    Args:
        prompts: one tensor ``[A, P, D]`` per prompted layer. Every image has its own prompts (A = B), all images share
            them (A = 1), or each serves B / A consecutive images. The prompts of a single layer pass through all
            layers; those of several layers are replaced behind their block by the next layer's.
        run_block: computes a block.
    """
    cls_B1D, patches_BND, _ = backbone.embed(images_BCHW)
    tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)

    reads_all_tokens = backbone.readout == "mean"
    is_shallow = len(prompts) == 1

    for i, block in enumerate(backbone.layers()):
        is_last = i == backbone.num_layers - 1
        num_outputs = 1 if is_last and not reads_all_tokens else None

        if i >= len(prompts):
            tokens_BTD = run_block(block, tokens_BTD, num_outputs=num_outputs)
        else:
            # A prompt's output is needed by the head, or by a next block that has no prompts of its own.
            output_context = reads_all_tokens if is_last else is_shallow
            tokens_BTD = run_block(
                block, tokens_BTD, context_AXD=prompts[i], num_outputs=num_outputs, output_context=output_context
            )

    return backbone.read_out(tokens_BTD)
