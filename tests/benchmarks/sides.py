"""Sides that benchmarks compare: a training step, an evaluation and a checkpoint, by the published recipe and by us.

All sides start from the same values on one network, and take turns in one process.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.utils.model_ema import ModelEmaV2
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from tests.benchmarks.machine import count_flops, wait_for
from tests.benchmarks.published import (
    EMA_DECAY,
    EncodedImages,
    PublishedModel,
    accuracy_of,
    optimizer_of,
    save_whole,
    train_step,
    transform_of,
)
from trainer.catalog import BUNDLED
from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.data.transforms import decode
from trainer.model.backbone import Backbone
from trainer.model.execution import eval_batch_size, evaluate_in_batches, with_precision
from trainer.model.precision import training_variant
from trainer.model.prompted_vit import PromptedViT
from trainer.training.batches import EpochBatches, steps_per_epoch
from trainer.training.checkpoint import save_state
from trainer.training.engine import Engines
from trainer.training.engine_choices import EAGER
from trainer.training.optimizer import lr_at
from trainer.training.step import TrainingStep

BY_SIZE = {
    "nano": BUNDLED,
    "tiny": "vit_tiny_patch16_224.augreg_in21k",
    "small": "vit_small_patch16_224.augreg_in21k",
    "base": "vit_base_patch16_224.mae",
    "large": "vit_large_patch16_224.mae",
}
CLASSES = 100
TURNS = 15


@dataclass(kw_only=True)
class Side:
    """One way to do the work, and its measurements."""

    name: str
    precision: str
    step: Callable[[], object]
    """A training step."""
    evaluate: Callable[[], object]
    """A pass over `num_eval` images."""
    save: Callable[[Path], object]
    steps_ahead: int = 1
    """Steps until a turn is in its steady state: loader workers prepare batches during the turns of the other sides."""
    measured: dict[str, float] = dataclasses.field(default_factory=dict)


@functools.cache
def encoded_images(count: int, size: int) -> list[bytes]:
    """Return JPEGs with the size of photographs (noise, 500 x 375); for small networks, PNGs of their own size."""
    noise = np.random.default_rng(0)

    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        file = io.BytesIO()
        if size < 100:
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
        else:
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


@functools.cache
def decoded_images(count: int, size: int) -> Tensor:
    """Return the same images as our cache stores them: uint8 ``[N, 3, S, S]``."""
    return torch.stack([decode(image, size, "spt") for image in encoded_images(count, size)])


def published_side(
    config: TrainConfig, first: PromptedViT, encoded: Sequence[bytes], num_eval: int, num_workers: int, device: str
) -> Side:
    """Return the published recipe, over encoded images."""
    model = PublishedModel(first.backbone, first.prompt_LPD, first.head).to(device)
    optimizer = optimizer_of(config, model)
    average = ModelEmaV2(model, decay=EMA_DECAY)
    transform = transform_of(first.backbone, config.pixels, augmented=False, train=True)
    labels = [i % CLASSES for i in range(len(encoded))]
    loading: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": num_workers,
        "pin_memory": torch.device(device).type == "cuda",
    }
    images = EncodedImages(encoded, labels, transform)
    endless = RandomSampler(images, replacement=True, num_samples=10**9)
    batches = iter(DataLoader(images, sampler=endless, **loading))
    eval_loader = DataLoader(
        EncodedImages(encoded[:num_eval], labels[:num_eval], transform), **loading, persistent_workers=num_workers > 0
    )
    number = itertools.count()

    def step() -> float:
        model.train()
        lr = lr_at(config.warmup_epochs + next(number) % 100 / 100, config)
        return train_step(model, optimizer, average, next(batches), lr, device)

    return Side(
        name="published",
        precision="fp32",
        step=step,
        evaluate=lambda: accuracy_of(model, eval_loader, device),
        save=lambda folder: save_whole(folder / "whole.pth", model, optimizer, average, 1),
        steps_ahead=1 + 2 * num_workers,
    )


def our_side(
    config: TrainConfig,
    first: PromptedViT,
    images_NCHW: Tensor,
    labels_N: Tensor,
    num_eval: int,
    device: str,
    engine: str = EAGER,
) -> Side:
    """Return our trainer, over decoded images that stay on the device, as in `trainer.training.loop`."""
    config = dataclasses.replace(config, ema_decay=EMA_DECAY)
    model = copy.deepcopy(first).to(device)
    model.backbone = training_variant(model.backbone, config.precision, learns=False, drop_path=0.0)
    network = with_precision(model, config.precision, device)
    train_step = TrainingStep(config, network, model.learnable())
    split = Split(
        images_R=images_NCHW,
        rows_N=torch.arange(len(images_NCHW), device=device),
        labels_N=labels_N,
        keys=("",) * len(images_NCHW),
        view="fixed",
        fingerprint="",
    )
    batches = EpochBatches(config, split, Split.take, epoch=1)
    num_batches = steps_per_epoch(config, len(split))
    total = torch.zeros((), device=device)
    number = itertools.count()

    def take_batch() -> tuple[Tensor, Tensor]:
        return batches.take(next(number) % num_batches, torch.Generator())

    def step() -> None:
        model.train()
        lr = lr_at(config.warmup_epochs + next(number) % 100 / 100, config)
        total.add_(train_step(*take_batch(), lr))

    model.train()
    Engines(train_step, model, take_batch, config.precision, device).use(engine)

    def evaluate() -> int:
        model.eval()
        tokens = 1 + first.backbone.num_patches + first.prompt_LPD.shape[1]
        parts = images_NCHW[:num_eval].split(eval_batch_size(device, tokens))
        logits_NK = torch.cat([evaluate_in_batches(network, part_BCHW) for part_BCHW in parts])
        return int((logits_NK.argmax(dim=1) == labels_N[:num_eval]).sum())

    def save(folder: Path) -> None:
        assert train_step.average is not None
        tensors = {name: parameter.detach().cpu() for name, parameter in train_step.learnable.items()}
        averages, optimizer = train_step.average.values, train_step.optimizer.state_dict()
        state = {"learnable": tensors, "average": averages, "optimizer": optimizer}
        save_state(folder / "ours.pt", state)

    name = f"ours {config.precision}" + (f", {engine}" if engine != EAGER else "")
    return Side(name=name, precision=config.precision, step=step, evaluate=evaluate, save=save)


def first_values(backbone: Backbone, config: TrainConfig) -> PromptedViT:
    """Return the model that all sides start from."""
    layers = backbone.num_layers if config.method == "spt_deep" else 1
    return PromptedViT(
        backbone,
        num_classes=CLASSES,
        prompt_LPD=0.1 * torch.randn(layers, config.prompt_length or 0, backbone.embed_dim),
        prompt_dropout=0.0,
        generator=torch.Generator().manual_seed(0),
    )


@torch.no_grad()
def assert_same(first: PromptedViT, encoded: bytes, images_BCHW: Tensor) -> None:
    """Assert that both forward passes give the same logits for the same image."""
    transform = transform_of(first.backbone, images_BCHW.shape[-1], augmented=False, train=True)
    pixels_CHW, _ = EncodedImages([encoded], [0], transform)[0]
    published_BK = PublishedModel(first.backbone, first.prompt_LPD, first.head)(pixels_CHW[None])
    torch.testing.assert_close(first(images_BCHW), published_BK, rtol=1e-3, atol=1e-3)


def in_turns(sides: Sequence[Side], what: str, seconds: float, device: str) -> None:
    """Measure the seconds of one call on each side, as the median of its turns. All turns are equally long.

    If a call takes longer than a turn, or other programs slow the machine down, there are fewer turns.
    """
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    began = time.perf_counter()

    for turn in range(TURNS):
        if turn and time.perf_counter() - began > 2 * seconds * len(sides):
            break
        # The order alternates, so that no side always follows the same other one.
        for side in sides if turn % 2 == 0 else reversed(sides):
            run: Callable[[], object] = getattr(side, what)
            for _ in range(side.steps_ahead - 1 if what == "step" else 0):
                run()

            calls = 0
            wait_for(device)
            started = time.perf_counter()
            while calls == 0 or time.perf_counter() - started < seconds / TURNS:
                run()
                calls += 1
                if calls % 8 == 0:
                    # Otherwise a turn would end with much work still queued.
                    wait_for(device)
            wait_for(device)
            taken[side.name].append((time.perf_counter() - started) / calls)

    for side in sides:
        side.measured[f"{what}_s"] = statistics.median(taken[side.name])


def warm_up(build: Callable[[], Side], device: str) -> Side:
    """Return a side after its first steps and an evaluation, with the FLOPs of both and its own peak memory."""
    on_gpu = torch.device(device).type == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    side = build()
    side.measured["step_flops"] = count_flops(side.step)
    if on_gpu:
        side.step()
        side.measured["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    side.measured["evaluate_flops"] = count_flops(side.evaluate)
    return side


def measure_checkpoint(side: Side, device: str) -> None:
    """Measure the bytes of a checkpoint, and the median seconds of saving it three times."""
    taken = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            wait_for(device)
            started = time.perf_counter()
            side.save(Path(folder))
            taken.append(time.perf_counter() - started)
            side.measured["checkpoint_bytes"] = sum(file.stat().st_size for file in Path(folder).iterdir())
    side.measured["checkpoint_s"] = statistics.median(taken)
