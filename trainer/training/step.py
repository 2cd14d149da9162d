"""A training step: forward and backward pass, optimizer, moving average; as it is, or replayed as a CUDA graph.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.model.execution import Network, backward
from trainer.training.optimizer import MovingAverage, build_optimizer, set_lr

WARM_UP_STEPS = 3
"""Steps before a capture. cuBLAS, autograd and the optimizer allocate what they keep in their first steps."""


class TrainingStep:
    """What a step trains, and how.

    Args:
        network: returns the logits ``[B, K]`` of inputs.
        learnable: the parameters by name. A step changes them in place.

    Attributes:
        optimizer: AdamW or SGD over the parameters.
        average: their moving average, or None.
        micro_batch_size: images that go through the network at once; fewer than a batch if memory is short.
    """

    def __init__(self, config: TrainConfig, network: Network, learnable: Mapping[str, nn.Parameter]) -> None:
        self.learnable = dict(learnable)
        self.optimizer = build_optimizer(config, learnable)
        self.average = MovingAverage(learnable, config.ema_decay) if config.ema_decay else None
        self.micro_batch_size = config.batch_size

        self._network = network
        self._precision = config.precision
        self._run: Callable[[Tensor, Tensor, float], Tensor] = self._run_once

    def __call__(self, inputs_B: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        """Train on a batch and return its loss, without waiting for the device. The next call may overwrite it."""
        if labels_B.is_cuda:
            # A graph reads it as float32. Eager reads the same number, and so trains the same bits.
            lr = float(np.float32(lr))
        # The optimizer's state is saved with it.
        set_lr(self.optimizer, lr)
        return self._run(inputs_B, labels_B, lr)

    def run_over_fixed_memory(self, inputs_B: Tensor, labels_B: Tensor, *, capture: bool) -> None:
        """Run later steps over the memory of one batch, as a CUDA graph must; with `capture`, replay them as one.

        Capturing trains a few steps on the batch.

        Args:
            inputs_B, labels_B: a batch of the size of all later batches.

        Raises:
            RuntimeError: if the step cannot be captured. It runs as before then.
        """
        fixed = FixedMemoryStep(self._forward_backward_update, self.optimizer, inputs_B, labels_B)
        if capture:
            fixed.capture()
        self._run = fixed

    def run_once(self) -> None:
        """Run later steps operation by operation."""
        self._run = self._run_once

    def fill_optimizer_state(self) -> None:
        """Give the optimizer the state that its first step would begin with, unless it has one."""
        if self.optimizer.state:
            return
        set_lr(self.optimizer, 0.0)
        for parameter in self.learnable.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        for tensor in self._optimizer_state():
            tensor.zero_()

    def changed_tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes in place: parameters, their averages, the optimizer's state."""
        averages = [] if self.average is None else list(self.average.values.values())
        return [*(parameter.detach() for parameter in self.learnable.values()), *averages, *self._optimizer_state()]

    def _optimizer_state(self) -> list[Tensor]:
        states: list[dict[str, Any]] = list(self.optimizer.state.values())
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def _run_once(self, inputs_B: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        return self._forward_backward_update(inputs_B, labels_B)

    def _forward_backward_update(self, inputs_B: Tensor, labels_B: Tensor) -> Tensor:
        loss, self.micro_batch_size = backward(
            self._network,
            list(self.learnable.values()),
            inputs_B,
            labels_B,
            self.micro_batch_size,
            self._precision,
        )
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return loss


class FixedMemoryStep:
    """A step whose batch and learning rate are copied to where it reads them. A GPU can capture and replay it.

    Args:
        step: forward and backward pass, and update, without any wait for the device.
        optimizer: what `step` calls.
        inputs_B, labels_B: a batch.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        inputs_B: Tensor,
        labels_B: Tensor,
    ) -> None:
        self._step = step
        self._optimizer = optimizer
        self._inputs_B = inputs_B.clone()
        self._labels_B = labels_B.clone()
        self._lr = torch.zeros((), device=labels_B.device)
        self._loss = torch.zeros((), device=labels_B.device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs_B: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        """Train on a batch and return its loss, which the next call overwrites."""
        self._inputs_B.copy_(inputs_B)
        self._labels_B.copy_(labels_B)
        self._lr.fill_(lr)
        if self._graph is None:
            self._run()
        else:
            with torch.cuda.device(self._lr.device):
                self._graph.replay()
        return self._loss

    def capture(self) -> None:
        """Record one step, which later calls replay: a single launch instead of hundreds.

        Raises:
            RuntimeError: if an operation cannot be captured, or memory ends.
        """
        # Streams and generators are those of the current device.
        with torch.cuda.device(self._lr.device):
            current = torch.cuda.current_stream()
            warm_up = torch.cuda.Stream()
            warm_up.wait_stream(current)
            with torch.cuda.stream(warm_up):
                for _ in range(WARM_UP_STEPS):
                    self._run()
            current.wait_stream(warm_up)

            graph = torch.cuda.CUDAGraph()
            # Other threads write files and may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run()
        self._graph = graph

    def _run(self) -> None:
        with _lr_from(self._optimizer, self._lr):
            self._loss = self._step(self._inputs_B, self._labels_B)


@contextmanager
def _lr_from(optimizer: torch.optim.Optimizer, lr: Tensor) -> Iterator[None]:
    """Let an optimizer read its learning rate from memory within a `with` block, as a replayed graph must."""
    before = [(group["lr"], group.get("capturable")) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "capturable" in group:
            group["capturable"] = lr.is_cuda
    try:
        yield
    finally:
        for group, (lr_before, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr_before
            if capturable is not None:
                group["capturable"] = capturable
