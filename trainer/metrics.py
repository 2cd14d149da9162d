"""Accuracy from counts: correct and seen are added up and divided once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def in_batches(network: Callable[[Tensor], Tensor], inputs_N: Tensor, batch_size: int = 256) -> Tensor:
    """A network's outputs ``[N, ...]`` for any number of inputs, without gradients."""
    return torch.cat([network(inputs_B) for inputs_B in inputs_N.split(batch_size)])


def correct(network: Callable[[Tensor], Tensor], inputs_N: Tensor, labels_N: Tensor) -> Tensor:
    """Whether each input is classified right, ``[N]`` bool."""
    return in_batches(network, inputs_N).argmax(dim=1) == labels_N


def accuracy(network: Callable[[Tensor], Tensor], inputs_N: Tensor, labels_N: Tensor) -> float:
    """Share of the inputs that the network classifies right, 0..1."""
    correct_N = correct(network, inputs_N, labels_N)
    return int(correct_N.sum()) / len(correct_N)
