"""Engines: the ways in which a training step is computed, and the choice between them.

`eager` runs operation by operation. `compiled` runs blocks with fused kernels. `graph` replays a step on a GPU as one
CUDA graph. `compiled graph` does both. They differ in speed, and in the last bits of a result. So the choice is made
once for a kind of trial, from a comparison with eager, and kept for trials like it.

Shapes: B batch.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer import phase
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import run_block
from trainer.model.compiled_blocks import run_compiled_block
from trainer.model.device_errors import is_device_lost
from trainer.model.gpu_kernels import device_kind
from trainer.training.checkpoint import get_random_state, set_random_state
from trainer.training.engine_choices import EAGER, EngineChoice, EngineChoices
from trainer.training.step import TrainingStep

log = logging.getLogger(__name__)

ENGINES = (EAGER, "compiled", "graph", "compiled graph")
"""All engines."""
MIN_STEPS = {"graph": 200, "compiled": 1000, "compiled graph": 1000}
"""Steps from which on an engine is tried. Measuring a graph takes some thirty steps. Compiling takes minutes once."""
COMPARED_STEPS = 4
"""Steps that are compared with eager, from the same state and with the same batch."""
TIMED_STEPS = 10
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
"""Largest relative difference from eager, of losses and of the gradient of each parameter (2-norm), by precision."""


class Engines:
    """Sets the engine of a step.

    Args:
        model: what the step trains; None if its head alone is trained, which has no blocks.
        take_batch: returns inputs and labels of a batch, the size of all.
        precision: a key of `TOLERANCE`.
    """

    def __init__(
        self,
        step: TrainingStep,
        model: AdaptedViT | None,
        take_batch: Callable[[], tuple[Tensor, Tensor]],
        precision: str,
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self._step = step
        self._model = model
        self._take_batch = take_batch
        self._precision = precision

    @functools.cached_property
    def _batch(self) -> tuple[Tensor, Tensor]:
        return self._take_batch()

    @property
    def on_gpu(self) -> bool:
        """Whether the step runs on a GPU."""
        return self.device.type == "cuda"

    def use(self, engine: str) -> None:
        """Run later steps with an engine. Weights and generators stay as they are.

        Raises:
            RuntimeError: if the engine cannot run here, in many classes. Eager runs then.
        """
        compiles, captures = "compiled" in engine, "graph" in engine
        self._use_eager()
        if engine == EAGER:
            return

        try:
            with self._unchanged():
                # Without a model there are no blocks to compile.
                if compiles and self._model is not None:
                    self._model.run_block = run_compiled_block
                if captures:
                    self._step.run_over_fixed_memory(*self._batch, capture=self.on_gpu)
        except BaseException:
            self._use_eager()
            raise

    def measure(self, num_steps: int, lr: float) -> EngineChoice:
        """Return the fastest engine that agrees with eager, of those that may pay within a run of `num_steps`."""
        phase.begin("comparing engines of the training step")
        candidates = [name for name, minimum in MIN_STEPS.items() if num_steps >= minimum]
        if self._model is None:
            candidates = [name for name in candidates if "compiled" not in name]

        expected = self._trajectory(lr)
        speeds = {EAGER: self._images_per_s(lr)}
        rejected = {}
        for engine in candidates:
            try:
                self.use(engine)
                reason = _difference(expected, self._trajectory(lr), TOLERANCE[self._precision])
                if reason is None:
                    speeds[engine] = self._images_per_s(lr)
            # Compilers raise errors of many classes, and a run can always go on without them.
            except Exception as error:
                if is_device_lost(error):
                    raise
                reason = _reason(error)
            finally:
                self._use_eager()
            if reason is not None:
                rejected[engine] = reason

        fastest = max(speeds, key=lambda engine: speeds[engine])
        return EngineChoice(engine=fastest, images_per_s=speeds, rejected=rejected)

    def _use_eager(self) -> None:
        self._step.run_once()
        if self._model is not None:
            self._model.run_block = run_block

    def _trajectory(self, lr: float) -> list[Tensor]:
        """Return the losses of a few steps from here, and the gradients of the first. Nothing is changed."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        with self._unchanged():
            for i in range(COMPARED_STEPS):
                losses.append(self._step(*self._batch, lr).clone())
                if i == 0:
                    gradients = [_gradient(parameter) for parameter in self._step.learnable.values()]
        return [*losses, *gradients]

    def _images_per_s(self, lr: float) -> float:
        labels_B = self._batch[1]
        with self._unchanged():
            self._step(*self._batch, lr).item()
            started = time.perf_counter()
            for _ in range(TIMED_STEPS):
                loss = self._step(*self._batch, lr)
            # Waits for the device.
            loss.item()
            return TIMED_STEPS * len(labels_B) / (time.perf_counter() - started)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Restore what steps change at the end: weights, averages, optimizer, generators."""
        self._step.fill_optimizer_state()
        tensors = self._step.changed_tensors()
        before = [tensor.clone() for tensor in tensors]
        random_state = get_random_state(self.device)
        try:
            yield
        finally:
            # In place: a graph holds these very tensors.
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            set_random_state(random_state, self.device)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a step sets all gradients"
    return parameter.grad.clone()


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str | None:
    """Return how far tensors are from the expected ones, if one is further than the tolerance; None otherwise."""
    errors = [
        float((one - other).norm() / one.norm().clamp(min=1e-12)) for one, other in zip(expected, found, strict=True)
    ]
    # Not the other way round: a comparison with NaN is false.
    if all(error <= tolerance for error in errors):
        return None
    return f"losses or gradients differ from eager's by up to {max(errors):.1g}, more than {tolerance:g}"


def choose_engine(
    engines: Engines,
    config: TrainConfig,
    choices: EngineChoices,
    *,
    asked: str | None,
    resumed: EngineChoice | None,
    num_steps: int,
    facts: dict[str, object],
) -> EngineChoice:
    """Set the engine of a run and return it, with the reasons against the others.

    Args:
        asked: what the caller of `train` wants; None for what suits the run.
        resumed: the engine of the checkpoint that the run continues, if there is one.
        num_steps: steps of the whole run.
        facts: what the fastest engine depends on beside the config and the device.

    Raises:
        ValueError: if there is no engine of the name that was asked for.
        RuntimeError: if the engine that was asked for cannot run here, in many classes.
        OSError: if a choice cannot be read or written.
    """
    if asked is not None:
        if asked not in ENGINES:
            raise ValueError(f"engine={asked!r} is none of {', '.join(ENGINES)}.")
        if asked != EAGER:
            choices.share_kernels()
        engines.use(asked)
        return EngineChoice(engine=asked)

    # A CPU has no launches to save, and compiles for as long as a small run takes.
    if not engines.on_gpu or num_steps < min(MIN_STEPS.values()):
        return EngineChoice(engine=EAGER)

    choices.share_kernels()
    facts = facts | {
        "method": config.method,
        "prompt_length": config.prompt_length,
        "batch_size": config.batch_size,
        "pixels": config.pixels,
        "precision": config.precision,
        "optimizer": config.optimizer,
        "drop_path": config.drop_path > 0,
        "average": config.ema_decay is not None,
        "compiles": num_steps >= MIN_STEPS["compiled"],
        "device": device_kind(engines.device),
        "torch": torch.__version__,
    }
    facts |= {name: getattr(config, name) for name in METHODS[config.method].fields}
    if resumed is None:
        choice = choices.get(facts, lambda: engines.measure(num_steps, config.lr))
    else:
        # A run stays with what it began with. Others of its kind may have chosen otherwise since.
        kept = choices.kept(facts)
        choice = kept if kept is not None and kept.engine == resumed.engine else resumed

    try:
        engines.use(choice.engine)
    except Exception as error:
        if is_device_lost(error):
            raise
        # It ran when it was chosen. Less memory may be free now.
        reason = _reason(error)
        log.warning("engine %s cannot run (%s): eager takes its place, with other last bits", choice.engine, reason)
        return EngineChoice(engine=EAGER, rejected=choice.rejected | {choice.engine: reason})
    return choice


def _reason(error: Exception) -> str:
    """Return an error in one line: compilers write pages."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
