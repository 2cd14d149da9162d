"""Images per second, compared with the published recipe and with the fastest matrix product of the machine.

python -m tests.benchmarks.throughput                              all defaults of this device
python -m tests.benchmarks.throughput --backbones vit_base_patch16_224.mae --prompt-lengths 20 --out throughput.json
python -m tests.benchmarks.throughput --prototypes                 also the seconds of each prototype strategy

The sides take turns in one process, on one network with random weights: the published recipe (`published.py`), ours in
fp32, and ours in bf16 if the device has bf16 arithmetic. A training step is everything that a step of an epoch does:
read images, forward, backward, optimizer, moving average. The published side reads images from its `DataLoader` in the
steady state: the start of its workers, in each epoch, is left out. An evaluation is a pass over images as each side
stores them. The share of the ceiling is the FLOPs as executed, divided by the fastest matrix product of that precision
in this run. A side that computes less may have a smaller share and still be faster. Memory is what a side alone uses on
a GPU. It is not measured on a CPU, where the sides share it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import default_device, describe, matmul_gflops, precisions, wait_for, write_json
from tests.benchmarks.published import EMA_DECAY
from tests.benchmarks.sides import (
    BY_SIZE,
    CLASSES,
    Side,
    assert_same,
    decoded_images,
    encoded_images,
    first_values,
    in_turns,
    measure_checkpoint,
    our_side,
    published_side,
    warm_up,
)
from trainer.catalog import BACKBONES, PROTOTYPE_INITS
from trainer.config import TrainConfig
from trainer.model.backbone import Backbone, build_vit
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import TokenStream, with_all_tokens

CPU_BATCH = {"nano": 32, "tiny": 8, "small": 8, "base": 4, "large": 1}
"""Images per step on two cores, by the size of the network."""


def measure(
    config: TrainConfig, backbone: Backbone, num_eval: int, num_workers: int, seconds: float, device: str
) -> list[Side]:
    """Measure the sides of one cell."""
    torch.manual_seed(0)
    encoded = encoded_images(max(num_eval, 2 * config.batch_size), config.pixels)
    images_NCHW = decoded_images(len(encoded), config.pixels).to(device)
    labels_N = torch.arange(len(encoded), device=device) % CLASSES
    first = first_values(backbone, config)
    assert_same(first, encoded[0], images_NCHW[:1].cpu())
    builds: list[Callable[[], Side]] = [lambda: published_side(config, first, encoded, num_eval, num_workers, device)]
    for precision in precisions(device):
        ours = dataclasses.replace(config, precision=precision)
        builds.append(lambda ours=ours: our_side(ours, first, images_NCHW, labels_N, num_eval, device))  # type: ignore[misc]
    sides = [warm_up(build, device) for build in builds]
    in_turns(sides, "step", seconds, device)
    in_turns(sides, "evaluate", seconds / 2, device)
    for side in sides:
        measure_checkpoint(side, device)
    return sides


def cells_of(options: argparse.Namespace, device: str) -> Iterator[tuple[str, str, int, int, int]]:
    """Yield backbone, method, prompt length, batch size and number of evaluated images of each cell."""
    on_gpu = torch.device(device).type == "cuda"
    for backbone in options.backbones or BY_SIZE.values():
        size = BACKBONES[backbone].size
        batch = options.batch_size or (32 if on_gpu else CPU_BATCH.get(size, 1))
        num_eval = 512 if on_gpu else 128 if size == "nano" else batch
        # On a CPU, all cells of a large network would take an hour, and its middle cell shows the same.
        has_all_cells = on_gpu or options.backbones or size in {"nano", "tiny"}
        for method in options.methods or (("spt_deep", "spt_shallow") if has_all_cells else ("spt_deep",)):
            for length in options.prompt_lengths or ((10, 20, 100) if has_all_cells else (20,)):
                yield backbone, method, length, batch, num_eval


def rows_of(config: TrainConfig, sides: Sequence[Side], num_eval: int) -> list[dict[str, Any]]:
    """Return the measurements of a cell, one row per side."""
    published = sides[0].measured
    return [
        {
            "backbone": config.backbone,
            "method": config.method,
            "prompt_length": config.prompt_length,
            "batch_size": config.batch_size,
            "side": side.name,
            "precision": side.precision,
            "train_images_per_s": config.batch_size / side.measured["step_s"],
            "train_ratio": published["step_s"] / side.measured["step_s"],
            "train_gflop_per_image": side.measured["step_flops"] / config.batch_size / 1e9,
            "train_gflops": side.measured["step_flops"] / side.measured["step_s"] / 1e9,
            "eval_images_per_s": num_eval / side.measured["evaluate_s"],
            "eval_ratio": published["evaluate_s"] / side.measured["evaluate_s"],
            "eval_gflop_per_image": side.measured["evaluate_flops"] / num_eval / 1e9,
            "eval_gflops": side.measured["evaluate_flops"] / side.measured["evaluate_s"] / 1e9,
            "peak_gb": side.measured["peak_bytes"] / 1e9 if "peak_bytes" in side.measured else None,
            "checkpoint_bytes": int(side.measured["checkpoint_bytes"]),
            "checkpoint_ms": 1000 * side.measured["checkpoint_s"],
        }
        for side in sides
    ]


def table_of(cells: Sequence[dict[str, Any]], num_workers: int) -> Table:
    """Return the table of all cells, three lines each."""
    heads = ("side", "train\nimages/s", "ratio", "GFLOP\nper image", "of\nceiling", "eval\nimages/s", "ratio")
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title=f"training and evaluation; DataLoader of the published side: {num_workers} workers",
    )
    table.add_column("backbone, method,\nprompts, batch", no_wrap=True)
    for name in (*heads, "of\nceiling", "peak\nGB", "saved\nMB", "saved\nms"):
        table.add_column(name, justify="left" if name == "side" else "right", no_wrap=True)
    for i, row in enumerate(cells):
        architecture, _, weights = row["backbone"].partition(".")
        cell = (
            architecture,
            f"{weights}, {row['method']}",
            f"{row['prompt_length']} prompts, batch {row['batch_size']}",
        )
        table.add_row(
            cell[i % 3],
            row["side"],
            f"{row['train_images_per_s']:,.1f}",
            f"{row['train_ratio']:.2f}",
            f"{row['train_gflop_per_image']:,.2f}",
            f"{row['train_ceiling_share']:.0%}",
            f"{row['eval_images_per_s']:,.1f}",
            f"{row['eval_ratio']:.2f}",
            f"{row['eval_ceiling_share']:.0%}",
            "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}",
            f"{row['checkpoint_bytes'] / 1e6:,.1f}",
            f"{row['checkpoint_ms']:,.0f}",
            end_section=i % 3 == 2,
        )
    return table


def prototypes_of(device: str) -> Iterator[dict[str, Any]]:
    """Measure each strategy: on a GPU with ViT-B and as many images as CUB-200 trains on, on a CPU with few."""
    on_gpu = torch.device(device).type == "cuda"
    for size, images in (("base", 5994),) if on_gpu else (("nano", 100), ("tiny", 16)):
        row = BACKBONES[BY_SIZE[size]]
        torch.manual_seed(0)
        backbone = Backbone(build_vit(row), readout=row.readout, sha256="").to(device)
        shape = (images, 3, row.image_size, row.image_size)
        images_NCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        list(backbone.patch_tokens(images_NCHW[:2]))
        for prompt_init in PROTOTYPE_INITS:
            wait_for(device)
            started = time.perf_counter()
            stream = TokenStream(
                backbone=backbone,
                num_images=images,
                images_of=lambda rows_B, of=images_NCHW: of[rows_B.to(device)],  # type: ignore[misc]
                num_layers=row.num_layers,
            )
            if prompt_init == "kmeans":
                stream = with_all_tokens(stream)
            build_prototypes(stream, prompt_init=prompt_init, prompt_length=20, seed=0)
            wait_for(device)
            cost = {"images": images, "layers": row.num_layers, "prompt_length": 20}
            seconds = time.perf_counter() - started
            yield {"backbone": row.name, "prompt_init": prompt_init, **cost, "seconds": seconds}


def prototypes_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of prototypes, one line per strategy."""
    table = Table("backbone", "layers", "images", "strategy", "seconds", title="prototypes", box=box.SIMPLE_HEAD)
    for row in rows:
        values = (row["backbone"], str(row["layers"]), f"{row['images']:,}", row["prompt_init"])
        table.add_row(*values, f"{row['seconds']:.2f}")
    return table


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=("spt_deep", "spt_shallow"))
    parser.add_argument("--prompt-lengths", nargs="+", type=int)
    parser.add_argument("--batch-size", type=int, help="default: 32 on a GPU; on a CPU fewer for larger networks")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the training steps of each side of a cell")
    parser.add_argument("--num-workers", type=int, help="workers of the published DataLoader (default on a CPU: 0)")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prototypes", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    device = options.device
    console = Console(width=120)
    on_gpu = torch.device(device).type == "cuda"
    num_workers = options.num_workers
    if num_workers is None:
        num_workers = min(10, os.cpu_count() or 1) if on_gpu else 0
    machine = describe(device)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    ceilings = {precision: float(machine[f"matmul_gflops_{precision}"]) for precision in precisions(device)}
    cells: list[dict[str, Any]] = []
    for name, method, length, batch, num_eval in cells_of(options, device):
        network = BACKBONES[name]
        params = {"task": "demo/digits", "backbone": name, "method": method, "prompt_length": length}
        params |= {"prompt_init": "random", "batch_size": batch, "lr": 1e-3, "ema_decay": EMA_DECAY}
        torch.manual_seed(0)
        backbone = Backbone(build_vit(network), readout=network.readout, sha256="", mean_and_std=network.mean_and_std)
        config = TrainConfig.from_params(params)
        started = time.perf_counter()
        sides = measure(config, backbone, num_eval, num_workers, options.seconds, device)
        rows = rows_of(config, sides, num_eval)

        # Measure the ceiling again: other programs may have slowed the first measurement down.
        for precision, ceiling in ceilings.items():
            ceilings[precision] = max(ceiling, matmul_gflops(device, precision, 0.3))

        # Free the memory of the device, and end the workers of the loader.
        del sides
        cells += rows
        rates = ", ".join(f"{row['side']} {row['train_images_per_s']:,.1f}" for row in rows)
        spent = time.perf_counter() - started
        console.print(f"{name} {method} {length} prompts: {rates} images/s  [{spent:.0f} s]", highlight=False)

    machine |= {f"matmul_gflops_{precision}": round(ceiling, 1) for precision, ceiling in ceilings.items()}
    for row in cells:
        for what in ("train", "eval"):
            row[f"{what}_ceiling_share"] = row[f"{what}_gflops"] / ceilings[row["precision"]]
    console.print(table_of(cells, num_workers))
    prototypes: list[dict[str, Any]] = []
    if options.prototypes:
        prototypes = list(prototypes_of(device))
        console.print(prototypes_table(prototypes))
    write_json(options.out, {"machine": machine, "cells": cells, "prototypes": prototypes})


if __name__ == "__main__":
    main()
