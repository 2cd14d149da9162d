"""Trials are chosen by what is known of them."""

from __future__ import annotations

import copy

import pytest

from orchestrator.cli.trial_filter import parse_trial_filter
from orchestrator.errors import UserError
from orchestrator.report.failure_groups import group_failures
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Failure, FailureCause, Trial
from tests.orchestrator.conftest import RAW_SPEC, drive, new_sweep

ERRORS = {
    1: Failure(cause=FailureCause.ERROR, error="OSError: no [space] left\n\nTraceback"),
    2: Failure(cause=FailureCause.LOST, error="WorkerLost: its node died"),
    3: Failure(cause=FailureCause.ERROR, error="it just stopped"),
    4: Failure(cause=FailureCause.ERROR, error="don't know: why"),
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """Of two methods; of the prompted one trials 1 to 4 failed."""
    raw = copy.deepcopy(RAW_SPEC) | {"tasks": ["demo/digits"], "retries": 0, "pause_after": 99}
    raw["search"]["pruner"] = {"type": "none"}
    raw["fixed"]["epochs"] = 2
    sweep = new_sweep(parse_spec(raw, "a test"), f"sqlite:///{tmp_path_factory.mktemp('home') / 'studies.db'}")

    def fail(trial: Trial) -> Failure | None:
        prompted = trial.phase == "search" and trial.config.method == "spt_deep"
        return ERRORS.get(trial.number) if prompted else None

    drive(sweep, fail=fail)
    return [trial for study in sweep.studies for trial in study.trials]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("method=spt_deep phase=search state=failed", [1, 2, 3, 4]),
        ("state=failed error=OSError*", [1]),
        ("error='OSError: no*left'", [1]),
        ("cause='worker lost'", [2]),
        ("cause=worker?lost", [2]),
        ("error=*", [*range(8), 0, 1, *range(8), 0, 1]),
        ("error=?*", [1, 2, 3, 4]),
        ("number=7", [7, 7]),
        ("study='demo/digits linear*' phase=final", [0, 1]),
        # As messages name it, and as the study database does.
        ("study='demo/digits linear * train_size 1.0' phase=final", [0, 1]),
        ("study='demo/digits linear vit_nano_patch4_32.mae 1' phase=final", [0, 1]),
        ("phase=final seed=44 task=demo/*", [1, 1]),
        ("prompt_length= phase=final", [0, 1]),  # the linear method has none
        ("state=Failed", []),
        ("", [*range(8), 0, 1, *range(8), 0, 1]),
    ],
)
def test_conditions_must_all_be_fulfilled(trials: list[Trial], where: str, numbers: list[int]) -> None:
    fits = parse_trial_filter(where, [])
    assert [trial.number for trial in trials if fits(trial)] == numbers


def test_a_trial_is_named_by_the_beginning_of_its_id(trials: list[Trial]) -> None:
    ids = [trials[0].trial_id, trials[5].trial_id[:6]]
    named = parse_trial_filter(None, ids)
    assert [trial for trial in trials if named(trial)] == [trials[0], trials[5]]
    both = parse_trial_filter(f"number={trials[5].number}", ids)
    assert [trial for trial in trials if both(trial)] == [trials[5]], "and of those, who fulfils the conditions"


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("tasc=vtab/dtd", "--where 'tasc=vtab/dtd': tasc: 'tasc' is not something a trial has; did you mean 'task'?"),
        ("state", "--where 'state': state: a condition is NAME=PATTERN"),
        ("error='open", "No closing quotation."),
        ("stat=failed err=x", "stat: 'stat' is not something a trial has; did you mean 'state'?; err: 'err' is not"),
    ],
)
def test_a_condition_that_is_none_is_refused(where: str, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_trial_filter(where, [])
    assert problem in str(refused.value)


def test_the_trials_of_a_group_of_failures_are_found_by_its_condition(trials: list[Trial]) -> None:
    for group in group_failures(trials):
        assert not set(group.condition) & set("'\"\\"), "a shell takes it in single quotes as it is"
        fits = parse_trial_filter(group.condition, [])
        assert [trial for trial in trials if fits(trial)] == group.trials
