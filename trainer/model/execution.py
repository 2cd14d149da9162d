"""How a network is run: in which precision, and in micro-batches where a whole batch does not fit in memory.

Shapes: B batch, N inputs, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.device_errors import is_out_of_memory
from trainer.model.gpu_kernels import gpu_arithmetic, repeatable

log = logging.getLogger(__name__)
Network = Callable[[Tensor], Tensor]
Output = TypeVar("Output")


def has_bf16(device: str) -> bool:
    """Return whether a device has bf16 arithmetic: GPUs have it, and processors with AVX-512 or similar."""
    return torch.device(device).type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def with_precision(network: Network, precision: str, device: str) -> Network:
    """Return the network under autocast (`bf16`) or not (`fp32`, `tf32`). Its outputs are float32 or wider."""
    if precision == "bf16" and not has_bf16(device):
        log.warning("this processor has no arithmetic for bf16: use precision fp32, which is many times faster")

    def run(inputs_B: Tensor) -> Tensor:
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        with gpu_arithmetic(precision, device), autocast:
            outputs_B = network(inputs_B)

        # Losses and probabilities need more digits than bf16 has (two to three).
        return outputs_B.float() if outputs_B.dtype is torch.bfloat16 else outputs_B

    return run


def backward(
    network: Network,
    parameters: Sequence[nn.Parameter],
    inputs_B: Tensor,
    labels_B: Tensor,
    micro_batch_size: int,
    precision: str = "fp32",
) -> tuple[Tensor, int]:
    """Set each parameter's `grad` to the gradient of the batch's mean cross entropy.

    The batch is processed in micro-batches. If memory runs out, the micro-batch is halved and tried again. A GPU gives
    the same bits each time.

    Args:
        precision: that of the network, as in TrainConfig.

    Returns:
        The loss, and the size of the micro-batches that fit.

    Raises:
        RuntimeError, MemoryError: if a single input does not fit, in any spelling of `is_out_of_memory`.
    """
    losses: list[Tensor] = []
    num_done = 0
    for parameter in parameters:
        parameter.grad = None

    while num_done < len(labels_B):
        rows = slice(num_done, num_done + micro_batch_size)

        try:
            with repeatable(precision, labels_B.device):
                loss = F.cross_entropy(network(inputs_B[rows]), labels_B[rows], reduction="sum") / len(labels_B)
                # Unlike loss.backward() this gives all gradients or none, so a failed attempt leaves nothing behind.
                gradients = torch.autograd.grad(loss, parameters)
        except (RuntimeError, MemoryError) as error:
            if micro_batch_size == 1 or not is_out_of_memory(error):
                raise
        else:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            losses.append(loss.detach())
            num_done += micro_batch_size
            continue

        # Outside the handler: the exception it holds keeps the failed attempt's tensors alive.
        micro_batch_size = _halve(micro_batch_size, "training")

    # Started from the first loss: a zero to add to would be two kernels of each step.
    return sum(losses[1:], start=losses[0]), micro_batch_size


def run_in_micro_batches(
    run: Callable[[Tensor], Output], inputs_N: Tensor, micro_batch_size: int, purpose: str
) -> list[Output]:
    """Return the outputs of a function for the inputs, one per micro-batch.

    If memory runs out, the micro-batch is halved and tried again.

    Args:
        purpose: what is computed, for the log line.

    Raises:
        RuntimeError, MemoryError: if a single input does not fit, in any spelling of `is_out_of_memory`.
    """
    outputs: list[Output] = []
    num_done = 0

    while num_done < len(inputs_N):
        try:
            outputs.append(run(inputs_N[num_done : num_done + micro_batch_size]))
        except (RuntimeError, MemoryError) as error:
            if micro_batch_size == 1 or not is_out_of_memory(error):
                raise
        else:
            num_done += micro_batch_size
            continue

        # Outside the handler, as in `backward`.
        micro_batch_size = _halve(micro_batch_size, purpose)

    return outputs


TOKENS_PER_EVAL_BATCH = 5000
"""Tokens of an evaluation batch that fit in a CPU's caches. With four times as many it is a quarter slower."""


def eval_batch_size(device: str, num_tokens: int) -> int:
    """Return how many images of `num_tokens` tokens to evaluate at once: they fill a GPU or fit in CPU caches."""
    if torch.device(device).type == "cuda":
        return 256
    return max(1, TOKENS_PER_EVAL_BATCH // num_tokens)


@torch.no_grad()
def evaluate_in_batches(network: Network, inputs_N: Tensor, micro_batch_size: int = 256) -> Tensor:
    """Return a network's outputs ``[N, ...]`` for any number of inputs, without gradients.

    Raises:
        RuntimeError, MemoryError: if a single input does not fit, in any spelling of `is_out_of_memory`.
    """
    return torch.cat(run_in_micro_batches(network, inputs_N, micro_batch_size, "evaluation"))


def _halve(micro_batch_size: int, purpose: str) -> int:
    """Return half of the size, rounded up, and log it. Call where the failed attempt's tensors are freed already."""
    # The freed tensors' blocks are too large for the halves: give them back to the GPU.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

    half = (micro_batch_size + 1) // 2
    log.warning(
        "out of memory in %s with %d images at once: retrying with %d, which gives the same result",
        purpose,
        micro_batch_size,
        half,
    )
    return half
