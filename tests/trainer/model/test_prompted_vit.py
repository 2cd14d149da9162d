"""`PromptedViT` against a second forward pass, written here from the paper's description in plain float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from trainer.catalog import BACKBONES, METHODS, BackboneRow
from trainer.model.adapted_vit import prompted_features
from trainer.model.backbone import MEAN_AND_STD, Backbone, build_vit, run_block, with_fresh_norm
from trainer.model.prompted_vit import PromptedViT
from trainer.prompt_init.strategies import uniform_prompt

LABELS_B = torch.tensor([0, 3, 6])

WITH_DROPOUT = ("vpt_deep", "e2vpt_unpruned", "e2vpt_unpruned_prototypes")
"""Methods whose papers drop values of the prompts."""


@pytest.fixture(params=["mean", "cls"])
def exact(backbone: Backbone, request: pytest.FixtureRequest) -> Backbone:
    """A copy of the bundled network in float64, with each of the two read-outs."""
    return Backbone(copy.deepcopy(backbone.vit), readout=request.param, sha256="").double()


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def prompted(
    backbone: Backbone, num_layers: int, prompt_length: int, *, dropout: float = 0.0, learns: bool = False
) -> PromptedViT:
    generator = torch.Generator().manual_seed(2)
    prompt_LPD = torch.randn(num_layers, prompt_length, backbone.embed_dim, generator=generator)
    model = PromptedViT(
        backbone.variant(learns=learns, drop_path=0.0),
        num_classes=7,
        prompt_LPD=prompt_LPD,
        prompt_dropout=dropout,
        generator=generator,
        backbone_learns=learns,
    )
    return model.to(backbone.mean_C11.dtype)


@contextmanager
def watched(*modules: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the input and output of each call of the modules, in order."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: seen.append((given[0].detach(), made.detach())))
        for module in modules
    ]
    yield seen
    for hook in hooks:
        hook.remove()


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
    """Return the tokens that enter each of the five layers, and those that leave the last. Layer 0 has no positions."""
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


def plain_logits(weights: Mapping[str, Tensor], readout: str, pixels: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    last = plain_tokens(weights, pixels, own.get("prompt"))[-1]
    read = last[:, 1:].sum(dim=1) / (last.shape[1] - 1) if readout == "mean" else last[:, 0]
    return linear(layer_norm(read, weights, "norm"), own, "head")


@pytest.mark.parametrize(
    ("num_layers", "prompt_length", "learns"),
    [(0, 0, False), (0, 0, True), *((layers, length, False) for layers in (1, 5) for length in (1, 10, 100))],
    ids=str,
)
def test_logits_and_gradients_are_those_of_the_described_model(
    exact: Backbone, num_layers: int, prompt_length: int, learns: bool
) -> None:
    model = prompted(exact, num_layers, prompt_length, learns=learns)
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.learnable().items()}
    network = {name: own.get(f"backbone.vit.{name}", weight) for name, weight in exact.vit.named_parameters()}
    named = {"head.weight", "head.bias"} | ({"prompt"} if num_layers else set())
    assert own.keys() == named | ({f"backbone.vit.{name}" for name in network} if learns else set())

    expected_BK = plain_logits(network, exact.readout, images(), own)
    logits_BK = model.train()(images())  # a method without dropout is the same in training
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-9)
    assert float(expected_BK.detach().abs().max()) > 0.05  # the agreement is not one of zeros
    expected = torch.autograd.grad(F.cross_entropy(expected_BK, LABELS_B), list(own.values()))
    torch.autograd.backward(F.cross_entropy(logits_BK, LABELS_B))
    for (name, parameter), gradient in zip(model.learnable().items(), expected, strict=True):
        assert parameter.grad is not None and float(gradient.abs().max()) > 1e-7, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-9, msg=name)
    for name, parameter in exact.vit.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad, name


@pytest.mark.parametrize(
    ("num_layers", "prompt_length", "learns"), [(0, 0, False), (0, 0, True), (1, 10, False), (5, 10, False)], ids=str
)
def test_a_fresh_norm_has_weight_1_and_bias_0_and_learns_only_with_the_network(
    exact: Backbone, num_layers: int, prompt_length: int, learns: bool
) -> None:
    before = {name: weight.clone() for name, weight in exact.vit.named_parameters()}
    fresh = with_fresh_norm(exact)
    model = prompted(fresh, num_layers, prompt_length, learns=learns)
    assert model.learnable().keys() == prompted(exact, num_layers, prompt_length, learns=learns).learnable().keys()

    plain_norm = {"norm.weight": torch.ones(96).double(), "norm.bias": torch.zeros(96).double()}
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.learnable().items()}
    network = {name: own.get(f"backbone.vit.{name}", weight) for name, weight in (before | plain_norm).items()}
    expected_BK = plain_logits(network, exact.readout, images(), own)
    logits_BK = model(images())
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-9)
    expected = torch.autograd.grad(F.cross_entropy(expected_BK, LABELS_B), list(own.values()))
    torch.autograd.backward(F.cross_entropy(logits_BK, LABELS_B))
    for (name, parameter), gradient in zip(model.learnable().items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-9, msg=name)

    # The network itself keeps its norm, and shares all other weights with the copy.
    assert float((before["norm.weight"] - 1).abs().max()) > 0.1, "the pretrained norm is another one"
    for name, weight in exact.vit.named_parameters():
        assert torch.equal(weight, before[name]), name
        shares = weight.data_ptr() == fresh.vit.get_parameter(name).data_ptr()
        assert shares == (not name.startswith("norm.")), name
    assert (fresh.sha256, fresh.readout) == (exact.sha256, exact.readout)


@pytest.mark.parametrize("num_layers", [0, 1, 5], ids=["linear", "shallow", "deep"])
def test_an_image_s_logits_do_not_depend_on_its_batch(exact: Backbone, num_layers: int) -> None:
    model = prompted(exact, num_layers, 4 if num_layers else 0)
    alone = torch.cat([model(image[None]) for image in images(5)])
    torch.testing.assert_close(model(images(5)), alone, rtol=0, atol=1e-12)


def test_patch_tokens_are_those_that_enter_each_layer_of_the_plain_network(exact: Backbone) -> None:
    patches, *entering = plain_tokens(dict(exact.vit.named_parameters()), images(), None)[:-1]
    expected = [patches, *(tokens[:, 1:] for tokens in entering)]
    for tokens, described in zip(exact.patch_tokens(images()), expected, strict=True):
        torch.testing.assert_close(tokens, described, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_layers", "prompt_length", "count"), [(5, 20, 5 * 20 * 96), (1, 100, 100 * 96)])
def test_only_prompt_and_head_are_trained(exact: Backbone, num_layers: int, prompt_length: int, count: int) -> None:
    model = prompted(exact, num_layers, prompt_length)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"prompt_LPD": count, "head.weight": 7 * 96, "head.bias": 7}
    assert {name: p.numel() for name, p in model.learnable().items()} == {
        "prompt": count, "head.weight": 7 * 96, "head.bias": 7
    }  # fmt: skip
    torch.autograd.backward(model(images()).sum())
    assert all(p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("prompt_length", [0, 1])
def test_a_parameter_that_must_not_learn_is_named_in_the_error(exact: Backbone, prompt_length: int) -> None:
    exact.vit.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="the learnable parameters") as caught:
        PromptedViT(
            exact,
            num_classes=7,
            prompt_LPD=torch.zeros(prompt_length, prompt_length, 96),
            prompt_dropout=0.0,
            generator=torch.Generator(),
        )
    must = "head.bias, head.weight, prompt" if prompt_length else "head.bias, head.weight"
    assert str(caught.value) == f"the learnable parameters must be {must}; these differ: ['backbone.vit.norm.weight']."


def test_a_parameter_that_must_learn_is_named_in_the_error(exact: Backbone) -> None:
    learns = exact.variant(learns=True, drop_path=0.0)
    learns.get_submodule("vit.blocks.2.attn.qkv").requires_grad_(False)
    with pytest.raises(ValueError, match="the learnable parameters") as caught:
        PromptedViT(
            learns,
            num_classes=7,
            prompt_LPD=torch.zeros(0, 0, 96),
            prompt_dropout=0.0,
            generator=torch.Generator(),
            backbone_learns=True,
        )
    qkv = "backbone.vit.blocks.2.attn.qkv"
    assert str(caught.value).endswith(f"; these differ: ['{qkv}.bias', '{qkv}.weight'].")


ROWS, READ = 1 + 64, 7
"""Number of tokens of an image, CLS included; number of prompts of a layer."""


@pytest.mark.parametrize(
    ("num_layers", "mean", "cls"),
    [
        (0, [ROWS] * 5, [ROWS] * 4 + [1]),
        (1, [ROWS + READ] * 5, [ROWS + READ] * 4 + [1]),
        (5, [ROWS] * 4 + [ROWS + READ], [ROWS] * 4 + [1]),
    ],
    ids=["linear", "shallow", "deep"],
)
def test_blocks_compute_only_tokens_that_are_read(
    exact: Backbone, num_layers: int, mean: list[int], cls: list[int]
) -> None:
    model = prompted(exact, num_layers, READ if num_layers else 0, dropout=0.1)
    with watched(*(block.mlp for block in model.backbone.layers())) as seen:
        model.train()(images())
        model.eval()(images())
    assert [given.shape[:2] for given, _ in seen] == 2 * [(3, n) for n in (mean if exact.readout == "mean" else cls)]


def test_shared_prompts_are_projected_once(exact: Backbone) -> None:
    for num_layers in (1, 5):
        model = prompted(exact, num_layers, READ, dropout=0.1)
        for mode, batch in ((True, 3), (False, 1)):
            with watched(*(block.norm1 for block in model.backbone.layers())) as seen:
                model.train(mode)(images())
            prompted_layer, later = [(3, ROWS), (batch, READ)], [(3, ROWS + READ)]
            expected = num_layers * prompted_layer + (5 - num_layers) * later
            assert [tuple(given.shape[:2]) for given, _ in seen] == expected


@pytest.mark.parametrize("num_layers", [1, 5], ids=["shallow", "deep"])
def test_the_patches_of_the_first_block_need_no_gradient(exact: Backbone, num_layers: int) -> None:
    model = prompted(exact, num_layers, READ)
    first = next(iter(model.backbone.layers()))
    need: list[tuple[int, bool]] = []
    first.norm1.register_forward_hook(lambda _, __, made: need.append((made.shape[1], made.requires_grad)))
    model(images())
    assert need == [(ROWS, False), (READ, True)]


@pytest.mark.parametrize("num_layers", [1, 5], ids=["shallow", "deep"])
def test_prompts_of_several_runs_in_one_pass_equal_separate_passes(exact: Backbone, num_layers: int) -> None:
    generator = torch.Generator().manual_seed(5)
    runs = torch.randn(3, num_layers, READ, 96, generator=generator, dtype=torch.float64, requires_grad=True)
    batches = images(6)
    together_BD = prompted_features(exact, batches, [runs[:, i] for i in range(num_layers)])
    alone_BD = torch.cat(
        [
            prompted_features(exact, images_BCHW, [prompt_PD.unsqueeze(0) for prompt_PD in prompt_LPD])
            for images_BCHW, prompt_LPD in zip(batches.split(2), runs, strict=True)
        ]
    )
    torch.testing.assert_close(together_BD, alone_BD, rtol=1e-10, atol=1e-12)
    weights_BD = torch.randn(together_BD.shape, generator=generator, dtype=torch.float64)
    mine, plain = (torch.autograd.grad((out_BD * weights_BD).sum(), runs)[0] for out_BD in (together_BD, alone_BD))
    torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-12)


def random_block(kind: str) -> Block:
    """Return a block of width 12 in float64 with random weights, so that every weight has an effect."""
    scale, normed = (1e-5 if kind == "LayerScale" else None), kind == "normed"
    block = Block(12, 3, qkv_bias=True, init_values=scale, qk_norm=normed, scale_attn_norm=normed).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return block


@pytest.mark.parametrize(
    ("context", "has_output"),
    [(None, False), *((count, has_output) for count in (1, 2, 6) for has_output in (False, True))],
    ids=lambda value: {None: "no context", 1: "shared", 2: "two", 6: "one per image"}.get(value, f"{value}"),
)
@pytest.mark.parametrize("kind", ["plain", "LayerScale", "normed"])
def test_a_block_run_with_a_context_equals_the_block_over_both_without_the_unread_outputs(
    kind: str, context: int | None, has_output: bool
) -> None:
    block = random_block(kind)
    cases = [(count, extra, outputs) for count in (1, 2, 17) for extra in (1, 40) for outputs in (None, 1, count)]
    for tokens, extra, num_outputs in cases:
        generator = torch.Generator().manual_seed(tokens)
        tokens_BTD = torch.randn(6, tokens, 12, generator=generator, dtype=torch.float64, requires_grad=True)
        given = [tokens_BTD, *block.parameters()]
        joint_BTD = tokens_BTD
        context_AXD = None
        if context is not None:
            context_AXD = torch.randn(context, extra, 12, generator=generator, dtype=torch.float64, requires_grad=True)
            given.append(context_AXD)
            joint_BTD = torch.cat([tokens_BTD, context_AXD.repeat_interleave(6 // context, dim=0)], dim=1)
        out_BTD = block(joint_BTD)
        expected_BTD = torch.cat(
            [out_BTD[:, :tokens][:, :num_outputs], out_BTD[:, tokens:] if has_output else out_BTD[:, :0]], 1
        )
        actual_BTD = run_block(
            block, tokens_BTD, context_AXD=context_AXD, num_outputs=num_outputs, output_context=has_output
        )
        torch.testing.assert_close(actual_BTD, expected_BTD, rtol=1e-11, atol=1e-11)
        weights = torch.randn(expected_BTD.shape, generator=generator, dtype=torch.float64)
        gradients = (torch.autograd.grad((out * weights).sum(), given) for out in (actual_BTD, expected_BTD))
        for mine, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_layers", [1, 5], ids=["shallow", "deep"])
def test_dropout_acts_on_the_prompts_of_every_layer_and_image_in_training_only(
    exact: Backbone, num_layers: int
) -> None:
    assert {name: row.prompt_dropout for name, row in METHODS.items() if row.prompt_dropout} == dict.fromkeys(
        WITH_DROPOUT, 0.1
    )
    model = prompted(exact, num_layers, 50, dropout=0.1)
    torch.manual_seed(0)
    with watched(model.dropout) as seen:
        model.train()(images())
    masks = []
    for prompt_PD, (_, dropped_BPD) in zip(model.prompt_LPD.detach(), seen, strict=True):
        assert dropped_BPD.shape == (3, 50, 96)
        masks.append(dropped_BPD == 0)
        torch.testing.assert_close(dropped_BPD, torch.where(masks[-1], 0, prompt_PD / 0.9))
        assert 0.08 < float(masks[-1].double().mean()) < 0.12
    every = torch.stack(masks).flatten(0, 1)
    assert not any(torch.equal(every[i], every[j]) for i in range(len(every)) for j in range(i)), "a mask each"
    assert not any(module.training for module in model.backbone.modules())
    with watched(model.dropout) as seen:
        model.eval()(images())
    for prompt_PD, (_, kept_BPD) in zip(model.prompt_LPD.detach(), seen, strict=True):
        assert bool((kept_BPD == prompt_PD).all())


@pytest.mark.parametrize("num_layers", [1, 5], ids=["shallow", "deep"])
def test_dropout_makes_equal_images_differ_in_training_and_never_in_evaluation(
    exact: Backbone, num_layers: int
) -> None:
    model = prompted(exact, num_layers, 5, dropout=0.1)
    twins = images(1).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    one, other = model.train()(twins)
    assert float((one - other).detach().abs().max()) > 1e-6
    one, other = model.eval()(twins)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("learns", [False, True])
def test_a_variant_shares_the_weights_unless_it_learns_and_leaves_the_network_as_it_was(
    exact: Backbone, learns: bool
) -> None:
    before = {name: weight.clone() for name, weight in exact.named_parameters()}
    variant = exact.variant(learns=learns, drop_path=0.3)
    for (name, own), (known, weight) in zip(variant.named_parameters(), exact.named_parameters(), strict=True):
        assert name == known and (own.data_ptr() == weight.data_ptr()) == (not learns), name
        assert own.requires_grad == learns and not weight.requires_grad, name
        assert torch.equal(own, before[name]), name
    rates = [[getattr(module, "drop_prob", 0.0) for module in (b.drop_path1, b.drop_path2)] for b in variant.layers()]
    assert rates == [[pytest.approx(rate)] * 2 for rate in (0, 0.075, 0.15, 0.225, 0.3)]
    assert not any(isinstance(module, DropPath) for module in exact.modules())
    assert not any(isinstance(module, DropPath) for module in variant.variant(learns=learns, drop_path=0.0).modules())
    same = ("readout", "sha256", "embed_dim", "num_layers", "patch_size", "image_size", "num_patches")
    assert [getattr(variant, name) for name in same] == [getattr(exact, name) for name in same]
    with torch.no_grad():
        for own in variant.parameters():
            own.add_(1)
    assert all(torch.equal(weight, before[name]) == learns for name, weight in exact.named_parameters())


@pytest.mark.parametrize("num_layers", [0, 1, 5], ids=["linear", "shallow", "deep"])
def test_stochastic_depth_drops_branches_at_the_rate_of_the_layer_in_training_only(
    backbone: Backbone, num_layers: int
) -> None:
    model = prompted(backbone, num_layers, 3 if num_layers else 0)
    plain_BK = model(images(96))
    model.backbone = backbone.variant(learns=False, drop_path=0.6)
    assert torch.equal(model.eval()(images(96)), plain_BK), "as if there were none"
    model.train()
    assert {type(module) for module in model.backbone.modules() if module.training} == {DropPath}
    torch.manual_seed(0)
    for layer, rate in zip(model.backbone.layers(), (0.0, 0.15, 0.3, 0.45, 0.6), strict=True):
        shares = []
        with watched(layer.drop_path1, layer.drop_path2) as seen:
            logits_BK = model(images(96))
        assert len(seen) == 2 and not torch.equal(logits_BK, plain_BK)
        for given_BTD, made_BTD in seen:
            left_out_B = (made_BTD == 0).all(dim=(1, 2))
            expected_BTD = torch.where(left_out_B[:, None, None], 0, given_BTD / (1 - rate))
            torch.testing.assert_close(made_BTD, expected_BTD)
            shares.append(float(left_out_B.double().mean()))
        assert shares[0] != shares[1] or not rate, "each branch by itself"
        assert abs(sum(shares) / 2 - rate) <= 3 * math.sqrt(rate * (1 - rate) / 192)
    assert torch.equal(model.eval()(images(96)), plain_BK)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_pixels_are_normalized_by_the_mean_and_std_of_that_name(
    backbone: Backbone, name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    network = Backbone(copy.deepcopy(backbone.vit), readout="cls", sha256="", mean_and_std=name).double()
    planes = [(images()[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)]
    expected_BND = network.vit.patch_embed(torch.stack(planes, dim=1))
    torch.testing.assert_close(network.embed(images())[2], expected_BND, rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("std", [0.01, 0.02])
def test_the_head_starts_normal_with_its_backbone_s_deviation_and_no_bias(backbone: Backbone, std: float) -> None:
    one, again, other = (
        PromptedViT(
            backbone,
            num_classes=400,
            prompt_LPD=torch.zeros(0, 0, 96),
            prompt_dropout=0.0,
            generator=torch.Generator().manual_seed(seed),
            head_std=std,
        ).head
        for seed in (0, 0, 1)
    )
    assert abs(float(one.weight.detach().std()) - std) < 0.01 * std and not bool(one.bias.detach().any())
    assert torch.equal(one.weight, again.weight) and not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("row", BACKBONES.values(), ids=lambda row: row.name)
def test_a_row_of_the_catalog_agrees_with_timm(row: BackboneRow) -> None:
    with torch.device("meta"):
        vit, wider = build_vit(row), build_vit(row, 2 * row.image_size)
    network = Backbone(vit, readout=row.readout, sha256="", mean_and_std=row.mean_and_std)
    assert (network.num_layers, network.embed_dim) == (row.num_layers, row.embed_dim)
    assert (network.patch_size, network.image_size) == (row.patch_size, row.image_size)
    assert network.num_patches == vit.patch_embed.num_patches == row.num_patches() == row.num_patches(row.image_size)
    assert wider.patch_embed.num_patches == row.num_patches(2 * row.image_size) == 4 * row.num_patches()
    assert all(isinstance(block, Block) and block.attn.gate is None for block in network.layers())
    assert (row.readout == "mean", row.head_std == 0.01) == (".mae" in row.name, ".moco_v3" in row.name)
    assert (row.name in timm.list_pretrained()) == row.on_hub
    if row.on_hub:
        published = timm.get_pretrained_cfg(row.name)
        assert published is not None and published.hf_hub_id == f"timm/{row.name}"
        assert published.tag == row.name.partition(".")[2]
        assert MEAN_AND_STD[row.mean_and_std] == (published.mean, published.std)
        # DINOv2 was trained at 518 pixels; its positions are resampled to the 224 of the others.
        assert published.input_size == (3, *[518 if row.pretraining == "dinov2" else row.image_size] * 2)


@pytest.mark.parametrize(
    ("method", "prompt_length", "count"),
    [("spt_deep", 20, 184_320), ("vpt_deep", 20, 184_320), ("spt_shallow", 100, 76_800), ("linear", 0, 0),
     ("full", 0, 85_798_656)],
)  # fmt: skip
def test_the_number_of_learnable_parameters_is_the_published_one(method: str, prompt_length: int, count: int) -> None:
    row, learns = BACKBONES["vit_base_patch16_224.mae"], METHODS[method].backbone_learns
    with torch.device("meta"):
        vit = build_vit(row)
    layers = {"all": row.num_layers, "first": 1, "none": 0}[METHODS[method].prompted_layers]
    model = PromptedViT(
        Backbone(vit, readout=row.readout, sha256="").variant(learns=learns, drop_path=0.0),
        num_classes=200,
        prompt_LPD=torch.zeros(layers, prompt_length, row.embed_dim),
        prompt_dropout=METHODS[method].prompt_dropout,
        generator=torch.Generator(),
        backbone_learns=learns,
    )
    assert sum(parameter.numel() for parameter in model.learnable().values()) == count + 200 * 769
