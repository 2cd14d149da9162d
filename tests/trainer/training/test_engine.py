"""The engine of a run is the fastest that agrees with eager. It is chosen once. Trying it changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.training.steps import StepRun
from trainer.config import TrainConfig
from trainer.model.backbone import run_block
from trainer.training import engine
from trainer.training.engine import ENGINES, Engines, choose_engine
from trainer.training.engine_choices import EAGER, EngineChoice, EngineChoices

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def run(tiny: Tiny) -> StepRun:
    return StepRun(tiny("spt_deep", batch_size=4, optimizer="sgd", lr=0.01, ema_decay=0.9, drop_path=0.2))


@pytest.fixture(autouse=True)
def _nothing_compiles_and_little_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run_compiled_block", run_block)
    monkeypatch.setattr(engine, "TIMED_STEPS", 1)


def state_of(run: StepRun) -> list[Tensor]:
    return [*(tensor.clone() for tensor in run.step.changed_tensors()), torch.get_rng_state()]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("num_finished", [0, 3])
def test_measuring_engines_changes_neither_weights_nor_random_numbers(run: StepRun, num_finished: int) -> None:
    undisturbed = StepRun(run.config)
    for one in (run, undisturbed):
        one.train(num_finished)
    undisturbed.step.fill_optimizer_state()
    choice = run.engines.measure(5000, 0.01)
    assert set(choice.images_per_s) == set(ENGINES) and choice.rejected == {}
    assert choice.engine == max(choice.images_per_s, key=choice.images_per_s.__getitem__)
    assert_same(state_of(run), state_of(undisturbed))
    assert_same(run.train(3), undisturbed.train(3))


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_used_trains_on_from_the_same_weights(run: StepRun, name: str) -> None:
    undisturbed = StepRun(run.config)
    for one in (run, undisturbed):
        one.train(2)
    run.engines.use(name)
    assert_same(run.train(4), undisturbed.train(4))
    run.engines.use(EAGER)
    assert_same(run.train(2), undisturbed.train(2))


def test_only_engines_that_may_pay_within_the_run_are_measured(run: StepRun, tiny: Tiny) -> None:
    assert set(run.engines.measure(10, 0.01).images_per_s) == {EAGER}
    assert set(run.engines.measure(200, 0.01).images_per_s) == {EAGER, "graph"}
    head = Engines(run.step, None, lambda: run.batch(0), "fp32", "cpu")
    assert set(head.measure(5000, 0.01).images_per_s) == {EAGER, "graph"}, "the head has no blocks to compile"


def wrong_block(*arguments: Any, **options: Any) -> Tensor:
    return run_block(*arguments, **options) * 1.001


def slightly_other_block(*arguments: Any, **options: Any) -> Tensor:
    return run_block(*arguments, **options) * (1 + 1e-7)


def broken_block(*arguments: Any, **options: Any) -> Tensor:
    raise ImportError("no compiler was found\nmany more lines")


def nan_block(*arguments: Any, **options: Any) -> Tensor:
    return run_block(*arguments, **options) * float("nan")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (wrong_block, r"losses or gradients differ from eager's by up to \S+, more than 0.0001"),
        (nan_block, "losses or gradients differ from eager's by up to nan"),
        (broken_block, "ImportError: no compiler was found$"),
    ],
)
def test_an_engine_that_fails_or_computes_something_else_is_not_used_and_the_reason_is_kept(
    run: StepRun, monkeypatch: pytest.MonkeyPatch, block: Callable[..., Tensor], reason: str
) -> None:
    monkeypatch.setattr(engine, "run_compiled_block", block)
    choice = run.engines.measure(5000, 0.01)
    assert set(choice.images_per_s) == {EAGER, "graph"}
    assert set(choice.rejected) == {"compiled", "compiled graph"}
    for text in choice.rejected.values():
        assert re.match(reason, text)

    monkeypatch.setattr(engine, "run_compiled_block", slightly_other_block)
    assert not run.engines.measure(5000, 0.01).rejected


def test_a_lost_device_ends_the_run_instead_of_being_a_reason(run: StepRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "run_compiled_block", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.engines.measure(5000, 0.01)
    # What comes next is eager, from where the run was.
    assert_same(run.train(1), StepRun(run.config).train(1))


FASTEST = EngineChoice(engine="graph", images_per_s={EAGER: 1.0, "graph": 2.0}, rejected={"compiled": "no compiler"})


def test_a_choice_is_measured_once_for_a_kind_of_trial(tmp_path: Path) -> None:
    measured = []

    def measure() -> EngineChoice:
        measured.append(1)
        return FASTEST

    choices = EngineChoices(str(tmp_path / "engines"), str(tmp_path / "cache"))
    assert choices.get({"length": 4}, measure) == FASTEST
    # Another machine: the folder is shared, and the cache is its own.
    elsewhere = EngineChoices(str(tmp_path / "engines"), str(tmp_path / "other"))
    assert elsewhere.get({"length": 4}, measure) == FASTEST
    assert len(measured) == 1

    elsewhere.get({"length": 5}, measure)
    assert len(measured) == 2

    for file in (tmp_path / "engines").glob("*.json"):
        file.write_bytes(file.read_bytes()[:-9])
    assert choices.get({"length": 4}, measure) == FASTEST and len(measured) == 3
    EngineChoices(None, str(tmp_path / "cache")).get({"length": 4}, measure)
    assert len(measured) == 4, "without a folder nothing is kept"


class OnGpu(Engines):
    """Engines that believe to be on a GPU, and capture nothing."""

    on_gpu = True

    def use(self, engine: str) -> None:
        if engine == "compiled":
            raise RuntimeError("CUDA out of memory")
        super().use(engine)


def chosen(run: StepRun, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> EngineChoice:
    monkeypatch.setattr(engine, "device_kind", lambda device: "a GPU")
    monkeypatch.setattr(run.step, "run_over_fixed_memory", lambda *batch, capture: None)
    engines = OnGpu(run.step, run.model, lambda: run.batch(0), "fp32", "cpu")
    arguments: dict[str, Any] = {"asked": None, "resumed": None, "num_steps": 5000, "facts": {}} | options
    choices = EngineChoices(str(folder / "engines"), str(folder / "cache"))
    return choose_engine(engines, run.config, choices, **arguments)


def test_a_run_keeps_the_engine_that_it_began_with(
    run: StepRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engines, "measure", lambda *_: FASTEST)
    assert chosen(run, tmp_path, monkeypatch) == FASTEST
    for name in (EAGER, "graph", "compiled graph"):
        assert chosen(run, tmp_path, monkeypatch, resumed=EngineChoice(engine=name)).engine == name
        assert chosen(run, tmp_path, monkeypatch, asked=name, resumed=FASTEST).engine == name
    # Few steps, so nothing would pay.
    assert chosen(run, tmp_path, monkeypatch, num_steps=199).engine == EAGER


def test_an_engine_that_cannot_run_any_more_gives_way_to_eager(
    run: StepRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Engines, "measure", lambda *_: FASTEST)
    choice = chosen(run, tmp_path, monkeypatch, resumed=EngineChoice(engine="compiled"))
    assert choice == EngineChoice(engine=EAGER, rejected={"compiled": "RuntimeError: CUDA out of memory"})
    assert "eager takes its place, with other last bits" in caplog.text
    with pytest.raises(RuntimeError, match="out of memory"):
        chosen(run, tmp_path, monkeypatch, asked="compiled")
    with pytest.raises(ValueError, match="engine='fast' is none of eager, compiled, graph, compiled graph"):
        chosen(run, tmp_path, monkeypatch, asked="fast")


def test_a_cpu_is_eager_and_measures_nothing(run: StepRun, tmp_path: Path) -> None:
    choice = choose_engine(
        run.engines,
        run.config,
        EngineChoices(str(tmp_path), None),
        asked=None,
        resumed=FASTEST,
        num_steps=9999,
        facts={},
    )
    assert choice == EngineChoice(engine=EAGER) and not [*tmp_path.iterdir()]
