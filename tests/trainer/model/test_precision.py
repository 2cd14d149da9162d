"""Precisions: weights that are cast once give autocast's bits, and TF32 is on where it is asked for, and nowhere else.

Shapes: B batch, L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.model.backbone import Backbone, with_fresh_norm
from trainer.model.execution import backward, evaluate_in_batches, with_precision
from trainer.model.gpu_kernels import gpu_arithmetic
from trainer.model.precision import training_variant, with_bf16_products
from trainer.model.prompted_vit import PromptedViT
from trainer.training.optimizer import build_optimizer

FROZEN = [name for name, row in METHODS.items() if row.adaptation.endswith((":Adaptation", ":Prompts"))]
"""Methods that train prompts and head alone. tests/trainer/methods has the law for all others."""


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def train_steps(backbone: Backbone, method: str, precision: str) -> list[Tensor]:
    """Return losses, learnt values and logits of three steps, with dropout where the method has it."""
    row = METHODS[method]
    num_layers = {"all": backbone.num_layers, "first": 1, "none": 0}[row.prompted_layers]
    generator = torch.Generator().manual_seed(2)
    model = PromptedViT(
        backbone,
        num_classes=7,
        prompt_LPD=torch.randn(num_layers, 5 if num_layers else 0, backbone.embed_dim, generator=generator),
        prompt_dropout=row.prompt_dropout,
        generator=generator,
        backbone_learns=row.backbone_learns,
    )
    learnable = model.learnable()
    config = TrainConfig.from_params(
        {"task": "demo/digits", "method": method, "lr": 0.01}
        | ({"prompt_length": 5, "prompt_init": row.prompt_inits[0]} if num_layers else {})
    )
    optimizer = build_optimizer(config, learnable)
    network = with_precision(model, precision, "cpu")
    labels_B = torch.arange(6) % 7

    torch.manual_seed(3)
    model.train()
    losses = []
    for _ in range(3):
        loss, _ = backward(network, list(learnable.values()), images(6), labels_B, micro_batch_size=4)
        optimizer.step()
        losses.append(loss)

    model.eval()
    return [*losses, *(weight.detach() for weight in learnable.values()), evaluate_in_batches(network, images(9))]


def assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("readout", ["mean", "cls"])
@pytest.mark.parametrize("method", FROZEN)
def test_weights_cast_once_give_the_bits_of_autocast(backbone: Backbone, method: str, readout: str) -> None:
    frozen = Backbone(backbone.vit, readout=readout, sha256="")
    cast_once = training_variant(frozen, "bf16", learns=False, drop_path=0.3)
    cast_each_step = frozen.variant(learns=False, drop_path=0.3)

    found = train_steps(cast_once, method, "bf16")
    assert_same_bits(found, train_steps(cast_each_step, method, "bf16"))
    assert not torch.equal(found[0], train_steps(cast_each_step, method, "fp32")[0]), "bf16 computes in bf16"


def test_only_linear_and_convolution_weights_are_cast_and_only_once(backbone: Backbone) -> None:
    variant = training_variant(backbone, "bf16", learns=False, drop_path=0.0)
    products = {
        f"{name}.{part}"
        for name, module in variant.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for part in ("weight", "bias")
    }
    kinds = {name: parameter.dtype for name, parameter in variant.named_parameters()}
    assert kinds == {name: torch.bfloat16 if name in products else torch.float32 for name in kinds}
    assert not any(parameter.requires_grad for parameter in variant.parameters())
    assert all(parameter.dtype is torch.float32 for parameter in backbone.parameters())

    # Trials share the cast weights with each other, and all other weights with the network itself.
    other = training_variant(backbone, "bf16", learns=False, drop_path=0.2)
    ours, theirs, original = (dict(network.named_parameters()) for network in (variant, other, backbone))
    assert all(ours[name] is theirs[name] for name in ours)
    assert all(ours[name] is original[name] for name in ours.keys() - products)


def test_a_fresh_norm_stays_fresh_beside_cast_weights(backbone: Backbone) -> None:
    weights = training_variant(with_fresh_norm(backbone), "bf16", learns=False, drop_path=0.0).state_dict()
    assert torch.equal(weights["vit.norm.weight"], torch.ones(96))
    assert torch.equal(weights["vit.norm.bias"], torch.zeros(96))


def test_a_network_that_learns_keeps_float32_weights_under_autocast(backbone: Backbone) -> None:
    learning = training_variant(backbone, "bf16", learns=True, drop_path=0.0)
    assert {parameter.dtype for parameter in learning.parameters()} == {torch.float32}
    before = copy.deepcopy(learning.state_dict())
    losses = train_steps(learning, "full", "bf16")[:3]

    # Steps of a size that bfloat16 would round away.
    name = "vit.blocks.0.mlp.fc1.weight"
    change = learning.state_dict()[name] - before[name]
    assert bool(change.any()) and float(losses[2]) < float(losses[0])


@pytest.mark.parametrize("method", [*FROZEN, "full"])
def test_tf32_is_fp32_on_a_cpu_bit_for_bit(backbone: Backbone, method: str) -> None:
    learns = METHODS[method].backbone_learns
    runs = [
        train_steps(training_variant(backbone, precision, learns=learns, drop_path=0.0), method, precision)
        for precision in ("tf32", "fp32")
    ]
    assert_same_bits(*runs)


def digits_of_products() -> tuple[str, str]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision


@pytest.mark.parametrize(("precision", "digits"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_tf32_is_allowed_on_a_gpu_by_its_precision_alone(device: str, precision: str, digits: str) -> None:
    before = digits_of_products()
    with gpu_arithmetic(precision, device):
        assert digits_of_products() == (digits, digits), "of matrix products and of convolutions"
        with gpu_arithmetic("fp32", device):
            assert digits_of_products() == ("ieee", "ieee"), "prototypes within a run"
        assert digits_of_products() == (digits, digits)
    assert digits_of_products() == before

    with pytest.raises(ValueError, match="a step that fails"), gpu_arithmetic(precision, device):
        raise ValueError("a step that fails")
    assert digits_of_products() == before


def test_the_network_runs_within_the_precision_that_it_was_given() -> None:
    seen: list[tuple[str, str]] = []

    def look(inputs_B: Tensor) -> Tensor:
        seen.append(digits_of_products())
        return inputs_B

    for precision, device in (("fp32", "cuda"), ("tf32", "cuda"), ("fp32", "cpu"), ("tf32", "cpu")):
        with_precision(look, precision, device)(torch.zeros(1))
    untouched = digits_of_products()
    assert seen == [("ieee", "ieee"), ("tf32", "tf32"), untouched, untouched]


def test_the_process_keeps_two_cast_networks(backbone: Backbone) -> None:
    first = with_bf16_products(backbone)
    for _ in range(2):
        assert with_bf16_products(backbone) is first
        with_bf16_products(Backbone(backbone.vit, readout="cls", sha256=""))
    with_bf16_products(Backbone(backbone.vit, readout="cls", sha256=""))
    with_bf16_products(Backbone(backbone.vit, readout="cls", sha256=""))
    assert with_bf16_products(backbone) is not first
