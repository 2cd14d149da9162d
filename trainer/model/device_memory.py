"""How much memory this process holds on its device."""

from __future__ import annotations

import os
import resource

import torch

CUDA_CONTEXT_GB = 0.5
"""GPU memory that CUDA takes for a process beside what torch asks for; torch cannot tell it."""


def memory_gb(device: str) -> tuple[float, float]:
    """The most memory that this process has held, and what there is: of the GPU since `forget_used`, or of the machine;
    in 1e9 bytes."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.max_memory_reserved() / 1e9 + CUDA_CONTEXT_GB
        return held, torch.cuda.get_device_properties(0).total_memory / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return peak / 1e9, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def reset_peak_memory(device: str) -> None:
    """Measure a GPU's memory anew, and give back what this process holds without need."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
