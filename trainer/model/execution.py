"""How a network is run: in which precision, and in parts where a whole batch does not fit in memory.

Shapes: B batch, N inputs, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)
Network = Callable[[Tensor], Tensor]
Output = TypeVar("Output")


def has_bf16(device: str) -> bool:
    """Whether a device has arithmetic for bf16: GPUs have, of processors those with AVX-512 or the like."""
    return torch.device(device).type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def with_precision(network: Network, precision: str, device: str) -> Network:
    """The network under autocast (`bf16`) or as it is (`fp32`); its outputs are float32 or wider."""
    if precision == "bf16" and not has_bf16(device):
        log.warning("this processor has no arithmetic for bf16 and will be many times slower than with precision fp32")

    def run(inputs_B: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            outputs_B = network(inputs_B)
        return outputs_B.float() if outputs_B.dtype is torch.bfloat16 else outputs_B

    return run


def backward(
    network: Network, parameters: Sequence[nn.Parameter], inputs_B: Tensor, labels_B: Tensor, micro_batch_size: int
) -> tuple[Tensor, int]:
    """Set each parameter's `grad` to that of the batch's mean cross entropy, `part` inputs at a time.

    Returns:
        The loss, and the size of the parts that did fit.

    Raises:
        torch.OutOfMemoryError: if a single input does not fit.
    """
    total, done = torch.zeros((), device=labels_B.device), 0
    for parameter in parameters:
        parameter.grad = None
    while done < len(labels_B):
        rows = slice(done, done + micro_batch_size)
        try:
            loss = F.cross_entropy(network(inputs_B[rows]), labels_B[rows], reduction="sum") / len(labels_B)
            gradients = torch.autograd.grad(loss, parameters)  # all of them or none, unlike loss.backward()
        except torch.OutOfMemoryError:
            if micro_batch_size == 1:
                raise
        else:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += loss.detach()
            done += micro_batch_size
            continue
        micro_batch_size = _halve(micro_batch_size, "training")
    return total, micro_batch_size


def run_in_micro_batches(run: Callable[[Tensor], Output], inputs_N: Tensor, part: int, doing: str) -> list[Output]:
    """What a function makes of the inputs, `part` at a time; where memory ends, the part is tried again in halves.

    Raises:
        torch.OutOfMemoryError: if a single input does not fit.
    """
    outputs: list[Output] = []
    done = 0
    while done < len(inputs_N):
        try:
            outputs.append(run(inputs_N[done : done + part]))
        except torch.OutOfMemoryError:
            if part == 1:
                raise
        else:
            done += part
            continue
        part = _halve(part, doing)
    return outputs


TOKENS_PER_EVAL_BATCH = 5000
"""Tokens of an evaluation's batch that a CPU's caches hold; with four times as many it is a quarter slower."""


def eval_batch_size(device: str, tokens: int) -> int:
    """How many images of so many tokens are evaluated together: what fills a GPU, or what stays in a CPU's caches."""
    return 256 if torch.device(device).type == "cuda" else max(1, TOKENS_PER_EVAL_BATCH // tokens)


@torch.no_grad()
def evaluate_in_batches(network: Network, inputs_N: Tensor, micro_batch_size: int = 256) -> Tensor:
    """A network's outputs ``[N, ...]`` for any number of inputs, without gradients.

    Raises:
        torch.OutOfMemoryError: if a single input does not fit.
    """
    return torch.cat(run_in_micro_batches(network, inputs_N, micro_batch_size, "evaluation"))


def _halve(part: int, doing: str) -> int:
    """Half of a size, said aloud; called behind the handler, where the failed attempt's tensors are gone."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (part + 1) // 2
    log.warning("out of memory in %s with %d images at once: going on with %d, to the same result", doing, part, half)
    return half
