"""What an error of a device means: too little memory, or a device that this process cannot use any more."""

from __future__ import annotations

import re

import torch

OUT_OF_MEMORY = re.compile(
    # The allocator of torch, and CUDA itself.
    r"\b(?:CUDA|HIP) out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation"
    # The libraries, which allocate for themselves: cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT.
    r"|\bCU[A-Z]+_(?:STATUS_)?(?:\w+_)?ALLOC(?:ATION)?_FAILED"
    # Main memory, on Linux and on Windows.
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
)
"""Pattern of what an error without a class of its own says if memory ran out."""

DEVICE_LOST = re.compile(
    r"CUDA error: (?:"
    r"an illegal memory access was encountered|an illegal instruction was encountered|misaligned address"
    r"|unspecified launch failure|device-side assert triggered|the launch timed out and was terminated"
    r"|invalid program counter|hardware stack error|operation not supported on global/shared address space"
    r"|uncorrectable (?:ECC|NVLink) error|unknown error|context is destroyed"
    r"|CUDA-capable device\(s\) is/are busy or unavailable|no CUDA-capable device is detected"
    r"|invalid device context|driver shutting down"
    r")"
    # Of MPS: a fatal error of one process ends all that share its GPU, and no new one starts until they have ended.
    r"|MPS client failed to connect|MPS server and the MPS client failed|MPS server is not ready"
    r"|the MPS client has been terminated|resources required to (?:create MPS client|support device connections)"
)
"""Pattern of errors after which every later CUDA call of the process fails, and of errors of a missing GPU. CUDA's
Runtime API says of the former that they leave the process in an inconsistent state."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def is_device_lost(error: BaseException) -> bool:
    """Return whether this process cannot use its GPU any more, so that only another process can."""
    return isinstance(error, RuntimeError) and DEVICE_LOST.search(str(error)) is not None
