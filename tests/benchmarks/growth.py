"""Growth of cost: with ten times the images, prompt tokens or trials, and with a backbone four times as large.

Run `python -m tests.benchmarks.growth --out growth.json`. If a cost is the size to the power of an exponent, the
exponent is log(ratio of costs) / log(factor): 1 is proportional, 0 is no growth. The expected exponent follows from the
algorithm, for steps from their counted FLOPs. Both sizes run in this process, with random weights on noise. The part of
the driver needs the packages of the orchestrator, and is left out without them.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import default_device, describe, wait_for, write_json
from tests.benchmarks.published import EMA_DECAY
from tests.benchmarks.sides import BY_SIZE, CLASSES, Side, first_values, in_turns, our_side, warm_up
from trainer.catalog import BACKBONES, BUNDLED, OWN, PROTOTYPE_INITS
from trainer.config import TrainConfig
from trainer.data.task_store import Example, write_task
from trainer.model.backbone import Backbone, build_vit
from trainer.prompt_init.kmeans import SAMPLE, STARTS
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import TokenStream
from trainer.training.loop import train

IMAGES = (160, 1600)
PROMPTS = (10, 100)
STUDIES = (4, 40)
TRIALS = 25
"""Trials of a study, two of them final."""

Row = dict[str, Any]


def growth_row(what: str, sizes: tuple[float, float], seconds: tuple[float, float], expected: float, why: str) -> Row:
    """Return a line of the table."""
    factor = sizes[1] / sizes[0]
    return {
        "what": what,
        "from": sizes[0],
        "to": sizes[1],
        "factor": factor,
        "seconds_from": seconds[0],
        "seconds_to": seconds[1],
        "expected": expected,
        "measured": math.log(seconds[1] / seconds[0]) / math.log(factor),
        "why": why,
    }


def noise_images(count: int) -> Iterator[Example]:
    """Yield PNGs of noise, of the size that the bundled network takes."""
    noise = np.random.default_rng(count)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        yield Example(key=f"{count}/{i}", label=i % 10, image=file.getvalue())


def epoch_seconds(images: int, epochs: int, device: str) -> float:
    """Return the seconds of the training steps of an epoch: the fastest epoch after the first of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        task = f"{OWN}noise"
        names = [*"0123456789"]
        splits = {"train": noise_images(images), "val": noise_images(32), "test": noise_images(10)}
        write_task(folder, task, splits, source="benchmark", class_names=names, protocol="published")
        params = {"task": task, "method": "spt_deep", "prompt_length": 10, "prompt_init": "random", "epochs": epochs}
        config = TrainConfig.from_params(params | {"warmup_epochs": 0, "lr": 1e-3, "init_images": 10})
        epochs_run = list(train(config, data_root=folder, device=device, cache=f"{folder}/cache"))

    return images / max(epoch.metrics["train/images_per_s"] for epoch in epochs_run[1:])


def images_rows(device: str) -> Iterator[Row]:
    """Measure ten times the images: an epoch, and the prototypes of each strategy."""
    few, many = IMAGES
    # In turns: other programs may slow the machine down for a while.
    first = epoch_seconds(few, 4, device)
    second = epoch_seconds(many, 3, device)
    third = epoch_seconds(few, 4, device)
    yield growth_row("an epoch: images", IMAGES, (min(first, third), second), 1.0, "as many steps as images")

    # Prototypes.
    row = BACKBONES[BUNDLED]
    torch.manual_seed(0)
    backbone = Backbone(build_vit(row), readout=row.readout, sha256="").to(device)
    noise_NCHW = torch.randint(0, 256, (many, 3, row.image_size, row.image_size), dtype=torch.uint8, device=device)

    def build(prompt_init: str, images: int) -> None:
        stream = TokenStream(
            backbone=backbone,
            num_images=images,
            images_of=lambda rows_B: noise_NCHW[rows_B.to(device)],
            num_layers=row.num_layers,
        )
        build_prototypes(stream, prompt_init=prompt_init, prompt_length=PROMPTS[0], seed=0)

    # What is expected: each strategy but k-means only reads the images that it draws.
    drawn = row.num_layers * PROMPTS[0]
    num_read = [images * (1 - (1 - 1 / images) ** drawn) for images in IMAGES]
    num_points = [STARTS * min(SAMPLE, images * row.num_patches()) + images * row.num_patches() for images in IMAGES]
    for prompt_init in PROTOTYPE_INITS:
        is_kmeans = prompt_init == "kmeans"
        parts = num_points if is_kmeans else num_read
        why = (
            f"{STARTS} starts on {SAMPLE:,} tokens, one on all"
            if is_kmeans
            else f"only images that are drawn: {drawn} at most"
        )
        times = 1 if is_kmeans else 3
        seconds = (
            fastest(lambda init=prompt_init: build(init, few), times, device),  # type: ignore[misc]
            fastest(lambda init=prompt_init: build(init, many), times, device),  # type: ignore[misc]
        )
        yield growth_row(
            f"prototypes, {prompt_init}: images",
            IMAGES,
            seconds,
            math.log(parts[1] / parts[0]) / math.log(many / few),
            why,
        )


def fastest(run: Callable[[], object], times: int, device: str) -> float:
    """Return the seconds of the fastest of several calls."""
    taken = []
    for _ in range(times):
        wait_for(device)
        started = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def step_of(size: str, method: str, length: int, device: str) -> tuple[Side, int]:
    """Return a side that takes our steps in fp32, and the number of parameters of its network."""
    row = BACKBONES[BY_SIZE[size]]
    batch = 32 if torch.device(device).type == "cuda" else 4
    params = {"task": "demo/digits", "backbone": row.name, "method": method, "prompt_length": length}
    config = TrainConfig.from_params(params | {"prompt_init": "random", "batch_size": batch, "ema_decay": EMA_DECAY})
    torch.manual_seed(0)
    backbone = Backbone(build_vit(row), readout=row.readout, sha256="")
    images_NCHW = torch.randint(0, 256, (batch, 3, row.image_size, row.image_size), dtype=torch.uint8, device=device)
    labels_N = torch.arange(batch, device=device) % CLASSES
    side = warm_up(
        lambda: our_side(config, first_values(backbone, config), images_NCHW, labels_N, batch, device), device
    )
    side.name = f"{size} {length}"
    return side, sum(parameter.numel() for parameter in backbone.parameters())


def steps_row(
    what: str, sides: tuple[Side, Side], sizes: tuple[float, float], seconds: float, device: str, more: str = ""
) -> Row:
    """Measure steps of two sizes, in turns. The expected growth is that of their FLOPs."""
    in_turns(sides, "step", seconds, device)
    few, many = (side.measured for side in sides)
    flops = many["step_flops"] / few["step_flops"]
    expected = math.log(flops) / math.log(sizes[1] / sizes[0])
    return growth_row(what, sizes, (few["step_s"], many["step_s"]), expected, f"{flops:.2f} times the FLOPs{more}")


def steps_rows(seconds: float, device: str) -> Iterator[Row]:
    """Measure ten times the prompt tokens, and a backbone with four times the parameters."""
    for method in ("spt_deep", "spt_shallow"):
        few, many = (step_of("tiny", method, length, device)[0] for length in PROMPTS)
        more = ": prompts are keys alone" if method == "spt_deep" else ""
        yield steps_row(f"a step, ViT-Ti {method}: prompt tokens", (few, many), PROMPTS, seconds, device, more)
    (tiny, tiny_parameters), (small, small_parameters) = (
        step_of(size, "spt_deep", 20, device) for size in ("tiny", "small")
    )
    sizes = (tiny_parameters, small_parameters)
    yield steps_row("a step, ViT-Ti to ViT-S: parameters", (tiny, small), sizes, seconds, device)


def trials_row() -> Row:
    """Measure the driver's own CPU seconds for ten times the trials, in ten times the studies.

    Raises:
        ImportError: if packages of the orchestrator are missing.
    """
    from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves
    from orchestrator.spec.plan import plan_sweep
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.sweep.sweep import Sweep
    from tests.benchmarks.scale import Silent, spec_of

    def driver_seconds(num_studies: int) -> float:
        spec = spec_of(num_studies, TRIALS - 2, 2, 10)
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), Silent(), clock=clock)
            started = time.process_time()
            ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=64).run(sweep)
            return time.process_time() - started

    # The first call imports libraries.
    driver_seconds(1)

    few, many = (driver_seconds(num_studies) for num_studies in STUDIES)
    sizes = (STUDIES[0] * TRIALS, STUDIES[1] * TRIALS)
    return growth_row(
        "the driver's CPU time: trials", sizes, (few, many), 1.0, "the last trial costs the same as the first"
    )


def _short(size: float) -> str:
    return f"{size / 1e6:.1f} M" if size >= 1e6 else f"{size:,.0f}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the steps of each size")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)

    rows: list[Row] = []
    parts: list[Callable[[], Iterator[Row]]] = [
        lambda: images_rows(options.device),
        lambda: steps_rows(options.seconds, options.device),
        lambda: iter([trials_row()]),
    ]
    left_out = []
    for part in parts:
        try:
            for row in part():
                rows.append(row)
                console.print(f"{row['what']}: {row['measured']:.2f}, expected {row['expected']:.2f}", highlight=False)
        except ImportError as error:
            left_out.append(f"the part of the driver was left out: {error}")

    table = Table("what grows", box=box.SIMPLE_HEAD, padding=0, title="how cost grows")
    for name in ("from", "to", "factor", "seconds", "then", "expected", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("because")

    for row in rows:
        sizes = (_short(row["from"]), _short(row["to"]), f"{row['factor']:.1f}")
        exponents = (f"{row['expected']:.2f}", f"{row['measured']:.2f}")
        table.add_row(
            row["what"], *sizes, f"{row['seconds_from']:.3f}", f"{row['seconds_to']:.3f}", *exponents, row["why"]
        )
    console.print(table)
    for reason in left_out:
        console.print(reason)
    write_json(options.out, {"machine": describe(options.device), "growth": rows, "left_out": left_out})


if __name__ == "__main__":
    main()
