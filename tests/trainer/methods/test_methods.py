"""Each method against a forward pass written from the papers, and the laws that hold for all methods of the catalog.

Shapes: B batch, D width, K classes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import trainer
from tests.trainer.methods.plain import PLAIN, PlainAdaptFormer, PlainViT
from trainer.catalog import BACKBONES, METHODS
from trainer.config import InvalidConfig, TrainConfig
from trainer.methods.protocol import Adaptation, adaptation_of, build_model
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import Backbone, build_vit

LABELS_B = torch.tensor([0, 3, 1])

VARIANTS: dict[str, tuple[str, dict[str, Any], type[PlainViT]]] = {
    **{method: (method, {}, PLAIN[method]) for method in METHODS},
    "adaptformer": ("adapter", {"adapter_form": "parallel"}, PlainAdaptFormer),
}
"""Every method, and every form of one."""


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["mean", "cls"])
def network(request: pytest.FixtureRequest) -> Backbone:
    """A ViT of three layers of width 12 with random weights in float64, with each of the two read-outs."""
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Backbone(vit, readout=request.param, sha256="").double()


def built(config: TrainConfig, network: Backbone) -> AdaptedViT:
    """Return a model in float64 whose learnable parameters have all moved from their initial values."""
    generator = torch.Generator().manual_seed(5)
    layers = {"all": network.num_layers, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]
    prompt_LPD = torch.randn(layers, config.prompt_length or 0, network.embed_dim, generator=generator)
    model = build_model(config, network, num_classes=5, prompt_LPD=prompt_LPD).double()
    with torch.no_grad():
        for parameter in model.learnable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def config_of(variant: str, tiny: Callable[..., TrainConfig], **changes: Any) -> TrainConfig:
    method, options, _ = VARIANTS[variant]
    small = {"lora_rank": 2, "adapter_dim": 3, "bpt_rank": 2}
    return tiny(method, **{name: small[name] for name in METHODS[method].fields if name in small}, **options, **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_the_described_method(
    variant: str, network: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    frozen = {name: weight.clone() for name, weight in network.vit.named_parameters()}
    model = built(config_of(variant, tiny), network)
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.learnable().items()}

    expected_BK = VARIANTS[variant][2](frozen, own, network.readout).logits(images())
    # Dropout of prompts is compared elsewhere.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for training in (True, False):
        logits_BK = model.train(training)(images())
        torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-9)
    assert float(expected_BK.detach().std(dim=0).max()) > 1e-3, "images differ"

    expected = torch.autograd.grad(F.cross_entropy(expected_BK, LABELS_B), list(own.values()))
    torch.autograd.backward(F.cross_entropy(model.train()(images()), LABELS_B))
    for (name, parameter), gradient in zip(model.learnable().items(), expected, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-9, msg=name)
        # A softmax does not see what is added to all keys.
        assert float(gradient.abs().max()) > 1e-7, name

    for name, weight in network.vit.named_parameters():
        assert torch.equal(weight, frozen[name]) and weight.grad is None, f"the frozen {name} stays as it was"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_without_prompts_starts_as_the_pretrained_network(
    variant: str, network: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    config = config_of(variant, tiny)
    if config.prompt_length is not None:
        pytest.skip("prompts change the features")
    empty_LPD = torch.zeros(0, 0, network.embed_dim)
    plain, adapted = (
        build_model(each, network, num_classes=5, prompt_LPD=empty_LPD).double() for each in (tiny("linear"), config)
    )
    torch.testing.assert_close(adapted(images()), plain(images()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_merged_computes_the_same_with_weights_of_the_network_alone(
    variant: str, network: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    config = config_of(variant, tiny)
    model = built(config, network).eval()
    before_BK = model(images())
    names = {name for name, _ in model.backbone.named_parameters()}
    adaptation_of(config).merge(model.backbone, network)
    torch.testing.assert_close(model(images()), before_BK, rtol=0, atol=1e-9)

    merged = {name for name, _ in model.backbone.named_parameters()}
    if config.method in ("lora", "ssf"):
        assert merged == {name for name, _ in network.named_parameters()}
        assert {type(module) for module in model.backbone.modules()} == {type(module) for module in network.modules()}
    else:
        assert merged == names


@pytest.mark.parametrize("method", ["lora", "ssf"])
def test_a_merged_model_has_the_logits_of_the_unmerged_one_in_float32(
    method: str, backbone: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny(method)
    model = build_model(config, backbone, num_classes=5, prompt_LPD=torch.zeros(0, 0, 96)).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.learnable().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    squares = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    before_BK = model(squares)
    adaptation_of(config).merge(model.backbone, backbone)
    torch.testing.assert_close(model(squares), before_BK, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_before_the_first_one_that_learns_keep_nothing_for_a_backward_pass(
    method: str, network: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    model = built(tiny(method), network).train()
    needs: list[bool] = []
    for block in model.backbone.layers():
        block.register_forward_hook(lambda _, __, made: needs.append(made.requires_grad))
        block.norm2.register_forward_hook(lambda _, __, made: needs.append(made.requires_grad))
    model(images())
    assert any(needs) is (method != "linear")
    if method == "partial_1":
        # The first two blocks, each with its second norm.
        assert needs[:4] == [False] * 4 and all(needs[4:])


VIT_B_COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    # SPT and VPT: 12 x 20 x 768 and 100 x 768.
    "spt_deep": ({"prompt_length": 20, "prompt_init": "random"}, 184_320),
    "vpt_deep": ({"prompt_length": 20}, 184_320),
    "spt_shallow": ({"prompt_length": 100, "prompt_init": "random"}, 76_800),
    "vpt_shallow": ({"prompt_length": 100}, 76_800),
    "linear": ({}, 0),
    "full": ({}, 85_798_656),
    # 0.10 M in the tables of SSF and others: eleven widths of bias a block, those of the patches and of the last norm.
    "bias": ({}, 12 * 11 * 768 + 2 * 768),
    # A block: 7.09 M.
    "partial_1": ({}, 12 * 768**2 + 13 * 768),
    # 0.29 M in the tables of NOAH (arXiv 2206.04673): rank 8 on queries and values.
    "lora": ({}, 12 * 2 * 2 * 768 * 8),
    # 0.21 M in SSF's table 1: twice as many as biases.
    "ssf": ({}, 2 * (12 * 11 * 768 + 2 * 768)),
    # Those of VPT, 11 gates and 12 temperatures.
    "gate_vpt": ({"prompt_length": 100}, 76_800 + 11 + 12),
    "gate_vpt_prototypes": ({"prompt_length": 100, "prompt_init": "random"}, 76_800 + 11 + 12),
    "vfpt": ({"prompt_length": 20}, 184_320),
    # 12 x (20 + 5) x 768: what the prompts and the keys add, before pruning.
    "e2vpt_unpruned": ({"prompt_length": 20}, 230_400),
    "e2vpt_unpruned_prototypes": ({"prompt_length": 20, "prompt_init": "random"}, 230_400),
    "bpt_deep": ({"prompt_length": 50, "bpt_rank": 50}, 12 * 50 * (50 + 768)),
    # 6.51 x 10^-2 M in BPT's ablation.
    "bpt_shallow": ({"prompt_length": 100}, 75 * (100 + 768)),
    # AdaptFormer-64: 1.19 M.
    "adapter": ({}, 12 * (2 * 768 * 64 + 64 + 768)),
}
"""Options and number of learnable parameters of ViT-B without its head."""


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_learnable_parameters_of_vit_b_is_the_published_one(method: str) -> None:
    options, count = VIT_B_COUNTS[method]
    row = BACKBONES["vit_base_patch16_224.mae"]
    config = TrainConfig.from_params({"task": "vtab/dtd", "backbone": row.name, "method": method} | options)
    layers = {"all": row.num_layers, "first": 1, "none": 0}[METHODS[method].prompted_layers]
    with torch.device("meta"):
        network = Backbone(build_vit(row), readout=row.readout, sha256="")
        prompt_LPD = torch.empty(layers, config.prompt_length or 0, row.embed_dim)
        model = build_model(config, network, num_classes=200, prompt_LPD=prompt_LPD)
    learnable = {name: parameter.numel() for name, parameter in model.learnable().items()}
    assert sum(learnable.values()) == count + 200 * 769
    assert learnable["head.weight"] == 200 * 768 and learnable["head.bias"] == 200


def test_the_readmes_table_has_these_counts_and_papers_agree_to_their_last_digit() -> None:
    table = Path(trainer.__path__[0], "README.md").read_text().partition("### Learnable parameters on ViT-B")[2]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)` )?\| ([\d,]+) \| (.+) \|$", table.partition("\n## ")[0], re.MULTILINE)
    assert [method for method, *_ in rows] == [*METHODS]

    for method, options, count, paper in rows:
        given, expected = VIT_B_COUNTS[method]
        assert int(count.replace(",", "")) == expected, method

        # The table names each field of the method that changes the count, defaults too.
        config = TrainConfig.from_params({"task": "vtab/dtd", "method": method} | given)
        named = yaml.safe_load(f"{{{options}}}")
        sizes = {"prompt_length", *METHODS[method].fields} - {"adapter_form", "gate_init", "fourier_share"}
        assert named == {name: getattr(config, name) for name in sizes if getattr(config, name) is not None}, method

        for number in re.findall(r"^(\d+\.\d+) M \(", paper):
            digits = len(number.partition(".")[2])
            assert f"{expected / 1e6:.{digits}f}" == number, method


BLOCK = "backbone.vit.blocks.1."
LEARNT_IN_A_BLOCK: dict[str, set[str]] = {
    "bias": {"norm1.bias", "attn.qkv.bias", "attn.proj.bias", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias"},
    "partial_1": set(),
    "lora": {f"attn.qkv.{part}.{layer}.weight" for part in ("query", "value") for layer in ("down", "up")},
    "ssf": {
        f"{operation}.{what}"
        for operation in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for what in ("scale", "shift")
    },
    "gate_vpt": {"attn.qkv.temperature"},
    "gate_vpt_prototypes": {"attn.qkv.temperature"},
    "vfpt": set(),
    "bpt_deep": set(),
    "bpt_shallow": set(),
    "e2vpt_unpruned": set(),
    "e2vpt_unpruned_prototypes": set(),
    "adapter": {f"mlp.{layer}.{what}" for layer in ("down", "up") for what in ("weight", "bias")},
}


@pytest.mark.parametrize("method", LEARNT_IN_A_BLOCK)
def test_what_learns_has_these_names(method: str, network: Backbone, tiny: Callable[..., TrainConfig]) -> None:
    names = built(tiny(method, **({"lora_rank": 2} if method == "lora" else {})), network).learnable().keys()
    assert {name.removeprefix(BLOCK) for name in names if name.startswith(BLOCK)} == LEARNT_IN_A_BLOCK[method]

    last = {name for name in names if name.startswith("backbone.vit.blocks.2.")}
    outside = {name for name in names if ".blocks." not in name}
    assert outside - {"head.weight", "head.bias"} == {
        "bias": {"backbone.vit.patch_embed.proj.bias", "backbone.vit.norm.bias"},
        "ssf": {f"backbone.vit.{at}.{what}" for at in ("patch_embed.norm", "norm") for what in ("scale", "shift")},
        "gate_vpt": {"prompt", "gate"},
        "gate_vpt_prototypes": {"prompt", "gate"},
        "vfpt": {"prompt"},
        "bpt_deep": {"prompt", "basis"},
        "bpt_shallow": {"prompt", "basis"},
        "e2vpt_unpruned": {"prompt", "key_value"},
        "e2vpt_unpruned_prototypes": {"prompt", "key_value"},
    }.get(method, set())
    if method == "partial_1":
        assert last == {f"backbone.{name}" for name, _ in network.named_parameters() if ".blocks.2." in name}


def test_fields_of_a_method_are_refused_for_others_and_outside_their_range(tiny: Callable[..., TrainConfig]) -> None:
    for name, value, owner in (("lora_rank", 4, "lora"), ("adapter_dim", 8, "adapter"),
                               ("adapter_form", "parallel", "adapter"),
                               ("gate_init", 1.0, "gate_vpt or gate_vpt_prototypes"),
                               ("fourier_share", 1.0, "vfpt"), ("bpt_rank", 4, "bpt_deep or bpt_shallow"),
                               ("key_value_length", 2, "e2vpt_unpruned or e2vpt_unpruned_prototypes")):  # fmt: skip
        for method in METHODS:
            if name in METHODS[method].fields:
                assert getattr(tiny(method, **{name: value}), name) == value
                assert tiny(method, **{name: value}).fingerprint() != tiny(method).fingerprint()
                continue
            with pytest.raises(InvalidConfig) as caught:
                tiny(method, **{name: value})
            assert caught.value.problems == {name: f"{method} has none: leave it out, or set method: {owner}."}

    for name, method, value, rule in (
        ("gate_init", "gate_vpt", 101.0, "must be in -100..100, got 101.0."),
        ("fourier_share", "vfpt", 1.1, "must be in [0, 1], got 1.1."),
        ("key_value_length", "e2vpt_unpruned", 0, "must be in 1..100000, got 0."),
    ):
        with pytest.raises(InvalidConfig) as caught:
            tiny(method, **{name: value})
        assert caught.value.problems == {name: rule}

    for name, method in (("lora_rank", "lora"), ("adapter_dim", "adapter"), ("bpt_rank", "bpt_shallow")):
        for size in (0, 97):
            with pytest.raises(InvalidConfig) as caught:
                tiny(method, **{name: size})
            rule = f"must be in 1..96, the width of vit_nano_patch4_32.mae, got {size}."
            assert caught.value.problems == {name: rule}


def test_a_method_that_leaves_a_frozen_weight_learning_is_named_in_the_error(
    network: Backbone, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Careless(Adaptation):
        def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
            backbone.vit.norm.requires_grad_(True)

    monkeypatch.setattr("trainer.methods.protocol.Adaptation.insert", Careless.insert)
    with pytest.raises(ValueError, match=r"these differ: \['backbone.vit.norm.bias', 'backbone.vit.norm.weight'\]"):
        build_model(tiny("linear"), copy.deepcopy(network), num_classes=5, prompt_LPD=torch.zeros(0, 0, 12))
