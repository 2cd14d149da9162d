"""A forward pass of a ViT and of each method, written from the papers' descriptions in plain float64.

It shares nothing with the package: weights come in by name, and every formula is written out.
Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


class PlainViT:
    """The frozen network with its head: the method `linear`.

    Args:
        network: weights by timm's names.
        own: what a model has learnt, by the names of its checkpoint.
    """

    heads = 3
    patch = 4

    def __init__(self, network: Weights, own: Weights, readout: str) -> None:
        self.network = {name: own.get(f"backbone.vit.{name}", weight) for name, weight in network.items()}
        self.own = own
        self.readout = readout
        self.depth = 1 + max(int(name.split(".")[1]) for name in network if name.startswith("blocks."))

    def logits(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        x = self.through_blocks(x)
        read = x[:, 1:].sum(dim=1) / (x.shape[1] - 1) if self.readout == "mean" else x[:, 0]
        features = self.operation("norm", read)
        return features @ self.own["head.weight"].T + self.own["head.bias"]

    def embed(self, pixels: Tensor) -> Tensor:
        size, _, side, _ = pixels.shape
        count = side // self.patch
        scaled = pixels.double() / 127.5 - 1
        squares = scaled.reshape(size, 3, count, self.patch, count, self.patch).permute(0, 2, 4, 1, 3, 5)
        kernel = self.network["patch_embed.proj.weight"]
        patches = squares.reshape(size, count**2, -1) @ kernel.flatten(1).T + self.network["patch_embed.proj.bias"]
        patches = self.behind("patch_embed.norm", patches)
        start = self.network["cls_token"].repeat(size, 1, 1)
        return torch.cat([start, patches], dim=1) + self.network["pos_embed"]

    def through_blocks(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = self.block(i, x)
        return x

    def block(self, i: int, x: Tensor) -> Tensor:
        x = x + self.attention(i, self.operation(f"blocks.{i}.norm1", x))
        return x + self.mlp(i, self.operation(f"blocks.{i}.norm2", x))

    def attention(self, i: int, x: Tensor) -> Tensor:
        query, key, value = self.queries_keys_values(i, x)
        width = query.shape[-1]
        mixed = []
        for columns in torch.arange(width).chunk(self.heads):
            scores = query[..., columns] @ key[..., columns].transpose(1, 2) / math.sqrt(len(columns))
            weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
            mixed.append(weights / weights.sum(dim=-1, keepdim=True) @ value[..., columns])
        return self.operation(f"blocks.{i}.attn.proj", torch.cat(mixed, dim=-1))

    def queries_keys_values(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.operation(f"blocks.{i}.attn.qkv", x).chunk(3, dim=-1)
        return query, key, value

    def mlp(self, i: int, x: Tensor) -> Tensor:
        return self.operation(f"blocks.{i}.mlp.fc2", gelu(self.operation(f"blocks.{i}.mlp.fc1", x)))

    def operation(self, name: str, x: Tensor) -> Tensor:
        """A linear layer, or a norm."""
        weight, bias = self.network[f"{name}.weight"], self.network[f"{name}.bias"]
        if weight.ndim == 2:
            return self.behind(name, x @ weight.T + bias)
        centred = x - x.sum(dim=-1, keepdim=True) / x.shape[-1]
        variance = (centred**2).sum(dim=-1, keepdim=True) / x.shape[-1]
        return self.behind(name, centred / torch.sqrt(variance + 1e-6) * weight + bias)

    def behind(self, name: str, y: Tensor) -> Tensor:
        """What a method does to the output of an operation."""
        return y


class PlainLoRA(PlainViT):
    """h = W x + B A x for queries and values."""

    def queries_keys_values(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().queries_keys_values(i, x)
        return query + self.term(i, "query", x), key, value + self.term(i, "value", x)

    def term(self, i: int, what: str, x: Tensor) -> Tensor:
        name = f"backbone.vit.blocks.{i}.attn.qkv.{what}"
        return x @ (self.own[f"{name}.up.weight"] @ self.own[f"{name}.down.weight"]).T


class PlainSSF(PlainViT):
    """y = gamma * x + beta behind every operation."""

    def behind(self, name: str, y: Tensor) -> Tensor:
        return self.own[f"backbone.vit.{name}.scale"] * y + self.own[f"backbone.vit.{name}.shift"]


class PlainAdapter(PlainViT):
    """h + W_up GELU(W_down h), where h is the output of the MLP."""

    def mlp(self, i: int, x: Tensor) -> Tensor:
        hidden = super().mlp(i, x)
        return hidden + self.layer(i, "up", gelu(self.layer(i, "down", hidden)))

    def layer(self, i: int, name: str, x: Tensor) -> Tensor:
        name = f"backbone.vit.blocks.{i}.mlp.{name}"
        return x @ self.own[f"{name}.weight"].T + self.own[f"{name}.bias"]


class PlainAdaptFormer(PlainAdapter):
    """MLP(x) + 0.1 ReLU(x W_down) W_up, where x is the input of the MLP."""

    def mlp(self, i: int, x: Tensor) -> Tensor:
        return PlainViT.mlp(self, i, x) + 0.1 * self.layer(i, "up", self.layer(i, "down", x).clamp(min=0))


class PlainDeepPrompts(PlainViT):
    """Prompts in front of the patches, replaced before every block."""

    def prompts(self) -> Tensor:
        return self.own["prompt"]

    def through_blocks(self, x: Tensor) -> Tensor:
        image = x
        for i, prompt in enumerate(self.prompts()):
            x = self.block(i, torch.cat([image[:, :1], prompt.repeat(len(x), 1, 1), image[:, 1:]], dim=1))
            image = torch.cat([x[:, :1], x[:, 1 + len(prompt) :]], dim=1)
        return x


class PlainShallowPrompts(PlainViT):
    """Prompts in front of the patches, which run through all blocks."""

    def through_blocks(self, x: Tensor) -> Tensor:
        (prompt,) = self.own["prompt"]
        return super().through_blocks(torch.cat([x[:, :1], prompt.repeat(len(x), 1, 1), x[:, 1:]], dim=1))


class PlainFourierPrompts(PlainDeepPrompts):
    """Half of the three prompts, rounded to two: the real part of the transforms along sequence and width."""

    def prompts(self) -> Tensor:
        first, others = self.own["prompt"][:, :2], self.own["prompt"][:, 2:]
        sequence, width = (dft(size) for size in first.shape[1:])
        transformed = sequence @ first.to(torch.complex128) @ width
        return torch.cat([transformed.real, others], dim=1)


class PlainKeyValuePrompts(PlainDeepPrompts):
    """Prompts, and rows that stand among the keys and among the values of each block."""

    def queries_keys_values(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().queries_keys_values(i, x)
        rows = self.own["key_value"][i].repeat(len(x), 1, 1)
        return query, torch.cat([rows, key], dim=1), torch.cat([rows, value], dim=1)


class PlainDeepBilinearPrompts(PlainDeepPrompts):
    """Prompts that are A B^T, replaced before every block."""

    def prompts(self) -> Tensor:
        return torch.einsum("lpr,ldr->lpd", self.own["prompt"], self.own["basis"])


class PlainBilinearPrompts(PlainViT):
    """Prompts in front of the patches that are A B^T."""

    def through_blocks(self, x: Tensor) -> Tensor:
        (left,), (right,) = self.own["prompt"], self.own["basis"]
        prompt = torch.einsum("pr,dr->pd", left, right)
        return super().through_blocks(torch.cat([x[:, :1], prompt.repeat(len(x), 1, 1), x[:, 1:]], dim=1))


class PlainGateVPT(PlainViT):
    """Gated prompts, and attention scores over a temperature."""

    def queries_keys_values(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().queries_keys_values(i, x)
        return query / self.own[f"backbone.vit.blocks.{i}.attn.qkv.temperature"], key, value

    def through_blocks(self, x: Tensor) -> Tensor:
        prompt = self.own["prompt"].repeat(len(x), 1, 1)
        start, patches = x[:, :1], x[:, 1:]
        for i in range(self.depth):
            x = self.block(i, torch.cat([start, prompt, patches], dim=1))
            start, made, patches = x[:, :1], x[:, 1 : 1 + prompt.shape[1]], x[:, 1 + prompt.shape[1] :]
            if i < self.depth - 1:
                gate = 1 / (1 + torch.exp(-self.own["gate"][i]))
                prompt = gate * made + (1 - gate) * prompt
        return x


def dft(size: int) -> Tensor:
    """The matrix of the discrete Fourier transform."""
    steps = torch.arange(size, dtype=torch.float64)
    return torch.exp(-2j * math.pi * torch.outer(steps, steps) / size)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


PLAIN: dict[str, type[PlainViT]] = {
    "spt_deep": PlainDeepPrompts,
    "spt_shallow": PlainShallowPrompts,
    "vpt_deep": PlainDeepPrompts,
    "vpt_shallow": PlainShallowPrompts,
    "linear": PlainViT,
    "full": PlainViT,
    "bias": PlainViT,
    "partial_1": PlainViT,
    "lora": PlainLoRA,
    "ssf": PlainSSF,
    "adapter": PlainAdapter,
    "gate_vpt": PlainGateVPT,
    "gate_vpt_prototypes": PlainGateVPT,
    "vfpt": PlainFourierPrompts,
    "bpt_deep": PlainDeepBilinearPrompts,
    "bpt_shallow": PlainBilinearPrompts,
    "e2vpt_unpruned": PlainKeyValuePrompts,
    "e2vpt_unpruned_prototypes": PlainKeyValuePrompts,
}
"""Every method of the catalog."""
