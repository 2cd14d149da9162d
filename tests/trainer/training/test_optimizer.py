"""The learning rate of every step; AdamW, SGD and the moving average against their formulas."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.training.checkpoints import checkpoint_after
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT
from trainer.training.checkpoint import load_state
from trainer.training.loop import train
from trainer.training.optimizer import MovingAverage, build_optimizer, decay_of, lr_at


@pytest.fixture(scope="module")
def few(data_root: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task store with 20 digits to be scored on, so that most of the time goes into steps."""
    load_split(data_root, "demo/digits", "train", 1.0, 32)
    store = tmp_path_factory.mktemp("few")
    shutil.copytree(f"{data_root}/demo/digits", store / "demo/digits")
    for split in ("val", "test"):
        place = store / f"demo/digits/{split}.parquet"
        pq.write_table(pq.read_table(place)[:20], place)
    return str(store)


@pytest.mark.parametrize(("epochs", "warmup"), [(100, 10), (3, 0), (10, 9), (2, 1), (7, 3)])
def test_the_learning_rate_rises_linearly_from_0_and_falls_along_half_a_cosine_to_1e_8(
    epochs: int, warmup: int, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny(epochs=epochs, warmup_epochs=warmup, lr=0.3)
    assert lr_at(0, config) == (0 if warmup else 0.3)
    assert lr_at(warmup / 2, config) == pytest.approx(0.15 if warmup else 0.3)
    assert lr_at(warmup, config) == pytest.approx(0.3)
    assert lr_at((warmup + epochs) / 2, config) == pytest.approx((0.3 + 1e-8) / 2)
    assert lr_at(epochs, config) == pytest.approx(1e-8)
    rising = [lr_at(warmup * i / 50, config) for i in range(51)]
    falling = [lr_at(warmup + (epochs - warmup) * i / 50, config) for i in range(51)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("eval_split", "batch_size", "steps"), [("val", 45, 1), ("val", 35, 2), ("test", 45, 2)])
def test_the_rate_moves_every_step_and_the_last_partial_batch_is_dropped(
    data_root: str, eval_split: str, batch_size: int, steps: int, tiny: Callable[..., TrainConfig]
) -> None:
    # About 80 images in a tenth of train, 100 in a tenth of trainval.
    config = tiny("linear", train_size=0.1, eval_split=eval_split, batch_size=batch_size, warmup_epochs=0, epochs=2)
    rates = [epoch.metrics["train/lr"] for epoch in train(config, data_root=data_root)]
    assert rates == [pytest.approx(lr_at(epoch + (steps - 1) / steps, config)) for epoch in range(2)]


Weights = dict[str, Tensor]
GradientOf = Callable[[Weights], Weights]


def rate_of(step: int, peak: float) -> float:
    """Of twenty steps the first five are warm-up."""
    falling = 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
    return peak * step / 5 if step < 5 else 1e-8 + (peak - 1e-8) * falling


def adamw(weights: Weights, gradient_of: GradientOf, decay: dict[str, float]) -> Iterator[Weights]:
    """The weights after each of twenty steps of Loshchilov and Hutter's AdamW: lr 1e-4, betas 0.9 and 0.999."""
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(20):
        rate, gradients, weights = rate_of(step, 1e-4), gradient_of(weights), dict(weights)
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            unbiased, scale = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            weights[name] = weights[name] * (1 - rate * decay[name]) - rate * unbiased / (scale.sqrt() + 1e-8)
        yield weights


def sgd(weights: Weights, gradient_of: GradientOf, decay: dict[str, float]) -> Iterator[Weights]:
    """The weights after each of twenty steps of SGD: lr 1e-2, momentum 0.9, the decay part of the gradient."""
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(20):
        rate, gradients, weights = rate_of(step, 1e-2), gradient_of(weights), dict(weights)
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient + decay[name] * weights[name]
            weights[name] = weights[name] - rate * velocity[name]
        yield weights


UNDECAYED = ("norm1", "norm2", "vit.norm", "bias", "cls_token", "pos_embed")
"""What the names of the weights that have no decay contain."""


@pytest.mark.parametrize(
    ("optimizer", "method"),
    [
        pytest.param("adamw", "spt_deep", marks=pytest.mark.slow),
        ("adamw", "linear"),
        ("sgd", "spt_shallow"),
        pytest.param("sgd", "full", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_are_those_of_the_optimizer_with_a_decay_for_each_kind_of_weight(
    optimizer: str, method: str, few: str, tmp_path: Path, backbone: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    # One batch holds all images, one of each class, so that their order plays no role.
    split = load_split(few, "demo/digits", "train", 0.01, 32)
    lr, decay_of_most, decay_of_head = (1e-4, 40.0, 90.0) if optimizer == "adamw" else (1e-2, 0.4, 0.9)
    run = train(
        tiny(
            method,
            optimizer=optimizer,
            train_size=0.01,
            batch_size=10,
            epochs=20,
            warmup_epochs=5,
            lr=lr,
            weight_decay=decay_of_most,
            head_weight_decay=decay_of_head,
            ema_decay=0.95,
        ),
        data_root=few,
        folder=str(tmp_path),
    )
    next(run)
    start = checkpoint_after(1, tmp_path)
    list(run)
    # The first step has rate 0: what the first checkpoint holds is what training starts from.
    weights = {name: weight.double() for name, weight in start["learnable"].items()}
    learns = method == "full"
    model = PromptedViT(
        copy.deepcopy(backbone).variant(learns=learns, drop_path=0.0),
        num_classes=10,
        prompt_LPD=weights.get("prompt", torch.zeros(0, 0, 96)),
        prompt_dropout=0.0,
        generator=torch.Generator(),
        backbone_learns=learns,
    ).double()

    def gradient_of(weights: Weights) -> Weights:
        with torch.no_grad():
            for name, parameter in model.learnable().items():
                parameter.copy_(weights[name])
        loss = F.cross_entropy(model(split.all_images()), split.labels_N)
        names, parameters = zip(*model.learnable().items(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    decay = {name: 0.0 if any(part in name for part in UNDECAYED) else decay_of_most for name in weights}
    decay["head.weight"] = decay_of_head
    path = list((adamw if optimizer == "adamw" else sgd)(weights, gradient_of, decay))
    learnt, end = load_file(tmp_path / "prompt.safetensors"), load_state(tmp_path / "checkpoint.pt")
    assert end is not None and learnt.keys() == weights.keys() == end["average"].keys()
    for name, first in weights.items():
        assert float((learnt[name] - first).abs().max()) > 1e-4, name
        # The weights are up to 5, and float32 rounds those by 2.4e-7 at each of the 20 steps.
        torch.testing.assert_close(learnt[name].double(), path[-1][name], rtol=1e-6, atol=1e-6, msg=name)
        average = 0.95**20 * first + sum(0.05 * 0.95 ** (19 - i) * path[i][name] for i in range(20))
        torch.testing.assert_close(end["average"][name].double(), average, rtol=1e-6, atol=1e-6, msg=name)
        assert float((average - path[-1][name]).abs().max()) > 1e-5, name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("decay", "head_decay"), [(0.02, 0.5), (0.0, 0.5), (0.5, 0.5), (0.02, 0.0)])
def test_every_weight_is_in_one_group_and_norms_biases_cls_and_positions_decay_in_none(
    optimizer: str, decay: float, head_decay: float, backbone: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("full", optimizer=optimizer, weight_decay=decay, head_weight_decay=head_decay, lr=0.3)
    model = PromptedViT(
        backbone.variant(learns=True, drop_path=0.0),
        num_classes=10,
        prompt_LPD=torch.zeros(0, 0, 96),
        prompt_dropout=0.0,
        generator=torch.Generator(),
        backbone_learns=True,
    )
    learnable = model.learnable() | {"prompt": nn.Parameter(torch.zeros(1, 1, 96))}
    name_of = {id(parameter): name for name, parameter in learnable.items()}
    built = build_optimizer(config, learnable)
    decay_by_name: dict[str, float] = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            assert name_of[id(parameter)] not in decay_by_name
            decay_by_name[name_of[id(parameter)]] = group["weight_decay"]
        assert group["lr"] == 0.3
        expected = {"betas": (0.9, 0.999), "eps": 1e-8} if optimizer == "adamw" else {"momentum": 0.9, "dampening": 0}
        assert {name: group[name] for name in expected} == expected
        assert not group.get("nesterov") and not group.get("amsgrad")
    assert decay_by_name.keys() == learnable.keys()
    blocks = [f"backbone.vit.blocks.{i}.{part}.weight" for i in range(5) for part in (
        "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2",
    )]  # fmt: skip
    decayed = {"head.weight": head_decay} | dict.fromkeys(
        ["prompt", "backbone.vit.patch_embed.proj.weight", *blocks], decay
    )
    assert decay_by_name == dict.fromkeys(learnable, 0.0) | decayed
    assert {name: decay_of(name, parameter, config) for name, parameter in learnable.items()} == decay_by_name


def random_weights(seed: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"prompt": (5, 3, 4), "head.weight": (7, 4), "head.bias": (7,), "one": (1,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for n, s in shapes.items()}


@pytest.mark.parametrize("decay", [1e-9, 0.3, 0.5, 0.9, 0.9999])
def test_a_moving_average_weighs_each_step_by_how_long_ago_it_was(decay: float) -> None:
    weights = random_weights(0)
    average = MovingAverage(weights, decay)
    steps = [{name: weight.detach().clone() for name, weight in weights.items()}]
    for step in range(1, 31):
        for name, weight in random_weights(step).items():
            weights[name].data.copy_(weight.data)
        average.update()
        steps.append({name: weight.detach().clone() for name, weight in weights.items()})
        for name, value in average.values.items():
            later = sum((1 - decay) * decay ** (step - i) * steps[i][name] for i in range(1, step + 1))
            torch.testing.assert_close(value, decay**step * steps[0][name] + later, rtol=0, atol=1e-12)
            assert torch.equal(weights[name], steps[-1][name]) and not value.requires_grad


class Interrupted(Exception):
    """Anything that ends an evaluation."""


@pytest.mark.parametrize("fails", [False, True])
def test_averages_stand_in_for_the_weights_within_a_block_however_it_ends(fails: bool) -> None:
    weights = random_weights(0)
    average = MovingAverage(weights, 0.9)
    for name, weight in random_weights(1).items():
        weights[name].data.copy_(weight.data)
    average.update()
    own, averaged = (
        {name: value.detach().clone() for name, value in values.items()} for values in (weights, average.values)
    )
    places = {name: weight.data_ptr() for name, weight in weights.items()}
    for _ in range(2):
        with pytest.raises(Interrupted) if fails else nullcontext(), average.in_place():
            assert all(torch.equal(weight, averaged[name]) for name, weight in weights.items())
            assert not torch.equal(weights["prompt"], own["prompt"])
            if fails:
                raise Interrupted
        assert all(torch.equal(weight, own[name]) for name, weight in weights.items())
        assert all(torch.equal(value, averaged[name]) for name, value in average.values.items())
    # The optimizer's weights are the same tensors as ever, and they still learn.
    assert places == {name: weight.data_ptr() for name, weight in weights.items()}
    assert all(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("method", ["linear", "spt_deep"])
def test_an_average_that_forgets_at_once_scores_as_the_weights_and_one_that_never_does_as_the_start(
    method: str, few: str, tiny: Callable[..., TrainConfig]
) -> None:
    at_once, never = (
        [epoch.metrics for epoch in train(tiny(method, lr=0.1, ema_decay=decay), data_root=few)]
        for decay in (1e-9, 1 - 1e-9)
    )
    accuracies = [metrics["val/accuracy"] for metrics in at_once]
    assert [metrics["val/accuracy_ema"] for metrics in at_once] == accuracies
    # The average is scored beside the weights and changes nothing about them.
    assert [metrics["val/accuracy"] for metrics in never] == accuracies and len(set(accuracies)) > 1
    (start, *_) = train(tiny(method, lr=1e-30), data_root=few)
    assert "val/accuracy_ema" not in start.metrics
    assert [metrics["val/accuracy_ema"] for metrics in never] == [start.metrics["val/accuracy"]] * 3


def test_a_final_run_scores_its_average_on_test_once(few: str, tiny: Callable[..., TrainConfig]) -> None:
    run = train(tiny("linear", eval_split="test", ema_decay=0.5), data_root=few)
    told = [{name for name in epoch.metrics if name.endswith("_ema")} for epoch in run]
    assert told == [set(), set(), {"test/accuracy_ema"}]


@pytest.mark.parametrize("changes", [{"ema_decay": 0.7}, {"optimizer": "sgd", "lr": 0.5}], ids=["average", "momentum"])
def test_average_and_momentum_outlive_an_interruption_bit_for_bit(
    changes: dict[str, Any], few: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("vpt_deep", **changes)
    whole = list(train(config, data_root=few, folder=str(tmp_path / "whole")))
    run = train(config, data_root=few, folder=str(tmp_path / "parts"))
    before = [next(run), next(run)]
    del run  # a generator without an owner is closed
    after = list(train(config, data_root=few, folder=str(tmp_path / "parts")))
    assert after[:2] == before
    for epoch, expected in zip(after, whole, strict=True):
        assert epoch.metrics | {"train/images_per_s": 0} == expected.metrics | {"train/images_per_s": 0}
    one, other = (load_state(tmp_path / folder / "checkpoint.pt") for folder in ("whole", "parts"))
    assert one is not None and other is not None
    for what in ("learnable", "average"):
        assert one[what].keys() == other[what].keys()
        assert all(torch.equal(value, other[what][name]) for name, value in one[what].items()), what
    assert set(one["average"]) == (set(one["learnable"]) if "ema_decay" in changes else set())
    assert ("momentum_buffer" in one["optimizer"]["state"][0]) == ("optimizer" in changes)
