"""A training step over fixed memory, as a CUDA graph replays it, is the step that the loop would compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.trainer.training.steps import StepRun
from trainer.catalog import METHODS
from trainer.config import TrainConfig

OPTIMIZERS = {"spt_deep": "adamw", "spt_shallow": "sgd", "vpt_deep": "sgd", "vpt_shallow": "adamw"}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_over_fixed_memory_trains_as_any_other(method: str, tiny: Callable[..., TrainConfig]) -> None:
    optimizer = OPTIMIZERS.get(method, "adamw")
    config = tiny(method, optimizer=optimizer, batch_size=4, drop_path=0.2, ema_decay=0.9, lr=0.01)
    plain, fixed = StepRun(config), StepRun(config)
    fixed.step.run_over_fixed_memory(*fixed.batch(9), capture=False)
    losses = plain.train(20), fixed.train(20)
    if optimizer == "sgd":
        assert_same(*losses)
        assert_same(plain.step.changed_tensors(), fixed.step.changed_tensors())
    else:
        # AdamW divides a learning rate of Python in float64, and one in memory in float32.
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)

    # The state that a checkpoint holds is the same, too: another process may go on without a graph.
    states = [run.step.optimizer.state_dict()["param_groups"] for run in (plain, fixed)]
    assert states[0] == states[1] and isinstance(states[0][0]["lr"], float)


def assert_same(expected: list[Tensor], found: list[Tensor]) -> None:
    assert len(expected) == len(found) and all(map(torch.equal, expected, found))


def test_state_that_is_filled_beforehand_is_that_of_the_first_step(tiny: Callable[..., TrainConfig]) -> None:
    for optimizer in ("adamw", "sgd"):
        config = tiny("spt_deep", optimizer=optimizer, lr=0.01)
        plain, filled = StepRun(config), StepRun(config)
        before = [tensor.clone() for tensor in filled.step.learnable.values()]
        filled.step.fill_optimizer_state()
        assert_same(before, [tensor.detach() for tensor in filled.step.learnable.values()])
        assert_same(plain.train(3), filled.train(3))

        # A state that exists stays.
        state = [tensor.clone() for tensor in filled.step.changed_tensors()]
        filled.step.fill_optimizer_state()
        assert_same(state, filled.step.changed_tensors())


def test_a_step_that_ran_over_fixed_memory_can_run_as_before(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("vpt_deep", optimizer="sgd", lr=0.01)
    plain, changed = StepRun(config), StepRun(config)
    changed.step.run_over_fixed_memory(*changed.batch(0), capture=False)
    changed.train(2)
    plain.train(2)
    changed.step.run_once()
    assert_same(plain.train(2), changed.train(2))
    assert torch.equal(plain.step.changed_tensors()[0], changed.step.changed_tensors()[0])
