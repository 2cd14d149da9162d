"""Training speed of each precision and engine, compared with the published recipe on the same device.

python -m tests.benchmarks.engines                    the default device: ViT-B on a GPU, the bundled network on a CPU
python -m tests.benchmarks.engines --device cuda      a GPU, or the sentence that there is none

The sides take turns in one process, on one network with random weights, as in `throughput`. Each engine is first
compared with eager, from the same state: the reasons against it are printed below the table. The seconds to start are
those until the first step is done: an engine compiles or captures in them, unless its kernels are in the cache. The
share of the ceiling is the FLOPs as executed in eager mode, divided by the fastest matrix product in bf16.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import count_flops, default_device, describe, precisions, wait_for, write_json
from tests.benchmarks.sides import (
    BY_SIZE,
    CLASSES,
    Side,
    decoded_images,
    encoded_images,
    first_values,
    in_turns,
    our_side,
    published_side,
)
from trainer.catalog import BACKBONES
from trainer.config import TrainConfig
from trainer.model.backbone import Backbone, build_vit
from trainer.training.engine import ENGINES

Precision = Literal["fp32", "tf32", "bf16"]
CONSOLE = Console(width=110)


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row per side, and why engines could not run, by side."""
    device: str = options.device
    row = BACKBONES[options.backbone]
    torch.manual_seed(0)
    backbone = Backbone(build_vit(row), readout=row.readout, sha256="")
    params = {"task": "demo/digits", "method": "spt_deep", "prompt_init": "random", "backbone": row.name}
    config = TrainConfig.from_params(
        params | {"prompt_length": options.prompt_length, "batch_size": options.batch_size, "epochs": 100}
    )
    encoded = encoded_images(4 * config.batch_size, config.pixels)
    images_NCHW = decoded_images(len(encoded), config.pixels).to(device)
    labels_N = torch.arange(len(encoded), device=device) % CLASSES
    first = first_values(backbone, config)

    sides = [published_side(config, first, encoded, config.batch_size, options.num_workers, device)]
    sides[0].step()
    sides[0].measured = {"step_flops": count_flops(sides[0].step), "start_s": 0.0}
    rejected = {}
    for precision in kinds_of(device):
        flops = 0.0
        for engine in ENGINES:
            ours = dataclasses.replace(config, precision=precision)
            wait_for(device)
            started = time.perf_counter()
            try:
                side = our_side(ours, first, images_NCHW, labels_N, config.batch_size, device, engine)
                side.step()
            except RuntimeError as error:
                rejected[f"{precision}, {engine}"] = str(error).splitlines()[0]
                continue
            wait_for(device)
            side.measured["start_s"] = time.perf_counter() - started
            # A compiled or replayed step hides its operations.
            flops = flops or count_flops(side.step)
            side.measured["step_flops"] = flops
            sides.append(side)

    in_turns(sides, "step", options.seconds, device)
    return [row_of(side, sides[0], config.batch_size) for side in sides], rejected


def kinds_of(device: str) -> tuple[Precision, ...]:
    """Return the precisions to measure: tf32 is fp32 on a CPU."""
    return ("fp32", "tf32", "bf16") if torch.device(device).type == "cuda" else precisions(device)


def row_of(side: Side, published: Side, batch_size: int) -> dict[str, Any]:
    """Return the measurements of a side."""
    step_s = side.measured["step_s"]
    return {
        "side": side.name,
        "images_per_s": batch_size / step_s,
        "ratio": published.measured["step_s"] / step_s,
        "gflops": side.measured["step_flops"] / step_s / 1e9,
        "start_s": side.measured["start_s"],
    }


def table_of(rows: Sequence[dict[str, Any]], title: str, ceiling: float) -> Table:
    """Return the table, one line per side."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for head in ("side", "images/s", "ratio", "of ceiling", "seconds to start"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for row in rows:
        speeds = (f"{row['images_per_s']:,.0f}", f"{row['ratio']:.2f}", f"{row['gflops'] / ceiling:.0%}")
        table.add_row(row["side"], *speeds, f"{row['start_s']:.1f}")
    return table


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--backbone", choices=BACKBONES, metavar="NAME", help="default: ViT-B on a GPU, else bundled")
    parser.add_argument("--prompt-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each side")
    parser.add_argument("--num-workers", type=int, default=0, help="workers of the published DataLoader")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    options = parser.parse_args()

    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("there is no GPU: torch.cuda.is_available() is False. --device cpu measures the processor.")
    options.backbone = options.backbone or BY_SIZE["base" if on_gpu else "nano"]

    machine = describe(options.device)
    rows, rejected = measure(options)
    ceiling = float(machine[f"matmul_gflops_{precisions(options.device)[-1]}"])
    title = f"{options.backbone}, spt_deep, {options.prompt_length} prompts, batch {options.batch_size}"
    CONSOLE.print(table_of(rows, title, ceiling))
    for side, reason in rejected.items():
        CONSOLE.print(f"{side} cannot run: {reason}")
    if options.out is not None:
        write_json(options.out, {"machine": machine, "sides": rows, "rejected": rejected})


if __name__ == "__main__":
    main()
