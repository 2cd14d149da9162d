"""The machine that a benchmark runs on: what it is, and how fast it multiplies matrices.

Run `python -m tests.benchmarks.machine`. The ceiling of the machine is the fastest of many large square products.
torch's counter counts the FLOPs of matrix products, convolutions and attention as they are executed, also of those that
are computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from trainer.model.execution import has_bf16

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def default_device() -> str:
    """Return cuda if there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions to measure. Without bf16 arithmetic, bf16 is left out: it takes many times as long."""
    return ("fp32", "bf16") if has_bf16(device) else ("fp32",)


def wait_for(device: str) -> None:
    """Wait until the device has done its work. A clock read earlier measures nothing."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matmul_gflops(device: str, precision: str, seconds: float = 1.0) -> float:
    """Return GFLOP/s of the fastest square matrix product within the time, after two to warm up."""
    # A GPU gets several products at a time, so that launching them is not what is measured.
    side, at_once = (8192, 8) if torch.device(device).type == "cuda" else (2048, 1)
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))

    best = float("inf")
    tries = 0
    end = time.perf_counter() + seconds
    while tries < 5 or time.perf_counter() < end:
        wait_for(device)
        started = time.perf_counter()
        for _ in range(at_once):
            left @ right
        wait_for(device)

        if tries >= 2:
            best = min(best, (time.perf_counter() - started) / at_once)
        tries += 1

    return 2 * side**3 / best / 1e9


class NoModules(ModuleTracker):
    """Module tracker that tracks nothing.

    Only the sum over all modules is needed, and tracking modules fails on views of parameters without gradients.
    """

    def __enter__(self) -> NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def count_flops(run: Callable[[], object]) -> int:
    """Return the FLOPs that `run` executes, such as a training step or one pass of an evaluation."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()

    with counter:
        run()

    return int(counter.get_total_flops())


def cpu_name() -> str:
    """Return the name that Linux gives the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe(device: str) -> dict[str, str | float]:
    """Return a description of the machine, with its ceilings measured now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    description: dict[str, str | float] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9, 1),
    }

    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        description |= {
            "gpu": card.name,
            "gpu_memory_gb": round(card.total_memory / 1e9, 1),
            "cuda": str(torch.version.cuda),
        }

    description |= {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    description |= {
        f"matmul_gflops_{precision}": round(matmul_gflops(device, precision), 1) for precision in precisions(device)
    }
    return description


def write_json(out: Path | None, results: Mapping[str, object]) -> None:
    """Write results to a JSON file, if one is given, and create its folder."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2))


def main() -> None:
    """Measure the machine, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table("what", "value", title="machine")
    for name, value in describe(options.device).items():
        table.add_row(name, f"{value:,}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
