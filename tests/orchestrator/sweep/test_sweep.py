"""The laws of the state machine, on synthetic curves: no trial lost, none twice, the order of events irrelevant."""

from __future__ import annotations

import copy
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConflictError
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import RAW_SPEC, drive, new_sweep, outcome

Undisturbed = tuple[Path, list[tuple[object, ...]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The database of a sweep that one worker ran without interruption, and its outcome; copy the database."""
    file = tmp_path_factory.mktemp("undisturbed") / "studies.db"
    sweep = new_sweep(parse_spec(copy.deepcopy(RAW_SPEC), "a test"), f"sqlite:///{file}")
    drive(sweep)
    return file, outcome(sweep)


@pytest.fixture
def finished_url(undisturbed: Undisturbed, tmp_path: Path) -> str:
    """A database of its own, with the finished sweep."""
    file = tmp_path / "finished.db"
    with closing(sqlite3.connect(undisturbed[0])) as source, closing(sqlite3.connect(file)) as target:
        source.backup(target)
    return f"sqlite:///{file}"


def test_every_planned_trial_runs_exactly_once(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=4)
    assert sweep.is_done
    for study in sweep.studies:
        assert [trial.number for trial in study.search_table.trials] == [*range(8)]
        assert [trial.params["seed"] for trial in study.final_table.trials] == [42, 44]
        trained = [trial.trial_id for trial in study.search_table.trials if trial.duplicate_of is None]
        assert len(set(trained)) == len(trained), "no config is trained twice"
        states = Counter(trial.state for trial in study.search_table.trials)
        assert states[TrialState.PRUNED] > 0, "the pruner stops some"
        assert states[TrialState.COMPLETE] > 0, "and not all"


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_speed_and_order_of_workers_change_nothing(
    spec: SweepSpec, record_url: str, undisturbed: Undisturbed, workers: int, seed: int
) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=workers, seed=seed)
    assert outcome(sweep) == undisturbed[1]


@pytest.mark.parametrize("events", [pytest.param(1, marks=pytest.mark.slow), 4, 30])
def test_a_sweep_whose_driver_dies_again_and_again_ends_like_one_that_never_did(
    spec: SweepSpec, record_url: str, undisturbed: Undisturbed, events: int
) -> None:
    for life in range(400):
        sweep = new_sweep(spec, record_url)
        if drive(sweep, workers=3, seed=life, events=events) < events:
            break
        # An epoch more each life: a driver that dies within one event of its start never gets anywhere.
        events += 1
    assert outcome(sweep) == undisturbed[1]


def test_a_finished_sweep_has_nothing_to_run(spec: SweepSpec, finished_url: str) -> None:
    again = new_sweep(spec, finished_url)
    assert again.is_done
    assert again.next_trial() is None


@pytest.mark.parametrize(
    ("edit", "new_search", "new_final"),
    [
        ({"search": {"trials": 10}}, 4 * 2, None),
        ({"final": {"seeds": [42, 44, 82]}}, 0, 4),
        ({"tasks": ["demo/digits", "demo/shapes_loc", "demo/shapes_ori"]}, 2 * 8, 2 * 2),
        ({"methods": ["spt_deep", "linear", "vpt_deep"]}, 2 * 8, 2 * 2),
        ({"train_sizes": [0.5, 1.0]}, 4 * 8, 4 * 2),
        ({"retries": 7}, 0, 0),
    ],
)
def test_an_edited_spec_runs_only_what_is_new(
    raw_spec: dict[str, Any],
    undisturbed: Undisturbed,
    finished_url: str,
    edit: dict[str, Any],
    new_search: int,
    new_final: int | None,
) -> None:
    known = set(map(repr, undisturbed[1]))
    for key, value in edit.items():
        raw_spec[key] = {**raw_spec[key], **value} if isinstance(value, dict) else value
    after = new_sweep(parse_spec(raw_spec, "after"), finished_url)
    drive(after)
    fresh = [entry for entry in outcome(after) if repr(entry) not in known]
    assert known <= set(map(repr, outcome(after))), "what was finished is as it was"
    assert sum(entry[1] == "search" for entry in fresh) == new_search
    if new_final is not None:
        assert sum(entry[1] == "final" for entry in fresh) == new_final


@pytest.mark.parametrize(
    ("part", "key", "value", "difference"),
    [
        ("fixed", "epochs", 5, "fixed.epochs was 9, is 5"),
        ("search", "seed", 3, "search.seed was 0, is 3"),
        ("space", "lr", {"type": "float", "low": 0.002, "high": 0.1, "log": True}, "space.lr was"),
    ],
)
def test_an_edit_that_contradicts_trials_is_refused_with_the_difference(
    raw_spec: dict[str, Any], finished_url: str, part: str, key: str, value: object, difference: str
) -> None:
    raw_spec[part][key] = value
    with pytest.raises(ConflictError) as refused:
        new_sweep(parse_spec(raw_spec, "after"), finished_url)
    assert difference in str(refused.value)
    assert "give the spec another name" in str(refused.value)
    raw_spec[part].pop(key)


def test_a_failure_that_may_pass_is_retried_and_one_that_cannot_is_not(spec: SweepSpec, record_url: str) -> None:
    tracker = MemoryTracker()
    attempts: Counter[str] = Counter()

    def fail(trial: Trial) -> Failure | None:
        attempts[trial.trial_id] += 1
        if trial.phase == "search" and trial.number == 1:
            return Failure(error="OSError: a disk went away", cause=FailureCause.ERROR)
        if trial.phase == "search" and trial.number == 2:
            return Failure(error="TrainingDiverged: nan", cause=FailureCause.DIVERGED)
        return None

    sweep = new_sweep(spec, record_url, tracker)
    drive(sweep, workers=2, fail=fail)
    for study in sweep.studies:
        passing, diverged = study.search_table.trials[1:3]
        assert (passing.state, attempts[passing.trial_id]) == (TrialState.FAILED, 1 + spec.retries)
        assert (diverged.state, attempts[diverged.trial_id]) == (TrialState.FAILED, 1)
        assert diverged.error == "TrainingDiverged: nan"
        assert tracker.runs[diverged.trial_id].state is TrialState.FAILED
        assert study.best is not None and study.best.state is TrialState.COMPLETE, "a failed trial never wins"


def test_a_retry_that_succeeds_is_complete_with_its_attempt(spec: SweepSpec, record_url: str) -> None:
    failed: set[str] = set()

    def fail_once(trial: Trial) -> Failure | None:
        if trial.trial_id in failed:
            return None
        failed.add(trial.trial_id)
        return Failure(error="OSError: once", cause=FailureCause.ERROR)

    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=2, fail=fail_once)
    trained = [t for study in sweep.studies for t in study.search_table.trials if t.duplicate_of is None]
    assert {trial.attempt for trial in trained} == {2}
    assert all(trial.state is not TrialState.FAILED for trial in trained)


def test_a_study_where_every_trial_failed_is_done_without_final_trials(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, fail=lambda trial: Failure(error="TrainingDiverged: nan", cause=FailureCause.DIVERGED))
    assert sweep.is_done
    assert all(summary.best is None and not summary.final_trials for summary in sweep.summaries())


def test_a_config_that_was_tried_is_not_trained_twice(raw_spec: dict[str, Any], record_url: str) -> None:
    raw_spec["methods"] = ["spt_deep"]
    raw_spec["space"] = {"prompt_length": {"type": "choice", "values": [1, 5]}}
    raw_spec["fixed"] |= {"prompt_init": "random"}
    tracker = MemoryTracker()
    sweep = new_sweep(parse_spec(raw_spec, "two configs"), record_url, tracker)
    drive(sweep, workers=3)
    for study in sweep.studies:
        originals = [trial for trial in study.search_table.trials if trial.duplicate_of is None]
        assert len(originals) == 2, "there are two configs, so two are trained"
        for trial in study.search_table.trials:
            twin = study.search_table.trials[trial.number if trial.duplicate_of is None else trial.duplicate_of]
            assert (trial.state, trial.score, trial.epochs) == (twin.state, twin.score, twin.epochs)
    assert len(tracker.runs) == len(sweep.studies) * (2 + 2), "a duplicate is no second run"


def test_final_trials_repeat_the_best_params_on_trainval_and_nothing_else_sees_test(
    spec: SweepSpec, record_url: str
) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=2)
    for study in sweep.studies:
        assert study.best is not None
        complete = [trial.score for trial in study.search_table.trials if trial.score is not None]
        assert study.best.score == max(complete)
        assert {trial.config.eval_split for trial in study.search_table.trials} == {"val"}
        for final in study.final_table.trials:
            assert final.config.eval_split == "test"
            assert all(getattr(final.config, name) == value for name, value in study.best.params.items())


def test_an_epoch_that_is_reported_twice_is_stored_once(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    trial = sweep.next_trial()
    assert trial is not None
    for _ in range(2):
        assert sweep.on_epoch(trial.trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5})
    assert len(sweep.studies[0].search_table.trials[0].epochs) == 1
