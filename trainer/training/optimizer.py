"""What changes the weights: optimizer and its groups, the learning rate's schedule, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

MIN_LR = 1e-8
MOMENTUM = 0.9
"""Of SGD (VPT, appendix A)."""


def build_optimizer(config: TrainConfig, learnable: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with torch's betas, or SGD; one group for each weight decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learnable.items():
        groups.setdefault(decay_of(name, parameter, config), []).append(parameter)
    described = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(described, lr=config.lr, momentum=MOMENTUM)
    on_gpu = all(parameter.is_cuda for parameter in learnable.values())
    return torch.optim.AdamW(described, lr=config.lr, fused=on_gpu or None)  # a GPU does all of it at one go


def decay_of(name: str, parameter: Tensor, config: TrainConfig) -> float:
    """A parameter's weight decay: the head's weight has one of its own; biases, norms, CLS and positions have none."""
    if name == "head.weight":
        return config.head_weight_decay
    if parameter.ndim == 1 or name.endswith(("cls_token", "pos_embed")):
        return 0.0
    return config.weight_decay


def lr_at(epoch: float, config: TrainConfig) -> float:
    """Learning rate at a fractional epoch: linear from 0 over the warm-up, then half a cosine to 1e-8."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    floor = min(MIN_LR, config.lr)
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class MovingAverage:
    """An exponential moving average of what learns: after each step, average += (1 - decay) (weight - average)."""

    def __init__(self, learnable: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters: list[Tensor] = list(learnable.values())
        self._decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in learnable.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        torch._foreach_lerp_(list(self.values.values()), self._parameters, 1 - self._decay)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self._parameters, self.values.values(), strict=True):
            weight = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model's weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
