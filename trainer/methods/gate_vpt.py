"""GateVPT: Improving Visual Prompt Tuning for Self-supervised Vision Transformers (Yoo et al., ICML 2023,
arXiv 2306.05067).

Shapes: A prompts in a batch, B batch, L layers, T tokens, P prompt_length, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.methods.prompts import Prompts
from trainer.model.backbone import Backbone, project_rows
from trainer.model.prompted_vit import PromptedViT


class GateVPT(Prompts):
    """Prompts at the first layer, a gate behind each layer but the last, and a temperature of attention in each layer.

    Gates are section 4.1: equation 6, g = sigmoid(gamma), and equation 7. Every gamma starts at `gate_init`, which the
    paper searches for each task (appendix A: 5 in most). Temperatures are section 4.2: the attention scores of a layer
    are divided by a learnable scalar tau before the softmax. The paper names no initial value of tau; here it is 1,
    the pretrained attention. Prompts start uniformly and have no dropout, as in VPT-Shallow, which is this method with
    all gates at 1. Prompts that start from prototypes are a combination of this package, with a name of their own.
    """

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> PromptedViT:
        """Return the network with gated prompts of the given initial value."""
        model = GatedPromptedViT(backbone, prompt_LPD=prompt_LPD, prompt_dropout=self.prompt_dropout, **head)
        model.gate_L = nn.Parameter(torch.full((backbone.num_layers - 1,), self.config.gate_init))

        # Behind the constructor, which expects that no parameter but the prompts is learnable.
        for i in range(backbone.num_layers):
            name = f"vit.blocks.{i}.attn.qkv"
            backbone.set_submodule(name, TemperedProjection(backbone.get_submodule(name)))
        return model


class TemperedProjection(nn.Module):
    """The joint projection of queries, keys and values, whose queries are divided by a temperature."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.temperature_1 = nn.Parameter(torch.ones(1))

    def forward(self, inputs_BTD: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return some rows of the outputs: all, the queries, or keys and values."""
        outputs_BTD = project_rows(self.frozen, inputs_BTD, rows)
        if rows.start:
            return outputs_BTD

        # Queries come first. Slices of them alone, and what joins them again, would be copies.
        width = inputs_BTD.shape[-1]
        if rows.stop == width:
            return outputs_BTD / self.temperature_1
        return torch.cat([outputs_BTD[..., :width] / self.temperature_1, outputs_BTD[..., width:]], dim=-1)


class GatedPromptedViT(PromptedViT):
    """A backbone whose prompts pass through all layers, as far as gates let them.

    Attributes:
        gate_L: the gamma of each layer but the last, a gate before the sigmoid.
    """

    gate_L: nn.Parameter

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of uint8 images, the input of the head."""
        backbone = self.backbone
        cls_B1D, patches_BND, _ = backbone.embed(images_BCHW)
        tokens_BTD = torch.cat([cls_B1D, patches_BND], dim=1)
        (prompt_APD,) = self.prompts(len(images_BCHW))

        reads_all_tokens = backbone.readout == "mean"
        gates_L = self.gate_L.sigmoid()
        *blocks, last = backbone.layers()

        for block, gate in zip(blocks, gates_L, strict=True):
            output_BTD = self.block_runner(block, tokens_BTD, context_AXD=prompt_APD, output_context=True)
            tokens_BTD, made_BPD = output_BTD.tensor_split([tokens_BTD.shape[1]], dim=1)
            # Equation 7: a convex combination of what entered the layer and of what left it.
            prompt_APD = gate * made_BPD + (1 - gate) * prompt_APD

        tokens_BTD = self.block_runner(
            last,
            tokens_BTD,
            context_AXD=prompt_APD,
            num_outputs=None if reads_all_tokens else 1,
            output_context=reads_all_tokens,
        )
        return backbone.read_out(tokens_BTD)
