"""What a benchmark ran on: the machine, how fast it multiplies matrices, and how much of that a step could use.

`python -m tests.benchmarks.machine`. The ceiling is the fastest of many large square products; torch's counter counts
the FLOPs of matrix products, convolutions and attention as they are executed, recomputed ones too.
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
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precisions(device: str) -> tuple[Precision, ...]:
    """Those that it computes in: bf16 too, but for a processor without arithmetic for it, which takes ages."""
    return ("fp32", "bf16") if has_bf16(device) else ("fp32",)


def wait_for(device: str) -> None:
    """Until the device has done what it was given; a clock read earlier tells nothing."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matmul_gflops(device: str, precision: str, seconds: float = 1.0) -> float:
    """GFLOP/s of the fastest of the square matrix products that fit in the time, after two to warm up."""
    side, at_once = (8192, 8) if torch.device(device).type == "cuda" else (2048, 1)
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best, tries, end = float("inf"), 0, time.perf_counter() + seconds
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
    """Only sums are asked for; following modules fails on views of parameters that need no gradient."""

    def __enter__(self) -> NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of what `run` executes, such as a whole training step or one pass of an evaluation."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        run()
    return int(counter.get_total_flops())


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe(device: str) -> dict[str, str | float]:
    """The machine in words and numbers, its ceilings measured now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, str | float] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9, 1),
    }
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"gpu": card.name, "gpu_memory_gb": round(card.total_memory / 1e9, 1), "cuda": str(torch.version.cuda)}
    found |= {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    found |= {
        f"matmul_gflops_{precision}": round(matmul_gflops(device, precision), 1) for precision in precisions(device)
    }
    return found


def write_found(out: Path | None, found: Mapping[str, object]) -> None:
    """Keep what was found as JSON, in a folder that is made, if a file is asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2))


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("what", "found", title="machine")
    for name, value in describe(options.device).items():
        table.add_row(name, f"{value:,}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
