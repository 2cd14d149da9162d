"""What only a GPU can show: nothing waits within an epoch, and what is done otherwise there comes to the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from trainer.catalog import TASKS
from trainer.config import TrainConfig
from trainer.data import split as loading
from trainer.data.split import load_split
from trainer.data.transforms import TransformName, random_crops
from trainer.model import precision
from trainer.training.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loading, "RESIDENT_SHARE", 0.0)
    load_split.cache_clear()
    yield
    load_split.cache_clear()


@pytest.fixture
def digits_with_crops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test, demo/digits is a task that is learnt from random crops."""
    monkeypatch.setitem(TASKS, "demo/digits", dataclasses.replace(TASKS["demo/digits"], augmented=True))
    load_split.cache_clear()
    yield
    load_split.cache_clear()


def losses(data_root: str, config: TrainConfig, device: str) -> list[float]:
    return [epoch.metrics["train/loss"] for epoch in train(config, data_root=data_root, device=device)]


@pytest.mark.parametrize("method", ["spt_deep", "spt_shallow", "linear", "full"])
def test_a_gpu_comes_to_what_a_cpu_comes_to(data_root: str, tiny: Callable[..., TrainConfig], method: str) -> None:
    config = tiny(method, lr=1e-3)
    assert losses(data_root, config, "cuda") == pytest.approx(losses(data_root, config, "cpu"), abs=1e-3)


def test_images_that_have_no_room_there_come_batch_by_batch_to_the_same_end(
    data_root: str, tiny: Callable[..., TrainConfig], request: pytest.FixtureRequest
) -> None:
    there = losses(data_root, tiny("spt_deep"), "cuda")
    request.getfixturevalue("no_room")
    split = load_split(data_root, "demo/digits", "train", 1.0, 32, "cuda")
    assert isinstance(split.images_R, torch.Tensor)
    assert (split.images_R.device.type, split.take(torch.arange(3)).device.type) == ("cpu", "cuda")
    assert losses(data_root, tiny("spt_deep"), "cuda") == there


@pytest.mark.parametrize("method", ["spt_deep", "vpt_shallow", "linear"])
def test_weights_cast_once_give_the_bits_of_autocast_on_a_gpu(
    data_root: str, tiny: Callable[..., TrainConfig], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(method, precision="bf16")
    cast_once = losses(data_root, config, "cuda")
    monkeypatch.setattr(precision, "with_bf16_products", lambda backbone: backbone)
    assert losses(data_root, config, "cuda") == cast_once


def test_tf32_rounds_products_on_a_gpu_and_fp32_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    images, kernel = torch.randn(8, 3, 64, 64, generator=generator), torch.randn(64, 3, 16, 16, generator=generator)
    for run in (lambda d: left.to(d) @ right.to(d), lambda d: F.conv2d(images.to(d), kernel.to(d), stride=16)):
        exact = run("cpu").double()
        errors = {}
        for name in ("fp32", "tf32"):
            with precision.float32_products(name, "cuda"):
                errors[name] = float((run("cuda").cpu().double() - exact).abs().max() / exact.abs().max())
        assert errors["fp32"] < 1e-5 < errors["tf32"] < 1e-2


def test_the_test_split_is_not_kept_on_the_gpu(data_root: str) -> None:
    split = load_split(data_root, "demo/digits", "test", 1.0, 32, "cuda")
    assert not isinstance(split.images_R, torch.Tensor)
    assert split.take(torch.arange(3)).device.type == "cuda"


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_crops_for_a_gpu_have_the_bits_of_crops_for_a_cpu(data_root: str, transform: TransformName) -> None:
    views = []
    for device in ("cpu", "cuda"):
        split = load_split(data_root, "demo/shapes_loc", "train", 30, 32, device, transform, "whole")
        rows_B = torch.arange(30).flip(0)
        crops_B5 = random_crops(split.whole_sizes(rows_B), transform, torch.Generator())
        views.append(split.take_crops(rows_B, crops_B5, 32, transform))

    assert views[1].device.type == "cuda" and torch.equal(views[0], views[1].cpu())


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("method", ["spt_deep", "vpt_deep", "linear"])
def test_nothing_waits_for_the_gpu_between_the_steps_of_an_epoch(
    data_root: str, tiny: Callable[..., TrainConfig], method: str, augmented: bool, request: pytest.FixtureRequest
) -> None:
    if augmented:
        request.getfixturevalue("digits_with_crops")
    config = tiny(method, epochs=2, ema_decay=0.9)
    steps = len(load_split(data_root, config.task, "train", config.train_size, 32, "cuda")) // config.batch_size
    asked = 0

    def between_steps() -> bool:
        nonlocal asked
        first, last = asked % (steps + 1) == 1, asked % (steps + 1) == steps
        if first or last:  # the first step of all may still set things up
            torch.cuda.set_sync_debug_mode("error" if first and not last else "default")
        asked += 1
        return False

    try:
        list(train(config, data_root=data_root, device="cuda", stop=between_steps))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert asked == 2 * (steps + 1)
