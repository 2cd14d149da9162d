"""A used-up budget ends a sweep in order: running trials finish, no more start, and a larger budget resumes it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Failure, FailureCause, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import outcome


def opened(spec: SweepSpec, url: str) -> tuple[Sweep, Clock]:
    clock = Clock()
    return Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), clock=clock), clock


def run(spec: SweepSpec, url: str, workers: int = 3) -> tuple[Sweep, Clock]:
    """A sweep that was driven as far as its budget goes, an epoch being ten seconds."""
    sweep, clock = opened(spec, url)
    ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=workers).run(sweep)
    sweep.close()
    return sweep, clock


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"max_trials": 4}, "budget: max_trials 4 are started"),
        ({"max_trials": 9}, "budget: max_trials 9 are started"),
        ({"max_hours": 0.01}, "budget: max_hours 0.01 are over"),
        ({"max_gpu_hours": 0.01}, "budget: max_gpu_hours 0.01 are used"),
        ({"max_trials": 100, "max_gpu_hours": 0.02, "max_hours": 5}, "budget: max_gpu_hours 0.02 are used"),
    ],
)
def test_at_the_limit_running_trials_finish_and_no_more_start(
    raw_study: dict[str, Any], record_url: str, tmp_path: Any, budget: dict[str, float], reason: str
) -> None:
    raw_study |= {"resources": {"gpus": 0.5}}
    spec = parse_spec(raw_study | {"budget": budget}, "a test")
    sweep, clock = run(spec, record_url)
    assert sweep.halt is not None
    assert (sweep.halt.reason, sweep.halt.interrupt_running) == (reason, False)
    assert StudyDatabase(record_url).halt_reason("small") == reason, "the reason is stored"
    trials = sweep.studies[0].trials
    assert all(trial.state.is_finished for trial in trials), "none is left half-way"
    assert len(trials) < 10
    if "max_trials" in budget and budget["max_trials"] < 100:
        assert len(trials) == budget["max_trials"]
    elif "max_hours" in budget and budget["max_hours"] < 1:
        starts = max(1, -(-budget["max_hours"] * 3600 // 90)) * 3  # rounds of nine epochs, three at a time
        assert len(trials) <= starts + 2
    used = sum(trial.seconds for trial in trials) * 0.5 / 3600
    assert sweep.gpu_hours == pytest.approx(used)
    # Launched again, it starts nothing; with a larger budget it ends as if there had been none.
    relaunched, clock = opened(spec, record_url)
    ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=3).run(relaunched)
    if "max_hours" not in budget:  # its hours are those of drivers that held a lease
        assert len(relaunched.studies[0].trials) == len(trials)
        assert relaunched.halt is not None
    richer, _ = run(parse_spec(raw_study, "a test"), record_url)
    plain, _ = run(parse_spec(raw_study, "a test"), f"sqlite:///{tmp_path / 'plain.db'}")
    assert outcome(richer) == outcome(plain)
    assert richer.halt is None


def test_a_budget_that_is_just_enough_is_no_halt(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"search": {"trials": 3}, "budget": {"max_trials": 5}}
    sweep, _ = run(parse_spec(raw_study, "a test"), record_url)
    assert sweep.is_done
    assert (sweep.num_started, sweep.halt) == (5, None)
    assert StudyDatabase(record_url).halt_reason("small") is None


def test_retried_trials_and_duplicates_count_once(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"budget": {"max_trials": 4}, "pause_after": 99}
    raw_study["space"] = {"prompt_length": {"type": "choice", "values": [1, 5]}}
    raw_study["fixed"] |= {"prompt_init": "random"}
    raw_study["search"] |= {"pruner": {"type": "none"}}
    sweep, _ = opened(parse_spec(raw_study, "a test"), record_url)
    for _ in range(100):
        trial = sweep.next_trial()
        if trial is None:
            break
        if trial.attempt == 1:
            sweep.on_failure(trial.trial_id, Failure(cause=FailureCause.ERROR, error="OSError: once"))
            continue
        metric = f"{trial.config.eval_split}/accuracy"
        for epoch in range(1, 10):
            sweep.on_epoch(trial.trial_id, epoch, {"train/loss": 1.0, metric: 0.5})
    assert sweep.is_done, "two configs and two final trials are four trials, however often they were tried"
    assert sweep.num_started == 4
    assert {trial.state for trial in sweep.studies[0].search_table.trials} == {TrialState.COMPLETE}


def test_hours_are_those_of_all_drivers(raw_study: dict[str, Any], record_url: str) -> None:
    spec = parse_spec(raw_study | {"budget": {"max_hours": 2}}, "a test")
    database = StudyDatabase(record_url)
    database.save_sweep("small", spec.model_dump(mode="json"))
    first = database.lease("small")
    first.acquire("small")
    assert first._trial_id is not None
    first._storage.set_trial_user_attr(first._trial_id, "seconds", 3600.0)
    clock = Clock()
    sweep = Sweep.resume(spec, database, MemoryTracker(), lease=first, clock=clock)
    assert sweep.hours == 1
    clock.now = 3599.0
    assert sweep.next_trial() is not None
    clock.now = 3600.0
    assert sweep.next_trial() is None
    assert sweep.halt is not None
    assert sweep.halt.reason == "budget: max_hours 2 are over"
    first.release()
