"""A study may begin with what was best for other tasks: the nearest first, and the same whatever the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.loader import parse_spec
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome

# natural, structured, natural, structured, natural
TASKS = ["vtab/cifar100", "vtab/dsprites_loc", "vtab/dtd", "vtab/clevr_count", "vtab/svhn"]


@pytest.fixture
def raw(raw_spec: dict[str, Any]) -> dict[str, Any]:
    raw_spec["search"] |= {"trials": 4, "startup_trials": 2, "transfer": 2}
    raw_spec["space"] = {"lr": raw_spec["space"]["lr"]}
    raw_spec["fixed"] |= {"epochs": 3}
    return raw_spec | {"tasks": TASKS, "methods": ["linear"], "final": {"seeds": [42]}}


def best(study: Study) -> dict[str, Any]:
    assert study.best is not None
    return study.best.params


def test_a_study_begins_with_the_best_of_the_first_half_of_those_before_it(
    raw: dict[str, Any], record_url: str
) -> None:
    sweep = new_sweep(parse_spec(raw, "a test"), record_url)
    drive(sweep, workers=3)
    cifar, dsprites, dtd, clevr, svhn = sweep.studies
    for study, sources in [
        (cifar, []),
        (dsprites, [cifar]),
        (dtd, [cifar]),
        (clevr, [dsprites, cifar]),  # of its own group first
        (svhn, [cifar, dsprites]),
    ]:
        begun = [trial.params for trial in study.search_table.trials[: len(sources)]]
        assert begun == [best(source) for source in sources], f"{study.plan.task} begins so"
        drawn = [trial.params for trial in study.search_table.trials[len(sources) :]]
        assert all(best(source) not in drawn for source in sources), "and goes on by itself"


@pytest.mark.parametrize(("transfer", "begun"), [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_no_more_are_taken_over_than_asked_for(raw: dict[str, Any], record_url: str, transfer: int, begun: int) -> None:
    raw["search"]["transfer"] = transfer
    sweep = new_sweep(parse_spec(raw, "a test"), record_url)
    drive(sweep)
    bests = [best(study) for study in sweep.studies]
    assert sum(trial.params in bests[:2] for trial in sweep.studies[4].search_table.trials) == begun


def test_only_the_same_method_and_size_is_learnt_from(raw: dict[str, Any], record_url: str) -> None:
    raw |= {"tasks": TASKS[:2], "methods": ["linear", "full"], "train_sizes": [0.5, 1.0]}
    sweep = new_sweep(parse_spec(raw, "a test"), record_url)
    drive(sweep, workers=4)
    for study in sweep.studies:
        same = (study.plan.method, study.plan.train_size)
        for other in sweep.studies:
            if other.plan.task == TASKS[0] and study.plan.task == TASKS[1]:
                taken = study.search_table.trials[0].params == best(other)
                assert taken is ((other.plan.method, other.plan.train_size) == same)


def test_the_order_of_events_and_the_death_of_drivers_change_nothing(raw: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(raw, "a test")
    plain = new_sweep(spec, f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    for workers in (2, 7):
        sweep = new_sweep(spec, f"sqlite:///{tmp_path / str(workers)}.db")
        drive(sweep, workers=workers, seed=workers)
        assert outcome(sweep) == outcome(plain)
    url = f"sqlite:///{tmp_path / 'killed.db'}"
    for life in range(50):
        killed = new_sweep(spec, url)
        if drive(killed, workers=3, seed=life, events=20) < 20:
            break
        killed.close()
    assert outcome(killed) == outcome(plain)


def _finish(sweep: Sweep, study: Study, handed: list[Trial]) -> None:
    """Bring a study's search to its end, handing out whatever else there is."""
    while not study.is_search_done:
        while (trial := sweep.next_trial()) is not None:
            handed.append(trial)
        for one in [t for t in handed if t.study == study.plan.key and sweep.is_running(t.trial_id)]:
            for event in enumerate(curve(one.config), start=1):
                if not sweep.on_epoch(one.trial_id, *event):
                    break
    while (trial := sweep.next_trial()) is not None:
        handed.append(trial)


def test_a_study_waits_for_those_it_learns_from_and_for_no_other(raw: dict[str, Any], record_url: str) -> None:
    sweep = new_sweep(parse_spec(raw, "a test"), record_url)
    cifar, dsprites, dtd, clevr, svhn = sweep.studies
    handed: list[Trial] = []

    def begun() -> list[Study]:
        return [study for study in sweep.studies if study.search_table.trials]

    while (trial := sweep.next_trial()) is not None:
        handed.append(trial)
    assert begun() == [cifar], "which learns from none"
    _finish(sweep, cifar, handed)
    assert begun() == [cifar, dsprites, dtd], "they learn from the first only"
    _finish(sweep, dsprites, handed)
    assert begun() == [cifar, dsprites, dtd, clevr, svhn], "though the third has not finished a trial"
    assert not any(trial.state.is_finished for trial in dtd.search_table.trials)


def test_of_a_stopped_or_failed_study_nothing_is_learnt_and_nobody_waits_for_it(
    raw: dict[str, Any], record_url: str
) -> None:
    raw |= {"pause_after": 99}

    def fail(trial: Trial) -> Failure | None:
        if trial.config.task == TASKS[0]:
            return Failure(cause=FailureCause.INVALID, error="ValueError: no such image")
        if trial.config.task == TASKS[1]:
            return Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan")
        return None

    sweep = new_sweep(parse_spec(raw, "a test"), record_url)
    drive(sweep, workers=2, fail=fail)
    assert sweep.is_done
    assert [len(study.search_table.trials) for study in sweep.studies[1:]] == [4, 4, 4, 4]
    assert all(study.search_table.transferred_params == [] for study in sweep.studies[1:])


def test_what_a_study_began_with_stays_when_an_edit_puts_other_tasks_before_it(
    raw: dict[str, Any], record_url: str
) -> None:
    raw["tasks"] = TASKS[:2]
    before = new_sweep(parse_spec(raw, "before"), record_url)
    drive(before)
    known = outcome(before)
    raw["tasks"] = [*TASKS[2:], *TASKS[:2]]
    after = new_sweep(parse_spec(raw, "after"), record_url)
    drive(after)
    assert [entry for entry in outcome(after) if str(entry[0]).split()[0] in TASKS[:2]] == known
