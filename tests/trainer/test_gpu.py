"""What only a GPU can show: bits repeat, nothing waits within an epoch, and other ways come to the same."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from trainer.catalog import METHODS, TASKS
from trainer.config import TrainConfig
from trainer.data import split as loading
from trainer.data.split import load_split
from trainer.data.transforms import TransformName, random_crops
from trainer.model import precision as precision_module
from trainer.model.backbone import load_backbone
from trainer.model.gpu_kernels import (
    check_repeatable,
    describe_arithmetic,
    device_kind,
    gpu_arithmetic,
    repeatable,
)
from trainer.prompt_init.batched_kmeans import batched_kmeans
from trainer.prompt_init.kmeans import inertia, kmeans
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import TokenStream, with_all_tokens
from trainer.storage.run_results import read_run_card
from trainer.training.checkpoint import load_state
from trainer.training.loop import TrainingInterrupted, train

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


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a run has learnt, from its checkpoint."""
    state = load_state(folder / "checkpoint.pt")
    assert state is not None
    tensors: dict[str, torch.Tensor] = state["learnable"]
    return tensors


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = learnt(one), learnt(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["spt_deep", "vpt_deep", "linear", "full"])
def test_a_gpu_gives_the_same_bits_twice_and_after_an_interruption(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path: Path, method: str, precision: Literal["fp32", "bf16"]
) -> None:
    config = tiny(method, precision=precision, lr=1e-3)
    for name in ("one", "two"):
        list(train(config, data_root=data_root, device="cuda", folder=str(tmp_path / name)))
    assert_same_bits(tmp_path / "one", tmp_path / "two")

    # Within an epoch, so that its generators are restored, too.
    calls = itertools.count()
    interrupted = train(
        config, data_root=data_root, device="cuda", folder=str(tmp_path / "resumed"), stop=lambda: next(calls) == 1
    )
    with pytest.raises(TrainingInterrupted):
        list(interrupted)
    list(train(config, data_root=data_root, device="cuda", folder=str(tmp_path / "resumed")))
    assert_same_bits(tmp_path / "one", tmp_path / "resumed")

    card = read_run_card(str(tmp_path / "one"))
    kernel = {"fp32": "efficient", "bf16": "flash"}[precision]
    assert card is not None and card.arithmetic == f"{precision}, {kernel} attention, eager"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_graph_trains_the_bits_of_eager(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path: Path, method: str, precision: str
) -> None:
    config = tiny(method, precision=precision, ema_decay=0.9, drop_path=0.1)
    for engine in ("eager", "graph"):
        list(train(config, data_root=data_root, device="cuda", folder=str(tmp_path / engine), engine=engine))
    assert_same_bits(tmp_path / "eager", tmp_path / "graph")


@pytest.mark.parametrize("engine", ["graph", "compiled", "compiled graph"])
def test_a_run_that_resumes_on_its_engine_ends_with_the_same_bits(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path: Path, engine: str
) -> None:
    config = tiny("vpt_deep", precision="bf16", drop_path=0.1)
    run = functools.partial(train, config, data_root=data_root, device="cuda", cache=str(tmp_path), engine=engine)
    list(run(folder=str(tmp_path / "whole")))
    calls = itertools.count()
    with pytest.raises(TrainingInterrupted):
        list(run(folder=str(tmp_path / "resumed"), stop=lambda: next(calls) == 1))
    list(run(folder=str(tmp_path / "resumed")))
    assert_same_bits(tmp_path / "whole", tmp_path / "resumed")


def test_a_long_run_measures_engines_once_and_keeps_its_choice(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run = functools.partial(
        train,
        data_root=data_root,
        device="cuda",
        cache=str(tmp_path / "cache"),
        engine_folder=str(tmp_path / "engines"),
    )
    for seed in range(2):
        # 120 epochs of two steps: a graph may pay, and compiling does not.
        config = tiny("spt_deep", epochs=120, seed=seed)
        list(run(config, folder=str(tmp_path / str(seed))))
    (kept,) = (tmp_path / "engines").glob("*.json")
    chosen = json.loads(kept.read_text())
    assert set(chosen["images_per_s"]) == {"eager", "graph"} and not chosen["rejected"]
    cards = [read_run_card(str(tmp_path / str(seed))) for seed in range(2)]
    assert [card is not None and card.arithmetic.endswith(f", {chosen['engine']}") for card in cards] == [True, True]


@pytest.mark.parametrize(("precision", "kernel"), [("fp32", "efficient"), ("bf16", "flash")])
def test_attention_runs_on_the_kernel_that_provenance_names(
    data_root: str, tiny: Callable[..., TrainConfig], precision: Literal["fp32", "bf16"], kernel: str
) -> None:
    assert kernel in describe_arithmetic(precision, 32, "cuda")
    config = tiny("spt_deep", precision=precision, prompt_init="random")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(train(config, data_root=data_root, device="cuda"))

    names = {event.key for event in profile.key_averages() if "_attention" in event.key}
    assert f"aten::_scaled_dot_product_{kernel}_attention_backward" in names
    # Scores and prototypes in fp32 may take another of ours, and cuDNN's never.
    assert not [name for name in names if "cudnn" in name]


def test_the_patch_embedding_has_the_digits_of_fp32() -> None:
    backbone = load_backbone("vit_nano_patch4_32.mae", device="cpu")
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there = load_backbone("vit_nano_patch4_32.mae", device="cuda")
    with gpu_arithmetic("fp32", "cuda"):
        found = there.embed(images.cuda())[2].cpu()
    # TF32 has ten bits of the mantissa: 1e-3.
    torch.testing.assert_close(found, backbone.embed(images)[2], rtol=1e-5, atol=1e-5)


def test_kmeans_gives_the_same_bits_twice() -> None:
    points_LND = torch.randn(3, 70_000, 96, generator=torch.Generator().manual_seed(0)).cuda()
    check_repeatable("cuda")
    # torch raises for an operation that would not repeat.
    with repeatable("fp32", "cuda"):
        one, two = (batched_kmeans(points_LND, 20, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)


def test_kmeans_of_a_gpu_is_as_good_as_that_of_a_cpu() -> None:
    points_LND = torch.randn(3, 10_000, 32, generator=torch.Generator().manual_seed(0))
    with gpu_arithmetic("fp32", "cuda"):
        there_LKD = batched_kmeans(points_LND.cuda(), 20, torch.Generator().manual_seed(1)).cpu()
    generator = torch.Generator().manual_seed(1)
    for points_ND, there_KD in zip(points_LND, there_LKD, strict=True):
        here_KD = kmeans(points_ND, 20, generator)
        assert inertia(points_ND, there_KD) == pytest.approx(inertia(points_ND, here_KD), rel=0.01)


@pytest.mark.parametrize("layers_at_once", [2, 5])
def test_prototypes_of_all_tokens_repeat_their_bits(data_root: str, layers_at_once: int) -> None:
    backbone = load_backbone("vit_nano_patch4_32.mae", device="cuda")
    images = load_split(data_root, "demo/digits", "train", 100, 32, "cuda")
    stream = TokenStream(
        backbone=backbone, num_images=100, images_of=images.take, num_layers=5, layers_at_once=layers_at_once
    )
    one, two = (build_prototypes(stream, prompt_init="kmeans", prompt_length=10, seed=0) for _ in range(2))
    assert torch.equal(one, two)
    # All tokens of 100 small images fit on any GPU.
    assert with_all_tokens(stream).layers_at_once == 5


def test_prototypes_of_a_gpu_and_of_a_cpu_are_kept_apart(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    for count, device in enumerate(("cpu", "cuda", "cpu", "cuda")):
        list(train(tiny("spt_deep"), data_root=data_root, device=device, prototype_cache=str(tmp_path)))
        assert len([*tmp_path.iterdir()]) == min(count + 1, 2)
    assert device_kind("cuda") != device_kind("cpu")


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
    monkeypatch.setattr(precision_module, "with_bf16_products", lambda backbone: backbone)
    assert losses(data_root, config, "cuda") == cast_once


def test_tf32_rounds_products_on_a_gpu_and_fp32_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    images, kernel = torch.randn(8, 3, 64, 64, generator=generator), torch.randn(64, 3, 16, 16, generator=generator)
    for run in (lambda d: left.to(d) @ right.to(d), lambda d: F.conv2d(images.to(d), kernel.to(d), stride=16)):
        exact = run("cpu").double()
        errors = {}
        for name in ("fp32", "tf32"):
            with gpu_arithmetic(name, "cuda"):
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
