"""Short epochs are reported together, and that changes no decision and no result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drivers.replay import Clock, Curve, Curves, ReplayDriver, SyntheticCurves
from orchestrator.drivers.report_batch import REPORT_EVERY_S, seconds_to_wait, split_report
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import outcome

LOST = Failure(cause=FailureCause.LOST, error="gone")


def reports(durations: Sequence[float], num_epochs: int) -> list[list[int]]:
    """The epochs of each report of a worker whose epochs take so many seconds."""
    batches: list[list[int]] = [[]]
    collected_s = 0.0
    for number, seconds in enumerate(durations, start=1):
        collected_s += seconds
        batches[-1].append(number)
        epoch = Epoch(epoch=number, metrics={"epoch/seconds": seconds})
        if seconds_to_wait(epoch, num_epochs, collected_s) <= 0:
            batches.append([])
            collected_s = 0.0
    return [batch for batch in batches if batch]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.15, 0.3, 0.6, 0.9])
def test_epochs_shorter_than_a_second_are_reported_about_every_two_seconds(seconds: float) -> None:
    first, *middle, last = reports([seconds] * 1000, 1000)
    assert first == [1], "the first is reported at once"
    assert last[-1] == 1000, "and so is the last"
    for batch in middle:
        taken = len(batch) * seconds
        assert len(batch) > 1
        assert REPORT_EVERY_S - seconds <= taken + 1e-9 and taken < REPORT_EVERY_S + 1e-9


@pytest.mark.parametrize("seconds", [1.0, 1.001, 1.5, 2.0, 60.0, 3e5])
def test_longer_epochs_are_reported_one_by_one(seconds: float) -> None:
    assert reports([seconds] * 9, 9) == [[number] for number in range(1, 10)]


def test_a_long_epoch_among_short_ones_is_reported_at_once() -> None:
    assert reports([0.9, 0.3, 0.3, 30.0, 0.3, 0.3, 0.3], 8) == [[1], [2, 3, 4], [5, 6, 7]]


def test_epochs_of_a_checkpoint_come_together_with_the_first_that_is_trained() -> None:
    # They carry no duration.
    events = [Epoch(epoch=number, metrics={}) for number in range(1, 8)]
    waits = [seconds_to_wait(event, 9, 0.01) for event in events]
    assert waits == [0.0, *[REPORT_EVERY_S - 0.01] * 6]


@pytest.mark.parametrize("collected_s", [0.0, 1.0, 1e9])
def test_a_failure_is_reported_at_once_with_the_epochs_before_it(collected_s: float) -> None:
    assert seconds_to_wait(LOST, 9, collected_s) == 0.0
    epochs = [Epoch(epoch=number, metrics={}) for number in (3, 4)]
    assert split_report([*epochs, LOST]) == (epochs, LOST)
    assert split_report([*epochs]) == (epochs, None)
    assert split_report([LOST]) == ([], LOST)


def without_clocks(sweep: Sweep) -> list[Any]:
    """The outcome of a sweep without the seconds of its epochs."""
    rows: list[Any] = outcome(sweep)
    return [
        (
            *before,
            [{name: value for name, value in epoch.items() if name != "epoch/seconds"} for epoch in epochs],
            score,
        )
        for *before, epochs, score in rows
    ]


def replayed(spec: SweepSpec, url: str, curves: Curves, workers: int, life_s: float = 1e9) -> Sweep:
    """A sweep after its end. Its first driver dies after so many seconds, and each other one later."""
    clock = Clock()
    for life in range(1, 200):
        sweep = Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), clock=clock)
        ReplayDriver(curves, clock, workers=workers, until=clock.now + life * life_s).run(sweep)
        if sweep.is_done:
            return sweep
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("pruner", "workers", "life_s"),
    [
        ({"type": "asha", "min_epochs": 2, "reduction": 2}, 3, 3.0),
        ({"type": "hyperband", "min_epochs": 1}, 3, 1e9),
        ({"type": "median", "min_epochs": 1}, 2, 1e9),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else str(value),
)
def test_a_sweep_of_short_epochs_prunes_and_finds_what_one_of_long_epochs_does(
    raw_study: dict[str, Any],
    tmp_path: Path,
    pruner: dict[str, Any],
    workers: int,
    life_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw_study["search"] |= {"trials": 6, "pruner": pruner}
    raw_study["fixed"]["epochs"] = 15
    raw_study["final"] = {"seeds": [42]}
    spec = parse_spec(raw_study, "a test")
    slow, quick = (SyntheticCurves(plan_sweep(spec).studies, seconds_per_epoch=seconds) for seconds in (10.0, 0.15))
    alone = replayed(spec, f"sqlite:///{tmp_path / 'alone.db'}", slow, workers)
    assert TrialState.PRUNED in {trial.state for trial in alone.studies[0].trials}

    sizes: list[int] = []
    on_epochs = Sweep.on_epochs

    def counted(sweep: Sweep, trial_id: str, epochs: Sequence[Epoch]) -> bool:
        sizes.append(len(epochs))
        return on_epochs(sweep, trial_id, epochs)

    monkeypatch.setattr(Sweep, "on_epochs", counted)
    together = replayed(spec, f"sqlite:///{tmp_path / 'together.db'}", quick, workers, life_s)
    assert max(sizes) > 10, "short epochs come together"
    assert without_clocks(together) == without_clocks(alone)


def test_a_failure_after_the_pruner_stopped_the_trial_in_the_same_report_does_not_count(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw_study["search"] |= {"trials": 5, "pruner": {"type": "asha", "min_epochs": 2, "reduction": 2}}
    raw_study["final"] = {"seeds": [42]}
    spec = parse_spec(raw_study, "a test")
    curves = SyntheticCurves(plan_sweep(spec).studies, seconds_per_epoch=0.1)
    good = replayed(spec, f"sqlite:///{tmp_path / 'good.db'}", curves, workers=2)
    pruned = next(trial for trial in good.studies[0].search_table.trials if trial.state is TrialState.PRUNED)

    def diverging(trial: Trial) -> Curve:
        curve = curves(trial)
        return diverges_after(len(pruned.epochs), curve) if trial.trial_id == pruned.trial_id else curve

    bad = replayed(spec, f"sqlite:///{tmp_path / 'bad.db'}", diverging, workers=2)
    assert outcome(bad) == outcome(good)


def diverges_after(num_epochs: int, curve: Curve) -> Iterator[tuple[Epoch | Failure, float]]:
    """The first epochs of a curve, and a failure."""
    for _ in range(num_epochs):
        yield next(curve)
    yield Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan"), 0.1
