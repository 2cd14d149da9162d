"""`PromptedViT` against a second forward pass, written here from the paper's description in plain float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.backbone import Backbone
from trainer.catalog import METHODS
from trainer.prompts import PromptedViT, uniform_prompt

LABELS_B = torch.tensor([0, 3, 6])


@pytest.fixture(params=["mean", "cls"])
def exact(backbone: Backbone, request: pytest.FixtureRequest) -> Backbone:
    """A copy of the bundled network in float64, with each of the two read-outs."""
    return Backbone(copy.deepcopy(backbone.vit), readout=request.param, sha256="").double()


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def prompted(backbone: Backbone, num_layers: int, prompt_length: int, *, prompt_dropout: float = 0.0) -> PromptedViT:
    generator = torch.Generator().manual_seed(2)
    prompt_LPD = torch.randn(num_layers, prompt_length, backbone.embed_dim, generator=generator)
    model = PromptedViT(
        backbone, num_classes=7, prompt_LPD=prompt_LPD, prompt_dropout=prompt_dropout, generator=generator
    )
    return model.to(backbone.mean_C11.dtype)


def linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdim=True) / x.shape[-1]
    return centred / torch.sqrt(variance + 1e-6) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain_block(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Pre-norm attention with three heads, then the two-layer perceptron."""
    size, tokens, width = x.shape
    joint = linear(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv")
    query, key, value = (part.reshape(size, tokens, 3, width // 3).transpose(1, 2) for part in joint.chunk(3, dim=-1))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(width // 3)
    scores = torch.exp(scores - scores.amax(-1, keepdim=True))
    mixed = torch.einsum("bhqk,bhkd->bhqd", scores / scores.sum(-1, keepdim=True), value)
    x = x + linear(mixed.transpose(1, 2).reshape(size, tokens, width), weights, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, weights, f"{name}.mlp.fc2")


def plain_tokens(weights: Mapping[str, Tensor], pixels: Tensor, prompts: Tensor | None) -> list[Tensor]:
    """The tokens that enter each of the five layers, and those that leave the last; patches first without position."""
    size = len(pixels)
    squares = (pixels.double() / 127.5 - 1).reshape(size, 3, 8, 4, 8, 4).permute(0, 2, 4, 1, 3, 5).reshape(size, 64, 48)
    patches = squares @ weights["patch_embed.proj.weight"].reshape(96, 48).T + weights["patch_embed.proj.bias"]
    start = weights["cls_token"].repeat(size, 1, 1)
    x = torch.cat([start, patches], dim=1) + weights["pos_embed"]
    count = 0 if prompts is None else prompts.shape[1]
    seen = [patches]
    for i in range(5):
        if prompts is not None and i < len(prompts):
            rest = x[:, 1:] if i == 0 else x[:, 1 + count :]
            x = torch.cat([x[:, :1], prompts[i].repeat(size, 1, 1), rest], dim=1)
        x = plain_block(x, weights, f"blocks.{i}")
        seen.append(x)
    return seen


@pytest.mark.parametrize("prompt_length", [1, 10, 100])
@pytest.mark.parametrize("num_layers", [0, 1, 5], ids=["linear", "shallow", "deep"])
def test_logits_and_gradients_are_those_of_the_described_model(
    exact: Backbone, num_layers: int, prompt_length: int
) -> None:
    model = prompted(exact, num_layers, prompt_length)
    weights = dict(exact.vit.named_parameters())
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.learnable().items()}
    last = plain_tokens(weights, images(), own.get("prompt"))[-1]
    read = last[:, 1:].sum(dim=1) / (last.shape[1] - 1) if exact.readout == "mean" else last[:, 0]
    expected_BK = linear(layer_norm(read, weights, "norm"), own, "head")
    logits_BK = model(images())
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-9)
    assert float(expected_BK.detach().abs().max()) > 0.05  # the agreement is not one of zeros
    expected = torch.autograd.grad(F.cross_entropy(expected_BK, LABELS_B), list(own.values()))
    torch.autograd.backward(F.cross_entropy(logits_BK, LABELS_B))
    assert {"head.weight", "head.bias"} | ({"prompt"} if num_layers else set()) == own.keys()
    for (name, parameter), gradient in zip(model.learnable().items(), expected, strict=True):
        assert parameter.grad is not None and float(gradient.abs().max()) > 1e-7, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-9)


def test_patch_tokens_are_those_that_enter_each_layer_of_the_plain_network(exact: Backbone) -> None:
    patches, *entering = plain_tokens(dict(exact.vit.named_parameters()), images(), None)[:-1]
    expected = [patches, *(tokens[:, 1:] for tokens in entering)]
    for tokens, described in zip(exact.patch_tokens(images()), expected, strict=True):
        torch.testing.assert_close(tokens, described, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_layers", "prompt_length", "count"), [(5, 20, 5 * 20 * 96), (1, 100, 100 * 96)])
def test_exactly_prompt_and_head_learn(exact: Backbone, num_layers: int, prompt_length: int, count: int) -> None:
    model = prompted(exact, num_layers, prompt_length)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"prompt_LPD": count, "head.weight": 7 * 96, "head.bias": 7}
    assert {name: p.numel() for name, p in model.learnable().items()} == {
        "prompt": count, "head.weight": 7 * 96, "head.bias": 7
    }  # fmt: skip
    torch.autograd.backward(model(images()).sum())
    assert all(p.grad is None for p in model.backbone.parameters())


def entering_blocks(model: PromptedViT) -> list[Tensor]:
    """What each block is given for three images."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        for block in model.backbone.layers()
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("prompt_length", [1, 64, 196])
def test_deep_prompts_replace_the_slots_and_shallow_ones_run_through(exact: Backbone, prompt_length: int) -> None:
    for num_layers in (1, 5):
        model = prompted(exact, num_layers, prompt_length)
        entering = entering_blocks(model)
        assert [tokens.shape for tokens in entering] == [(3, 1 + prompt_length + 64, 96)] * 5
        replaced = [
            any(bool((tokens[:, 1 : 1 + prompt_length] == prompt_PD).all()) for prompt_PD in model.prompt_LPD)
            for tokens in entering
        ]
        assert replaced == [layer < num_layers for layer in range(5)]


def test_dropout_hits_the_prompts_of_every_layer_and_image_in_training_mode_only(exact: Backbone) -> None:
    assert {name: row.prompt_dropout for name, row in METHODS.items() if row.prompt_dropout} == {"vpt_deep": 0.1}
    model = prompted(exact, 5, 50, prompt_dropout=0.1)
    torch.manual_seed(0)
    for prompt_PD, tokens_BTD in zip(model.prompt_LPD, entering_blocks(model.train()), strict=True):
        slots_BPD = tokens_BTD[:, 1:51]
        dropped_BPD = slots_BPD == 0
        torch.testing.assert_close(slots_BPD, torch.where(dropped_BPD, 0, prompt_PD.detach() / 0.9))
        assert 0.08 < float(dropped_BPD.double().mean()) < 0.12
        assert not torch.equal(dropped_BPD[0], dropped_BPD[1])
    assert not any(module.training for module in model.backbone.modules())
    for prompt_PD, tokens_BTD in zip(model.prompt_LPD, entering_blocks(model.eval()), strict=True):
        assert bool((tokens_BTD[:, 1:51] == prompt_PD).all())


@pytest.mark.parametrize(("num_layers", "prompt_length"), [(1, 100), (5, 20)])
def test_vpt_starts_uniform_within_its_bound(backbone: Backbone, num_layers: int, prompt_length: int) -> None:
    one, again, other = (
        uniform_prompt(
            backbone,
            num_layers=num_layers,
            prompt_length=prompt_length,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    )
    bound = math.sqrt(6 / (3 * 4 * 4 + 96))  # patches of 4 x 4 pixels, width 96
    assert one.shape == (num_layers, prompt_length, 96)
    assert 0.999 * bound < float(one.abs().max()) <= bound
    assert abs(float(one.mean())) < 0.02 * bound and abs(float(one.std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_head_starts_normal_with_a_deviation_of_0_02_and_no_bias(backbone: Backbone) -> None:
    one, again, other = (
        PromptedViT(
            backbone,
            num_classes=400,
            prompt_LPD=torch.zeros(0, 0, 96),
            prompt_dropout=0.0,
            generator=torch.Generator().manual_seed(seed),
        ).head
        for seed in (0, 0, 1)
    )
    assert abs(float(one.weight.detach().std()) - 0.02) < 2e-4 and not bool(one.bias.detach().any())
    assert torch.equal(one.weight, again.weight) and not torch.equal(one.weight, other.weight)
