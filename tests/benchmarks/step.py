"""Time of one training step of each method: ours, and a plain timm forward and backward pass with the same parameters.

Run `python -m tests.benchmarks.step [BACKBONE] --prompt-length 20 --batch-size 8`. Both sides take turns in this
process, on the same images, and the first of a turn alternates. Each ratio is that of the medians. The plain sides are
those of `plain_methods.py`. No weights are needed: the network's are random.

With `--threads 1` on a CPU, the time of the processor hardly depends on what else the machine does. On a GPU only the
time of the clock counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.machine import default_device, describe, wait_for, write_json
from tests.benchmarks.plain_methods import PLAIN
from trainer.catalog import BACKBONES, METHODS
from trainer.config import TrainConfig
from trainer.methods.protocol import build_model
from trainer.model.backbone import Backbone, build_vit
from trainer.model.execution import backward, with_precision

CLASSES = 100
CLOCKS: dict[str, Callable[[], float]] = {"processor": time.process_time, "clock": time.perf_counter}
"""What measures a step, in seconds."""

CASES: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS}
CASES["adapter_parallel"] = {"method": "adapter", "adapter_form": "parallel"}
"""What is measured: every method, and every form of one."""

assert PLAIN.keys() == METHODS.keys(), f"plain_methods.PLAIN differs from METHODS: {PLAIN.keys() ^ METHODS.keys()}"


def config_of(case: str, *, backbone: str, prompt_length: int, batch_size: int) -> TrainConfig:
    """Return the config of a case."""
    params = CASES[case] | {"task": "demo/digits", "backbone": backbone, "batch_size": batch_size}
    method = METHODS[params["method"]]
    if method.prompted_layers != "none":
        params |= {"prompt_length": prompt_length, "prompt_init": method.prompt_inits[0]}
    return TrainConfig.from_params(params)


def random_network(backbone: str, device: str) -> Backbone:
    """Return a network with random weights."""
    row = BACKBONES[backbone]
    torch.manual_seed(0)
    return Backbone(build_vit(row), readout=row.readout, sha256="", mean_and_std=row.mean_and_std).to(device)


class Sides:
    """A training step of a method on a batch of random images, by us and plainly.

    Args:
        network: the frozen network.
    """

    def __init__(self, config: TrainConfig, network: Backbone, device: str) -> None:
        row = config.backbone_row
        layers = {"all": row.num_layers, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]
        torch.manual_seed(0)
        prompt_LPD = 0.1 * torch.randn(layers, config.prompt_length or 0, row.embed_dim)
        model = build_model(config, network, num_classes=CLASSES, prompt_LPD=prompt_LPD).to(device).train()
        with torch.no_grad():
            # Otherwise what starts at 0 has no influence.
            for parameter in model.learnable().values():
                parameter.add_(0.02 * torch.randn(parameter.shape).to(device))

        self.parameters = list(model.learnable().values())
        self.batch_size = config.batch_size
        shape = (config.batch_size, 3, row.image_size, row.image_size)
        self.images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
        self.labels_B = torch.randint(0, CLASSES, (config.batch_size,)).to(device)

        self._ours = with_precision(model, config.precision, device)
        self._plain = PLAIN[config.method](config, model, network)

    def ours(self) -> Tensor:
        """Set the gradients as a training run does, and return the loss."""
        loss, _ = backward(self._ours, self.parameters, self.images_BCHW, self.labels_B, self.batch_size)
        return loss

    def plain(self) -> Tensor:
        """Set the gradients plainly, and return the loss."""
        for parameter in self.parameters:
            parameter.grad = None
        loss = F.cross_entropy(self._plain(self.images_BCHW), self.labels_B)
        torch.autograd.backward(loss)
        return loss.detach()

    def check(self) -> None:
        """Assert that both sides have the same loss and the same gradients."""
        results = []
        for side in (self.ours, self.plain):
            # Dropout of prompts has the same masks then.
            torch.manual_seed(1)
            results.append([side(), *(parameter.grad for parameter in self.parameters)])
        for ours, plain in zip(*results, strict=True):
            assert ours is not None and plain is not None, "every parameter has a gradient on both sides"
            assert (ours - plain).norm() <= 1e-3 * plain.norm(), "both sides compute the same"


def measure(sides: Sides, steps: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of a step on each side by each clock, and their ratios."""
    taken: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for turn in range(steps):
        for name in ("ours", "plain") if turn % 2 else ("plain", "ours"):
            wait_for(device)
            started = {clock: read() for clock, read in CLOCKS.items()}
            getattr(sides, name)()
            wait_for(device)
            taken[name].append({clock: read() - started[clock] for clock, read in CLOCKS.items()})

    row = {
        f"{name}_{clock}_ms": 1000 * statistics.median(each[clock] for each in times)
        for name, times in taken.items()
        for clock in CLOCKS
    }
    return row | {f"{clock}_ratio": row[f"ours_{clock}_ms"] / row[f"plain_{clock}_ms"] for clock in CLOCKS}


def main() -> None:
    """Measure, print a line for each method and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", default="vit_base_patch16_224.mae", choices=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--prompt-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    device = options.device
    network = random_network(options.backbone, device)
    sizes = {"backbone": options.backbone, "prompt_length": options.prompt_length, "batch_size": options.batch_size}
    print(", ".join(f"{name} {value}" for name, value in sizes.items()) + f", {device}")
    print(f"{'method':26}{'ours, ms':>10}{'plain, ms':>11}{'ratio':>8}{'ratio by the clock':>20}")

    methods: list[dict[str, Any]] = []
    for name in options.methods:
        sides = Sides(config_of(name, **sizes), network, device)
        # The first step of each side warms up.
        sides.check()

        row = {"method": name, **measure(sides, options.steps, device)}
        methods.append(row)
        print(
            f"{name:26}{row['ours_processor_ms']:10.1f}{row['plain_processor_ms']:11.1f}"
            f"{row['processor_ratio']:8.3f}{row['clock_ratio']:20.3f}",
            flush=True,
        )

    write_json(options.out, {"machine": describe(device), **sizes, "methods": methods})


if __name__ == "__main__":
    main()
