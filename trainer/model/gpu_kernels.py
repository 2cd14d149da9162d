"""The kernels that a GPU computes with: those that give the same bits each time. On a CPU nothing changes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""Attention kernels whose backward pass can repeat its bits, the fastest first. FlashAttention takes bf16 only. cuDNN's
kernel, which torch prefers on some GPUs, has a backward pass that does not repeat."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""Type of the numbers that attention gets, by precision."""
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable that gives cuBLAS a workspace of fixed size. torch reads it once, at its first matrix product
on a GPU, and refuses to be deterministic without it."""


def fix_cublas_workspace(device: str | torch.device) -> None:
    """Set the variable that cuBLAS needs to repeat its bits, unless it is set. Does nothing for a CPU.

    Call it before this process computes anything on a GPU.
    """
    if torch.device(device).type == "cuda":
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")


@contextmanager
def gpu_arithmetic(precision: str, device: str | torch.device) -> Iterator[None]:
    """Compute products in the digits of a precision, and attention by kernels that can repeat their bits.

    Factors of matrix products and of convolutions, forward and backward, are float32 (`fp32`) or rounded to TF32
    (`tf32`). Under `bf16` the products that autocast leaves in float32 are float32. torch's settings of the process are
    as before at the end. Does nothing for a CPU.
    """
    if torch.device(device).type != "cuda":
        yield
        return

    matmul = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    convolution = cudnn.conv
    matmul_before = matmul.fp32_precision
    convolution_before = convolution.fp32_precision

    # By default torch computes convolutions in TF32, which has ten bits of the mantissa: the patch embedding is one.
    matmul.fp32_precision = convolution.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with sdpa_kernel([*ATTENTION_KERNELS], set_priority=True):
            yield
    finally:
        matmul.fp32_precision = matmul_before
        convolution.fp32_precision = convolution_before


@contextmanager
def repeatable(precision: str, device: str | torch.device) -> Iterator[None]:
    """Compute as in `gpu_arithmetic`, with operations that repeat their bits. Does nothing for a CPU.

    An operation without such an implementation raises RuntimeError, so only forward and backward passes belong here.
    """
    if torch.device(device).type != "cuda":
        yield
        return

    was_enabled = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled_memory = deterministic.fill_uninitialized_memory

    torch.use_deterministic_algorithms(True)
    # Or torch fills each new tensor, which takes a kernel more. Nothing here reads what it has not written.
    deterministic.fill_uninitialized_memory = False
    try:
        with gpu_arithmetic(precision, device):
            yield
    finally:
        deterministic.fill_uninitialized_memory = filled_memory
        torch.use_deterministic_algorithms(was_enabled, warn_only=warned_only)


def check_repeatable(device: str | torch.device) -> None:
    """Raise ValueError if matrix products on a GPU of this process cannot repeat their bits."""
    with repeatable("fp32", device):
        one_11 = torch.ones(1, 1, device=device)
        try:
            torch.mm(one_11, one_11)
        except RuntimeError as error:
            if CUBLAS_WORKSPACE not in str(error):
                raise
            raise ValueError(
                f"{CUBLAS_WORKSPACE} must be :4096:8 or :16:8 when a process first computes on a GPU, or results "
                f"differ from run to run; it is {os.environ.get(CUBLAS_WORKSPACE, '')!r} now. Set it to :4096:8 and "
                "start the process again."
            ) from None


def device_kind(device: str | torch.device) -> str:
    """Return the name of a GPU, or the architecture of the processor. Other kinds round other bits."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


def describe_arithmetic(precision: str, head_dim: int, device: str | torch.device) -> str:
    """Return what decides the bits of a result beside kind of device and engine, such as `bf16, flash attention`.

    Args:
        precision: of the products, as in TrainConfig.
        head_dim: width of an attention head.
    """
    if torch.device(device).type != "cuda":
        return precision

    tokens_1HTd = torch.empty(1, 1, 8, head_dim, device=device, dtype=DTYPES[precision])
    attention = torch.backends.cuda.SDPAParams(tokens_1HTd, tokens_1HTd, tokens_1HTd, None, 0.0, False, False)
    with gpu_arithmetic(precision, device):
        if torch.backends.cuda.can_use_flash_attention(attention):
            kernel = "flash"
        elif torch.backends.cuda.can_use_efficient_attention(attention):
            kernel = "efficient"
        else:
            kernel = "math"
    return f"{precision}, {kernel} attention"
