"""Searches that are scored at some epochs only: pruners decide there, and everything that reads curves has gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator.errors import ConflictError
from orchestrator.figures.learning import learning_curves
from orchestrator.report.export import epochs_table
from orchestrator.report.study_page import render_study_page
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.study.trial import Trial, TrialState
from orchestrator.tracking.mlflow_projection import outcome_tags
from tests.orchestrator.conftest import drive, new_sweep, outcome

PRUNERS: list[dict[str, Any]] = [
    {"type": "asha", "min_epochs": 2, "reduction": 2},
    {"type": "hyperband", "min_epochs": 2, "reduction": 2},
    {"type": "median", "min_epochs": 4},
]


@pytest.fixture
def small(raw_study: dict[str, Any]) -> dict[str, Any]:
    """A spec of one study, whose trials are scored after epochs 2, 4, 6, 8 and 9."""
    raw_study["search"] |= {"trials": 10, "eval_every": 2, "pruner": PRUNERS[0]}
    return raw_study


def scored_epochs(trial: Trial) -> list[int]:
    return [epoch for epoch, metrics in enumerate(trial.epochs, start=1) if "val/accuracy" in metrics]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: str(pruner["type"]))
def test_pruners_decide_at_scored_epochs_and_alike_for_any_workers_and_interruptions(
    small: dict[str, Any], tmp_path: Path, pruner: dict[str, Any]
) -> None:
    small["search"]["pruner"] = pruner
    spec = parse_spec(small, "a test")
    plain = new_sweep(spec, f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    trials = plain.studies[0].search_table.trials

    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned and {len(trial.epochs) for trial in pruned} <= {2, 4, 6, 8}
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert complete and all(scored_epochs(trial) == [2, 4, 6, 8, 9] for trial in complete)
    assert all(trial.score == trial.epochs[-1]["val/accuracy"] for trial in complete)

    url = f"sqlite:///{tmp_path / 'killed.db'}"
    for life in range(100):
        killed = new_sweep(spec, url)
        if drive(killed, workers=3, seed=life, events=17) < 17:
            break
        # Every second driver stops its trials, and the others are killed.
        if life % 2:
            killed.close()
    assert life > 1 and outcome(killed) == outcome(plain)

    theirs = optuna.load_study(study_name=f"small: {plain.studies[0].plan.key} search", storage=url).trials
    for trial, stored in zip(trials, theirs, strict=True):
        assert [*stored.intermediate_values] == scored_epochs(trial)
        if trial.state is TrialState.PRUNED:
            assert stored.value == trial.epochs[-1]["val/accuracy"]


@pytest.mark.parametrize("pruner", PRUNERS[:2], ids=lambda pruner: str(pruner["type"]))
def test_successive_halving_prunes_the_same_trials_as_with_a_score_after_each_epoch(
    small: dict[str, Any], tmp_path: Path, pruner: dict[str, Any]
) -> None:
    found = []
    for eval_every in (1, 2):
        small["search"] |= {"eval_every": eval_every, "pruner": pruner}
        sweep = new_sweep(parse_spec(small, "a test"), f"sqlite:///{tmp_path / str(eval_every)}.db")
        drive(sweep, workers=2)
        (study,) = sweep.studies
        searched = [(t.params, t.state, len(t.epochs), t.score) for t in study.search_table.trials]
        # Final trials have the same ids, because they are not scored by this number.
        found.append((searched, [(t.trial_id, t.epochs) for t in study.final_table.trials]))
    assert found[0] == found[1]
    assert {state for _, state, *_ in found[0][0]} == {TrialState.PRUNED, TrialState.COMPLETE}


def test_only_search_trials_are_scored_less_often(small: dict[str, Any]) -> None:
    params = {"lr": 0.01, "prompt_length": 5, "prompt_init": "random"}
    plans = []
    for changes in ({"eval_every": 2}, {"eval_every": 1}, {}):
        spec = small | {"search": {"trials": 10} | changes}
        plans += plan_sweep(parse_spec(spec, "a test")).studies
    assert [plan.search_config(params, 0).eval_every for plan in plans] == [2, 1, 1]
    assert {plan.final_config(params, 42, measure_peeking=True).eval_every for plan in plans} == {1}

    # It is part of a trial's id, and its default leaves ids as they were.
    ids = [plan.search_config(params, 0).fingerprint() for plan in plans]
    assert ids[0] != ids[1] == ids[2]


def test_a_number_beyond_the_last_epoch_means_the_last_epoch_alone(small: dict[str, Any], record_url: str) -> None:
    small["search"] |= {"eval_every": 1000, "pruner": {"type": "none"}, "trials": 4}
    sweep = new_sweep(parse_spec(small, "a test"), record_url)
    drive(sweep)
    assert sweep.is_done
    for trial in sweep.studies[0].search_table.trials:
        assert scored_epochs(trial) == [9] and trial.score == trial.epochs[8]["val/accuracy"]


def test_another_number_contradicts_trials(small: dict[str, Any], record_url: str) -> None:
    drive(new_sweep(parse_spec(small, "before"), record_url), events=5)
    small["search"]["eval_every"] = 1
    with pytest.raises(ConflictError, match=r"search\.eval_every was 2, is not set"):
        new_sweep(parse_spec(small, "after"), record_url)


def test_curves_exports_pages_and_mlflow_have_gaps(small: dict[str, Any], record_url: str) -> None:
    sweep = new_sweep(parse_spec(small, "a test"), record_url)
    drive(sweep)
    (study,) = sweep.studies
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None]

    figure = learning_curves(study)
    assert figure is not None
    drawn = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].get_lines()]
    assert sorted(drawn) == sorted(scored_epochs(trial) for trial in trials)

    rows = epochs_table([study]).to_pylist()
    for trial in trials:
        own = [row for row in rows if row["trial_id"] == trial.trial_id]
        assert [row["epoch"] for row in own if row["metric"] == "val/accuracy"] == scored_epochs(trial)
        assert [row["epoch"] for row in own if row["metric"] == "train/loss"] == [*range(1, len(trial.epochs) + 1)]

    best = study.best
    assert best is not None and best.score == best.epochs[-1]["val/accuracy"]
    highest = max(best.epochs[epoch - 1]["val/accuracy"] for epoch in scored_epochs(best))
    assert float(outcome_tags(best)["best/val/accuracy"]) == pytest.approx(highest)
    assert "eval\\_every 2" in render_study_page(study), "in Markdown"
