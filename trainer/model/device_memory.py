"""Memory that this process holds on its device."""

from __future__ import annotations

import resource

import torch

from trainer.machine import usable_memory

CUDA_CONTEXT_GB = 0.5
"""GPU memory that CUDA takes for a process, in addition to torch's allocations; torch cannot measure it."""


def memory_gb(device: str) -> tuple[float, float]:
    """Return the peak memory of this process and the total memory, in 1e9 bytes.

    Both are the GPU's on a CUDA device. On a CPU the total is what the process may use of the machine. The peak counts
    from the last call of `reset_peak_memory` on a GPU, and from the start of the process on a CPU.
    """
    if torch.device(device).type == "cuda":
        peak_gb = torch.cuda.max_memory_reserved(device) / 1e9 + CUDA_CONTEXT_GB
        return peak_gb, total_bytes(device) / 1e9

    # Linux counts the peak in KiB.
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes / 1e9, usable_memory() / 1e9


def total_bytes(device: str | torch.device) -> int:
    """Return the total memory of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of a GPU's peak memory, and free what torch caches. Does nothing on a CPU."""
    if torch.device(device).type == "cuda":
        # Cached blocks are reserved memory: they would be the new measurement's first peak.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
