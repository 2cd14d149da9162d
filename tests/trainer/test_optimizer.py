"""The learning rate of every step, and AdamW against its formulas."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from trainer.backbone import Backbone
from trainer.checkpoint import load_state
from trainer.config import TrainConfig
from trainer.data.store import load_split
from trainer.loop import train
from trainer.optimizer import lr_at
from trainer.prompts import PromptedViT


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


@pytest.mark.parametrize(("eval_split", "batch_size", "steps"), [("val", 125, 1), ("val", 70, 2), ("test", 125, 2)])
def test_the_rate_moves_every_step_and_the_last_partial_batch_is_dropped(
    data_root: str, eval_split: str, batch_size: int, steps: int, tiny: Callable[..., TrainConfig]
) -> None:
    # About 200 images in a quarter of train, 250 in a quarter of trainval.
    config = tiny("linear", train_size=0.25, eval_split=eval_split, batch_size=batch_size, warmup_epochs=0, epochs=2)
    rates = [epoch.metrics["train/lr"] for epoch in train(config, data_root=data_root)]
    assert rates == [pytest.approx(lr_at(epoch + (steps - 1) / steps, config)) for epoch in range(2)]


def adamw(
    weights: dict[str, Tensor], gradient_of: Callable[[dict[str, Tensor]], dict[str, Tensor]], decay: dict[str, float]
) -> dict[str, Tensor]:
    """Twenty steps of Loshchilov and Hutter's AdamW, five of them warm-up to a rate of 1e-4, betas 0.9 and 0.999."""
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(20):
        falling = 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
        rate = 1e-4 * step / 5 if step < 5 else 1e-8 + (1e-4 - 1e-8) * falling
        for name, gradient in gradient_of(weights).items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            unbiased, scale = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            weights[name] = weights[name] * (1 - rate * decay[name]) - rate * unbiased / (scale.sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize("method", ["spt_deep", "linear"])
def test_twenty_steps_are_those_of_adamw_with_a_decay_for_the_prompt_and_another_for_the_head_weight(
    method: str, data_root: str, tmp_path: Path, backbone: Backbone, tiny: Callable[..., TrainConfig]
) -> None:
    # One batch holds all images, so that their order plays no role; ten val images are enough to be scored on.
    split = load_split(data_root, "demo/digits", "train", 0.025, 32)
    store = tmp_path / "store"
    shutil.copytree(f"{data_root}/demo/digits", store / "demo/digits")
    pq.write_table(pq.read_table(store / "demo/digits/val.parquet")[:10], store / "demo/digits/val.parquet")
    run = train(
        tiny(
            method,
            train_size=0.025,
            batch_size=len(split.labels_N),
            epochs=20,
            warmup_epochs=5,
            lr=1e-4,
            weight_decay=40.0,
            head_weight_decay=90.0,
        ),
        data_root=str(store),
        folder=str(tmp_path),
    )
    next(run)
    start = load_state(tmp_path / "checkpoint.pt")
    assert start is not None
    list(run)
    # The first step has rate 0: what the first checkpoint holds is what training starts from.
    weights = {name: weight.double() for name, weight in start["learnable"].items()}
    model = PromptedViT(
        copy.deepcopy(backbone),
        num_classes=10,
        prompt_LPD=weights.get("prompt", torch.zeros(0, 0, 96)),
        prompt_dropout=0.0,
        generator=torch.Generator(),
    ).double()

    def gradient_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, parameter in model.learnable().items():
                parameter.copy_(weights[name])
        loss = F.cross_entropy(model(split.images_NCHW), split.labels_N)
        names, parameters = zip(*model.learnable().items(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    expected = adamw(weights, gradient_of, decay={"prompt": 40.0, "head.weight": 90.0, "head.bias": 0.0})
    learnt = load_file(tmp_path / "prompt.safetensors")
    assert learnt.keys() == expected.keys()
    for name, weight in expected.items():
        assert float((learnt[name] - start["learnable"][name]).abs().max()) > 1e-4, name
        # The weights are up to 5, and float32 rounds those by 2.4e-7 at each of the 20 steps.
        torch.testing.assert_close(learnt[name].double(), weight, rtol=1e-6, atol=1e-6)
