"""Gain of training several trials in one forward pass, stacked along the batch (prompt lanes).

python -m tests.benchmarks.lanes                                   the defaults of this device
python -m tests.benchmarks.lanes --backbones vit_base_patch16_224.mae --batch-sizes 32 --lanes 2 4 8

A step is the forward and backward pass of K trials over one frozen network. Each trial has its own images, prompts and
head. The step is measured in three ways: one trial after another with all threads; K batches in one pass, each with its
own prompts; and, on a CPU, one process, one thread and one core per trial, as the workers of a sweep. All three give
each trial the gradients that it has alone; the first two are compared here, to float tolerance. Weights are random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tests.benchmarks.machine import default_device, describe, wait_for, write_json
from tests.benchmarks.sides import BY_SIZE
from trainer.catalog import BACKBONES, BUNDLED
from trainer.model.adapted_vit import prompted_features
from trainer.model.backbone import Backbone, build_vit
from trainer.model.prompted_vit import PromptedViT

CONSOLE = Console(width=110)


class Trials:
    """Steps of K trials with deep prompts on one backbone."""

    def __init__(self, backbone: str, batch_size: int, prompt_length: int, lanes: int, device: str) -> None:
        row = BACKBONES[backbone]
        torch.manual_seed(0)
        self._frozen = Backbone(build_vit(row), readout=row.readout, sha256="").to(device)
        side = row.image_size
        shape = (row.num_layers, prompt_length, row.embed_dim)
        self._models = [
            PromptedViT(
                self._frozen,
                num_classes=100,
                prompt_LPD=0.1 * torch.randn(shape),
                prompt_dropout=0.0,
                generator=torch.Generator().manual_seed(lane),
            ).to(device)
            for lane in range(lanes)
        ]
        pixels = torch.randint(0, 256, (lanes, batch_size, 3, side, side), dtype=torch.uint8)
        self._images = pixels.to(device)
        self._labels = torch.randint(0, 100, (lanes, batch_size), device=device)

    def alone(self) -> list[Tensor]:
        """Return the gradients of each trial, computed one trial after another."""
        gradients: list[Tensor] = []
        for model, images_BCHW, labels_B in zip(self._models, self._images, self._labels, strict=True):
            loss = F.cross_entropy(model(images_BCHW), labels_B)
            gradients += torch.autograd.grad(loss, [*model.learnable().values()])

        return gradients

    def together(self) -> list[Tensor]:
        """Return the same gradients, computed in one pass."""
        prompts = torch.stack([model.prompt_LPD for model in self._models], dim=1)
        features = prompted_features(self._frozen, self._images.flatten(0, 1), [*prompts]).chunk(len(self._models))
        losses = [
            F.cross_entropy(model.head(features_BD), labels_B)
            for model, features_BD, labels_B in zip(self._models, features, self._labels, strict=True)
        ]
        learnable = [parameter for model in self._models for parameter in model.learnable().values()]
        return [*torch.autograd.grad(torch.stack(losses).sum(), learnable)]


def median_s(step: Callable[[], object], seconds: float, device: str) -> float:
    """Return the median seconds of a step, without the first."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 4 or time.perf_counter() < end:
        started = time.perf_counter()
        step()
        wait_for(device)
        taken.append(time.perf_counter() - started)

    return statistics.median(taken[1:])


def in_a_process(arguments: tuple[str, int, int, float]) -> float:
    """Return the seconds of one trial's step in this process, with one thread."""
    backbone, batch_size, prompt_length, seconds = arguments
    torch.set_num_threads(1)
    return median_s(Trials(backbone, batch_size, prompt_length, 1, "cpu").alone, seconds, "cpu")


def in_processes(cell: tuple[str, int, int], seconds: float) -> float:
    """Return the seconds per trial and step, with one process per core."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return statistics.mean(pool.map(in_a_process, [(*cell, seconds)] * cores, chunksize=1)) / cores


def measured(cell: tuple[str, int, int], lanes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row of the table."""
    trials = Trials(*cell, lanes, options.device)
    for together_grad, alone_grad in zip(trials.together(), trials.alone(), strict=True):
        torch.testing.assert_close(together_grad, alone_grad, rtol=1e-3, atol=1e-5)

    ways: tuple[Callable[[], object], ...] = (trials.alone, trials.together)
    alone, together = (median_s(way, options.seconds, options.device) / lanes for way in ways)
    return {"backbone": cell[0], "batch_size": cell[1], "lanes": lanes, "alone": alone, "together": together}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each cell, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbones", nargs="+", choices=BACKBONES, metavar="BACKBONE", default=[BUNDLED, BY_SIZE["tiny"]]
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--lanes", nargs="+", type=int, default=[5], help="trials in one pass")
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each way of a cell")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    rows: list[dict[str, Any]] = []
    columns = ("one after another", "in one pass", "gain", "one core each", "pass / one core each")
    table = Table("backbone", "batch", "lanes", *columns, title=f"ms per trial and step, {options.device}")
    for backbone in options.backbones:
        for batch_size in options.batch_sizes:
            cell = (backbone, batch_size, options.prompt_length)
            apart = in_processes(cell, options.seconds) if options.device == "cpu" else None
            for lanes in options.lanes:
                row = measured(cell, lanes, options) | {"a core each": apart}
                rows.append(row)
                gain = row["alone"] / row["together"]
                times = [f"{1000 * row[way]:.1f}" for way in ("alone", "together")]
                spread = (f"{1000 * apart:.1f}", f"{row['together'] / apart:.2f}") if apart else ("", "")
                table.add_row(backbone, str(batch_size), str(lanes), *times, f"{gain:.2f}", *spread)
                CONSOLE.print(f"{backbone}, batch {batch_size}, {lanes} lanes: gain {gain:.2f}")

    CONSOLE.print(table)
    write_json(options.out, {"machine": describe(options.device), "rows": rows})


if __name__ == "__main__":
    main()
