"""Test accuracy of the published recipe, of ours, and of ours in bf16, over seeds: does speed cost accuracy?

python -m tests.benchmarks.accuracy                     demo/digits, 10 epochs, five seeds
python -m tests.benchmarks.accuracy --epochs 100 --task vtab/dtd --data DATA --backbone vit_base_patch16_224.mae

Each run trains on `trainval` and is scored on `test` once, at its last epoch. The bf16 side runs only on a device with
bf16 arithmetic. Differences are paired by seed: all sides start from the same prompts and head. On a CPU there is one
run per core at a time, each with one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from tests.benchmarks.machine import default_device, describe, precisions, write_json
from tests.benchmarks.published import train_as_published
from trainer.catalog import BACKBONES, BUNDLED
from trainer.config import TrainConfig
from trainer.data.tasks import open_task
from trainer.training.loop import train

CONSOLE = Console(width=110)


def trained_accuracy(side: str, params: dict[str, Any], data_root: str, device: str) -> float:
    """Return the test accuracy of one run."""
    # On a CPU the runs share the machine, one core each.
    if device == "cpu":
        torch.set_num_threads(1)

    if side == "ours, bf16":
        params = params | {"precision": "bf16"}
    config = TrainConfig.from_params(params)

    if side != "published":
        *_, last = train(config, data_root=data_root, device=device)
        return last.metrics["test/accuracy"]

    with tempfile.TemporaryDirectory() as folder:
        *_, metrics = train_as_published(
            config, data_root=data_root, folder=Path(folder), device=device, num_workers=1, ema=False
        )
    return metrics["test/accuracy"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all runs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="demo/digits")
    parser.add_argument("--data", help="the task store (default: a temporary one, for demo tasks)")
    parser.add_argument("--backbone", choices=BACKBONES, metavar="BACKBONE", default=BUNDLED)
    parser.add_argument("--method", default="spt_deep")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 44, 82, 100, 800])
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    params = {"task": options.task, "backbone": options.backbone, "method": options.method, "eval_split": "test"}
    params |= {"prompt_length": 10, "prompt_init": "mean_pool", "lr": options.lr}
    params |= {"epochs": options.epochs, "warmup_epochs": options.epochs // 10}
    sides = ("published", "ours", "ours, bf16")[: 1 + len(precisions(options.device))]

    # Train every side with every seed.
    scores_of: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="sptune-accuracy-") as scratch:
        data = options.data or scratch
        open_task(data, options.task)
        workers = (os.cpu_count() or 1) if options.device == "cpu" else 1
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            requests = [(side, seed) for seed in options.seeds for side in sides]
            runs = [
                pool.submit(trained_accuracy, side, params | {"seed": seed}, data, options.device)
                for side, seed in requests
            ]
            for (side, seed), run in zip(requests, runs, strict=True):
                scores_of[side].append(run.result())
                CONSOLE.print(f"{side}, seed {seed}: {100 * scores_of[side][-1]:.2f}")

    # Compare the sides.
    table = Table(
        "", "test accuracy", "std", "less published", "95 % of it", title=f"{options.task}, {options.epochs} epochs"
    )
    for side, scores in scores_of.items():
        differences = [
            100 * (score - published) for score, published in zip(scores, scores_of["published"], strict=True)
        ]
        spread = student.ppf(0.975, len(scores) - 1) * statistics.stdev(differences) / len(scores) ** 0.5
        difference = (f"{statistics.mean(differences):+.2f}", f"± {spread:.2f}") if side != "published" else ("", "")
        table.add_row(
            side, f"{100 * statistics.mean(scores):.2f}", f"{100 * statistics.stdev(scores):.2f}", *difference
        )
    CONSOLE.print(table)
    write_json(options.out, {"machine": describe(options.device), "test accuracy": scores_of})


if __name__ == "__main__":
    main()
