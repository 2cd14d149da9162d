"""The record is an ordinary Optuna storage that tells the truth; suggestions depend on the spec alone."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from tests.orchestrator.conftest import drive, new_sweep, outcome


def _diverge_first(trial: Trial) -> Failure | None:
    failing = trial.phase == "search" and trial.number == 0
    return Failure(error="TrainingDiverged: train/loss became nan", cause=FailureCause.DIVERGED) if failing else None


def test_optuna_shows_each_trial_in_its_true_state(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=2, fail=_diverge_first)
    for study in sweep.studies:
        shown = optuna.load_study(study_name=f"small: {study.plan.key} search", storage=record_url).trials
        for trial, theirs in zip(study.search_table.trials, shown, strict=True):
            assert theirs.state.name == {"FAILED": "FAIL"}.get(trial.state.name, trial.state.name)
            assert theirs.params == trial.params
            vals = {epoch: metrics["val/accuracy"] for epoch, metrics in enumerate(trial.epochs, start=1)}
            assert theirs.intermediate_values == vals
            assert theirs.user_attrs.get("error") == trial.error
        states = {trial.state for trial in shown}
        assert {OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL} <= states
        pruned = [trial for trial in shown if trial.state is OptunaState.PRUNED]
        assert all(trial.value == trial.intermediate_values[trial.last_step or 0] for trial in pruned)


def test_a_record_read_again_is_the_record_that_was_written(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3, fail=_diverge_first)
    again = new_sweep(spec, record_url)
    assert outcome(again) == outcome(sweep)
    assert [study.search_table.trials for study in again.studies] == [
        study.search_table.trials for study in sweep.studies
    ]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_another_seed_gives_other_trials(raw_spec: dict[str, Any], tmp_path: Any, sampler: str) -> None:
    drawn = []
    for seed in (0, 1):
        raw_spec["search"] |= {"seed": seed, "sampler": sampler}
        sweep = new_sweep(parse_spec(raw_spec, "a test"), f"sqlite:///{tmp_path / str(seed)}.db")
        drive(sweep)
        drawn.append([trial.params["lr"] for trial in sweep.studies[0].search_table.trials])
        assert len(set(drawn[-1])) == len(drawn[-1])
    assert not set(drawn[0]) & set(drawn[1])


def test_tpe_learns_from_the_trials_before(raw_spec: dict[str, Any], tmp_path: Any) -> None:
    suggestions = []
    for sampler in ("tpe", "random"):
        raw_spec["search"] |= {"sampler": sampler}
        sweep = new_sweep(parse_spec(raw_spec, "a test"), f"sqlite:///{tmp_path / sampler}.db")
        drive(sweep)
        suggestions.append([trial.params["lr"] for trial in sweep.studies[0].search_table.trials])
    startup = raw_spec["search"]["startup_trials"]
    assert suggestions[0][startup + 3 :] != suggestions[1][startup + 3 :]


@pytest.mark.parametrize(
    ("pruner", "stops"),
    [({"type": "none"}, False), ({"type": "median", "min_epochs": 2}, True), ({"type": "asha", "min_epochs": 3}, True)],
)
def test_a_pruner_stops_trials_and_none_before_min_epochs(
    raw_spec: dict[str, Any], record_url: str, pruner: dict[str, Any], stops: bool
) -> None:
    raw_spec["search"]["pruner"] = pruner
    sweep = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    drive(sweep)
    pruned = [t for study in sweep.studies for t in study.search_table.trials if t.state is TrialState.PRUNED]
    assert bool(pruned) is stops
    assert all(len(trial.epochs) >= pruner.get("min_epochs", 0) for trial in pruned)
    assert all(len(trial.epochs) < 9 for trial in pruned), "who reaches the last epoch is complete"
