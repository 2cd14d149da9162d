"""The recipe that benchmarks compare ours with: it learns the same, or the comparison would mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.benchmarks.published import our_order, train_as_published
from trainer.config import TrainConfig
from trainer.training.loop import train


@pytest.mark.parametrize("method", ["spt_deep", "spt_shallow"])
def test_the_published_recipe_has_our_losses_on_our_data_order(
    method: str, tiny: Callable[..., TrainConfig], data_root: str, tmp_path: Path
) -> None:
    config = tiny(method, lr=5e-2, weight_decay=0.1, prompt_init="random", init_images=4)
    ours = [epoch.metrics for epoch in train(config, data_root=data_root)]
    order = our_order(config, int(ours[0]["train/images"]))
    theirs = list(
        train_as_published(config, data_root=data_root, folder=tmp_path, device="cpu", num_workers=0, order=order)
    )
    for mine, published in zip(ours, theirs, strict=True):
        assert published["train/loss"] == pytest.approx(mine["train/loss"], rel=1e-5)
        assert published["train/lr"] == mine["train/lr"]
        assert published["val/accuracy"] == pytest.approx(mine["val/accuracy"], abs=0.011)  # two of 200 images
    # A rate that moves: equal losses of a network that stands still would say nothing.
    assert ours[0]["train/loss"] != pytest.approx(ours[-1]["train/loss"], rel=1e-3)


def test_the_published_checkpoint_is_the_whole_model_and_its_average(
    tiny: Callable[..., TrainConfig], data_root: str, tmp_path: Path
) -> None:
    config = tiny("spt_shallow", epochs=1, warmup_epochs=0, prompt_init="random", init_images=4)
    list(train_as_published(config, data_root=data_root, folder=tmp_path, device="cpu", num_workers=0))
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    moved = {name for name, value in state["model"].items() if not value.allclose(state["model_ema"][name], rtol=1e-5)}
    assert moved == {"prompt_LPD", "head.weight", "head.bias"}
    assert {"vit.blocks.4.mlp.fc2.weight", "vit.patch_embed.proj.weight"} <= state["model"].keys()


def test_the_published_recipe_refuses_what_it_does_not_have(
    tiny: Callable[..., TrainConfig], data_root: str, tmp_path: Path
) -> None:
    for config, sentence in (
        (tiny("vpt_deep"), "that of spt_deep and spt_shallow, got vpt_deep"),
        (tiny("linear"), "that of spt_deep and spt_shallow, got linear"),
        (tiny(precision="bf16"), "has precision fp32"),
    ):
        with pytest.raises(ValueError) as error:
            next(train_as_published(config, data_root=data_root, folder=tmp_path, device="cpu", num_workers=0))
        assert sentence in str(error.value)
