"""What changes the weights: the optimizer and its groups, the schedule of the learning rate, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

MIN_LR = 1e-8
"""Learning rate at the end of the schedule."""
MOMENTUM = 0.9
"""Momentum of SGD (VPT, appendix A)."""


def build_optimizer(config: TrainConfig, learnable: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW with torch's betas, or SGD, with one parameter group for each weight decay."""
    parameters_by_decay: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learnable.items():
        parameters_by_decay.setdefault(decay_of(name, parameter, config), []).append(parameter)
    groups = [{"params": parameters, "weight_decay": decay} for decay, parameters in parameters_by_decay.items()]

    # On a GPU, the fused kernel updates all parameters in one launch, with a learning rate that is there.
    is_on_gpu = all(parameter.is_cuda for parameter in learnable.values())
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, fused=is_on_gpu or None)
    return torch.optim.AdamW(groups, lr=config.lr, fused=is_on_gpu or None)


def decay_of(name: str, parameter: Tensor, config: TrainConfig) -> float:
    """Return the weight decay of a parameter.

    The head's weight has its own. Biases, norms, CLS token and position embeddings have none.
    """
    if name == "head.weight":
        return config.head_weight_decay
    if parameter.ndim == 1 or name.endswith(("cls_token", "pos_embed")):
        return 0.0
    return config.weight_decay


def lr_at(epoch: float, config: TrainConfig) -> float:
    """Return the learning rate at a fractional epoch: linear from 0 in the warm-up, then half a cosine to 1e-8."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs

    progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    # An lr below the floor stays where it is instead of rising.
    floor = min(MIN_LR, config.lr)
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class MovingAverage:
    """Exponential moving average of the learnable parameters.

    After each step, average += (1 - decay) (weight - average).
    """

    def __init__(self, learnable: Mapping[str, nn.Parameter], decay: float) -> None:
        # In the order of the parameters: `update` and `_swap` go through both side by side.
        self.values = {name: parameter.detach().clone() for name, parameter in learnable.items()}
        self._parameters: list[Tensor] = list(learnable.values())
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        torch._foreach_lerp_(list(self.values.values()), self._parameters, 1 - self._decay)

    @torch.no_grad()
    def _swap(self) -> None:
        # Values are copied and tensors stay: the optimizer's state belongs to these very parameters.
        for parameter, value in zip(self._parameters, self.values.values(), strict=True):
            weight = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averages as its weights within a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
