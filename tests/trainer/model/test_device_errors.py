"""Messages of CUDA, its libraries and torch, each with what it means."""

from __future__ import annotations

import pytest
import torch

from trainer.model.device_errors import is_device_lost, is_out_of_memory

HINT = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
    " for more information.\nCUDA kernel errors might be asynchronously reported at some other API call."
)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, ...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("Unable to allocate 6.71 GiB for an array with shape (1797, 1000, 1000)"),
]
LOST = [
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert triggered",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected during the execution",
    "unknown error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "context is destroyed",
    "invalid device context",
    "driver shutting down",
    "MPS client failed to connect to the MPS control daemon or the MPS server",
    "the remote procedural call between the MPS server and the MPS client failed",
    "MPS server is not ready to accept new MPS client requests",
    "the hardware resources required to create MPS client have been exhausted",
    "the hardware resources required to support device connections have been exhausted",
    "the MPS client has been terminated by the server",
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("PyTorch is not linked with support for mps devices"),
    ValueError("CUDA out of memory"),
    OSError("No space left on device"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_memory_that_ran_out_is_seen_in_every_spelling(error: Exception) -> None:
    assert is_out_of_memory(error) and not is_device_lost(error)


def test_an_array_larger_than_the_machine_is_seen() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("text", LOST)
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_a_device_that_fails_from_now_on_is_a_lost_worker(kind: type[RuntimeError], text: str) -> None:
    error = kind(f"CUDA error: {text}{HINT.replace('cudaErrorMemoryAllocation', 'cudaErrorIllegalAddress')}")
    assert is_device_lost(error) and not is_out_of_memory(error)


def test_mps_that_is_away_when_a_process_begins_is_a_lost_worker() -> None:
    text = "Unexpected error from cudaGetDeviceCount(). Error 807: MPS server is not ready to accept new MPS client"
    assert is_device_lost(RuntimeError(text))


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_neither(error: Exception) -> None:
    assert not is_device_lost(error) and not is_out_of_memory(error)
