"""A worker hands over short epochs together, without Ray."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drivers import report_batch
from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.messages import from_result, phase_of
from orchestrator.drivers.ray.worker import RunTrial, TrialWorker
from orchestrator.study.trial import Epoch, Failure, FailureCause
from trainer import phase
from trainer.config import TrainConfig

Worker = Callable[[RunTrial, int], TrialWorker]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """Makes a worker of this process with a trial of so many epochs."""
    handler = signal.getsignal(signal.SIGTERM)
    folder = str(tmp_path)
    context = TrialContext(data_root=folder, trials_folder=folder, prototype_cache=folder, weights=None, cpus=1, gpus=0)
    made: list[TrialWorker] = []

    def make(run_trial: RunTrial, num_epochs: int) -> TrialWorker:
        # Ray calls `setup` with these arguments in a process of its own.
        worker = TrialWorker.__new__(TrialWorker)
        worker.setup(message(num_epochs), context, run_trial)
        made.append(worker)
        return worker

    yield make
    for each in made:
        each.cleanup()
    signal.signal(signal.SIGTERM, handler)


def message(num_epochs: int) -> dict[str, Any]:
    """What the driver sends of a trial."""
    config = TrainConfig(task="demo/digits", method="linear", epochs=num_epochs, warmup_epochs=0)
    return {"config": dataclasses.asdict(config), "cpus": 1, "gpus": 0, "required_device": None}


def epoch(number: int, seconds: float = 0.0) -> Epoch:
    return Epoch(epoch=number, metrics={"epoch/seconds": seconds})


def numbers(result: dict[str, Any]) -> list[int | FailureCause]:
    return [event.epoch if isinstance(event, Epoch) else event.cause for event in from_result(result)]


def quick(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """A trial whose epochs take no time."""
    for number in range(1, config.epochs + 1):
        yield epoch(number)


def test_the_first_and_the_last_epoch_are_reported_at_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_batch, "REPORT_EVERY_S", 1e6)
    trial = worker(quick, 40)
    assert numbers(trial.step()) == [1]
    assert numbers(trial.step()) == [*range(2, 41)]
    # The worker stays, and its next trial begins in the same way.
    assert trial.reset_config(message(3))
    assert [numbers(trial.step()), numbers(trial.step())] == [[1], [2, 3]]
    assert trial.reset_config(message(1))
    assert numbers(trial.step()) == [1]


def test_a_trial_without_an_epoch_reports_what_it_does_and_later_only_epochs(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reported = threading.Event()

    def prepares(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
        phase.begin("loading the weights of a")
        phase.begin("decoding the images of b")
        assert is_reported.wait(30)
        is_reported.clear()
        phase.begin("training on b")
        assert is_reported.wait(30)
        for number in (1, 2, 3):
            # The first has come: what happens from here on is in the epochs.
            phase.begin(f"scoring {number}")
            yield epoch(number, seconds=3600.0)

    monkeypatch.setattr("orchestrator.drivers.ray.worker.PHASE_AFTER_S", 0.05)
    trial = worker(prepares, 3)
    for expected in ("decoding the images of b", "training on b"):
        report = trial.step()
        assert (phase_of(report), from_result(report)) == (expected, [])
        is_reported.set()
    reports = [trial.step() for _ in range(3)]
    assert [numbers(report) for report in reports] == [[1], [2], [3]]
    assert [phase_of(report) for report in reports] == ["", "", ""]


def test_a_quick_trial_reports_epochs_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepares(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
        phase.begin("loading the weights of a")
        yield epoch(1)

    monkeypatch.setattr("orchestrator.drivers.ray.worker.PHASE_AFTER_S", 30.0)
    trial = worker(prepares, 1)
    for _ in range(2):
        report = trial.step()
        assert (phase_of(report), numbers(report)) == ("", [1])
        assert trial.reset_config(message(1))


def test_a_worker_hears_sigterm_although_ray_was_started_with_it_blocked(worker: Worker) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker(quick, 3)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_failure_is_reported_at_once_with_the_epochs_before_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
        for number in (1, 2, 3):
            yield epoch(number)
        yield Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan")

    monkeypatch.setattr(report_batch, "REPORT_EVERY_S", 1e6)
    trial = worker(fails, 40)
    assert [numbers(trial.step()), numbers(trial.step())] == [[1], [2, 3, FailureCause.DIVERGED]]


def test_an_epoch_does_not_wait_for_a_next_one_that_is_late(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    is_reported = threading.Event()

    def stalls(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
        yield epoch(1)
        yield epoch(2)
        # As when storage is full. The others must not wait for it.
        assert is_reported.wait(30)
        yield epoch(3)

    monkeypatch.setattr(report_batch, "REPORT_EVERY_S", 0.05)
    trial = worker(stalls, 3)
    assert [numbers(trial.step()), numbers(trial.step())] == [[1], [2]]
    is_reported.set()
    assert numbers(trial.step()) == [3]


def test_long_epochs_are_reported_one_by_one(worker: Worker) -> None:
    def slow(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
        for number in range(1, 5):
            yield epoch(number, seconds=3600.0)

    trial = worker(slow, 4)
    assert [numbers(trial.step()) for _ in range(4)] == [[1], [2], [3], [4]]
