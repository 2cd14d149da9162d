"""Each method as one would write it around timm: the plain side of `step.py`.

The network is timm's, with `requires_grad` switched and its modules wrapped. Tokens of a method are concatenated to
the others before each block. Each plain model trains the very parameters of one of ours, so both sides have the same
loss and the same gradients.
Shapes: B batch, C 3, H W image height and width, L prompted layers, P prompt_length, T tokens, Q keys that no token
has, D width, d width of an attention head, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.benchmarks.published import plain_logits, plain_tokens, read_plainly
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.methods.adapter import PARALLEL_SCALE
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import Backbone

Joint = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
VIT = "backbone.vit."
"""What the names of our parameters begin with, before timm's names."""


class PlainModel:
    """A ViT of timm with a head.

    Args:
        model: our model, whose parameters this one trains too.
        frozen: the network that our model was made of.
    """

    def __init__(self, config: TrainConfig, model: AdaptedViT, frozen: Backbone) -> None:
        self.config = config
        self.head = model.head
        self.readout = frozen.readout
        self.mean_C11, self.std_C11 = frozen.mean_C11, frozen.std_C11
        self.learnable = model.learnable()

        # `deepcopy` returns the objects of its memo as they are: the frozen weights are shared.
        self.vit: VisionTransformer = copy.deepcopy(frozen.vit, {id(weight): weight for weight in frozen.parameters()})
        for name, _ in list(self.vit.named_parameters()):
            if VIT + name in self.learnable:
                module, _, attribute = name.rpartition(".")
                setattr(self.vit.get_submodule(module), attribute, self.learnable[VIT + name])
        self.insert()

    def insert(self) -> None:
        """Wrap modules of the network."""

    def wrap(self, part: str, wrapper: Callable[[int, Any], nn.Module]) -> None:
        """Replace a part of each block by what a function makes of the block's number and the part."""
        for i in range(len(self.vit.blocks)):
            name = f"blocks.{i}.{part}"
            self.vit.set_submodule(name, wrapper(i, self.vit.get_submodule(name)))

    def of_a_block(self, i: int, name: str) -> nn.Parameter:
        """Return a parameter that our model has in a block."""
        return self.learnable[f"{VIT}blocks.{i}.{name}"]

    def prompts(self) -> Tensor:
        """Return the prompts of each prompted layer, ``[L, P, D]``."""
        return torch.empty(0, 0, self.vit.embed_dim)

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of normalised pixels."""
        dropout = METHODS[self.config.method].prompt_dropout
        return plain_logits(self.vit, self.head, self.prompts(), self.readout, pixels_BCHW, dropout)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of uint8 images."""
        return self.logits((images_BCHW.float() / 255 - self.mean_C11) / self.std_C11)


class PlainPrompts(PlainModel):
    """Prompts before the first block, or before each."""

    def prompts(self) -> Tensor:
        """Return the parameter."""
        return self.learnable["prompt"]


class PlainFourierPrompts(PlainPrompts):
    """Prompts of which the first are transformed."""

    def prompts(self) -> Tensor:
        """Return the transformed prompts, then the others."""
        prompt_LPD = self.learnable["prompt"]
        count = round(self.config.fourier_share * prompt_LPD.shape[1])
        return torch.cat([torch.fft.fft2(prompt_LPD[:, :count]).real, prompt_LPD[:, count:]], dim=1)


class PlainProducts(PlainPrompts):
    """Prompts that are the product of two matrices."""

    def prompts(self) -> Tensor:
        """Return the products."""
        return self.learnable["prompt"] @ self.learnable["basis"].transpose(1, 2)


class PlainAttention(nn.Module):
    """timm's attention, which a method changes between its projections."""

    def __init__(self, attention: Attention, change: Callable[..., Joint]) -> None:
        super().__init__()
        self.attention = attention
        self.change = change

    def forward(self, inputs_BTD: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Return the mixed tokens, as timm's blocks call it."""
        attention = self.attention
        size, num_tokens, width = inputs_BTD.shape
        heads = (attention.num_heads, attention.head_dim)
        joint_3BHTd = attention.qkv(inputs_BTD).reshape(size, num_tokens, 3, *heads).permute(2, 0, 3, 1, 4)
        mixed_BHTd = F.scaled_dot_product_attention(*self.change(*joint_3BHTd.unbind(0)))
        mixed_BTD: Tensor = attention.proj(mixed_BHTd.transpose(1, 2).reshape(size, num_tokens, width))
        return mixed_BTD


class PlainKeyValuePrompts(PlainPrompts):
    """Prompts before each block, and rows among its keys and values."""

    def insert(self) -> None:
        """Replace the attention of each block."""
        self.wrap("attn", lambda i, attention: PlainAttention(attention, lambda *joint: self.with_rows(i, *joint)))

    def with_rows(self, i: int, query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor) -> Joint:
        """Return queries, keys and values of a block, with its rows."""
        size, num_heads, _, head_dim = key_BHTd.shape
        rows_QHd = self.learnable["key_value"][i].unflatten(1, (num_heads, head_dim))
        rows_BHQd = rows_QHd.transpose(0, 1).expand(size, -1, -1, -1)
        return query_BHTd, torch.cat([key_BHTd, rows_BHQd], dim=2), torch.cat([value_BHTd, rows_BHQd], dim=2)


class PlainGateVPT(PlainPrompts):
    """Prompts with a gate behind each block but the last, and a temperature in each."""

    def insert(self) -> None:
        """Replace the attention of each block."""
        self.wrap("attn", lambda i, attention: PlainAttention(attention, lambda *joint: self.tempered(i, *joint)))

    def tempered(self, i: int, query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor) -> Joint:
        """Return queries, keys and values of a block, the queries divided by its temperature."""
        return query_BHTd / self.of_a_block(i, "attn.qkv.temperature"), key_BHTd, value_BHTd

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of normalised pixels."""
        tokens_BTD = plain_tokens(self.vit, pixels_BCHW)
        rest_BTD = tokens_BTD[:, 1:]
        prompt_BPD = self.learnable["prompt"].expand(len(tokens_BTD), -1, -1)
        length = prompt_BPD.shape[1]

        for i, block in enumerate(self.vit.blocks):
            if i:
                gate = self.learnable["gate"][i - 1].sigmoid()
                prompt_BPD = gate * tokens_BTD[:, 1 : 1 + length] + (1 - gate) * prompt_BPD
                rest_BTD = tokens_BTD[:, 1 + length :]
            tokens_BTD = block(torch.cat([tokens_BTD[:, :1], prompt_BPD, rest_BTD], dim=1))

        return read_plainly(self.vit, self.head, self.readout, tokens_BTD)


class PlainLoRA(PlainModel):
    """Low-rank terms that are added to the queries and values of the joint projection."""

    def insert(self) -> None:
        """Wrap the joint projection of each block."""
        self.wrap("attn.qkv", lambda i, frozen: LoRAProjection(frozen, self.term(i, "query"), self.term(i, "value")))

    def term(self, i: int, part: str) -> tuple[Tensor, Tensor]:
        """Return the two weights of a block's term."""
        return self.of_a_block(i, f"attn.qkv.{part}.down.weight"), self.of_a_block(i, f"attn.qkv.{part}.up.weight")


class LoRAProjection(nn.Module):
    """A joint projection with two low-rank terms. Each is a pair of weights."""

    def __init__(self, frozen: nn.Module, query: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.frozen = frozen
        self.query = query
        self.value = value

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return queries, keys and values."""
        width = inputs_BTD.shape[-1]
        outputs_BTD: Tensor = self.frozen(inputs_BTD)
        for columns, (down, up) in ((slice(0, width), self.query), (slice(2 * width, None), self.value)):
            outputs_BTD[..., columns] += F.linear(F.linear(inputs_BTD, down), up)
        return outputs_BTD


class PlainSSF(PlainModel):
    """A scale and a shift behind each operation."""

    def insert(self) -> None:
        """Wrap each operation."""
        for name in [name.removesuffix(".scale") for name in self.learnable if name.endswith(".scale")]:
            timm_name = name.removeprefix(VIT)
            operation = self.vit.get_submodule(timm_name)
            shifted = ScaleAndShift(operation, self.learnable[f"{name}.scale"], self.learnable[f"{name}.shift"])
            self.vit.set_submodule(timm_name, shifted)


class ScaleAndShift(nn.Module):
    """An operation with a scale and a shift."""

    def __init__(self, operation: nn.Module, scale_D: Tensor, shift_D: Tensor) -> None:
        super().__init__()
        self.operation = operation
        self.scale_D = scale_D
        self.shift_D = shift_D

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return the scaled and shifted outputs."""
        outputs_BTD: Tensor = self.operation(inputs_BTD) * self.scale_D + self.shift_D
        return outputs_BTD


class PlainAdapter(PlainModel):
    """A bottleneck behind each MLP, or beside it."""

    def insert(self) -> None:
        """Wrap the MLP of each block."""
        is_parallel = self.config.adapter_form == "parallel"
        names = ("mlp.down.weight", "mlp.down.bias", "mlp.up.weight", "mlp.up.bias")
        self.wrap("mlp", lambda i, mlp: AdaptedMLP(mlp, is_parallel, *(self.of_a_block(i, name) for name in names)))


class AdaptedMLP(nn.Module):
    """An MLP with an adapter."""

    def __init__(self, mlp: nn.Module, is_parallel: bool, *weights: Tensor) -> None:
        super().__init__()
        self.mlp = mlp
        self.is_parallel = is_parallel
        self.weights = weights

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Return the MLP's output with the adapter's."""
        down, down_bias, up, up_bias = self.weights
        hidden_BTD: Tensor = self.mlp(inputs_BTD)
        if self.is_parallel:
            return hidden_BTD + PARALLEL_SCALE * F.linear(F.relu(F.linear(inputs_BTD, down, down_bias)), up, up_bias)
        return hidden_BTD + F.linear(F.gelu(F.linear(hidden_BTD, down, down_bias)), up, up_bias)


PLAIN: dict[str, type[PlainModel]] = {
    "spt_deep": PlainPrompts,
    "spt_shallow": PlainPrompts,
    "vpt_deep": PlainPrompts,
    "vpt_shallow": PlainPrompts,
    "linear": PlainModel,
    "full": PlainModel,
    "bias": PlainModel,
    "partial_1": PlainModel,
    "lora": PlainLoRA,
    "ssf": PlainSSF,
    "adapter": PlainAdapter,
    "gate_vpt": PlainGateVPT,
    "gate_vpt_prototypes": PlainGateVPT,
    "vfpt": PlainFourierPrompts,
    "bpt_deep": PlainProducts,
    "bpt_shallow": PlainProducts,
    "e2vpt_unpruned": PlainKeyValuePrompts,
    "e2vpt_unpruned_prototypes": PlainKeyValuePrompts,
}
"""Every method of the catalog."""
