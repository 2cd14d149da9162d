"""Trials that are run again or forgotten, and the rewriting of the record that this takes: whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome

LR = {"type": "float", "low": 0.001, "high": 0.1, "log": True}


def _failing(number: int, cause: FailureCause = FailureCause.ERROR) -> Callable[[Trial], Failure | None]:
    """One search trial fails at each attempt."""

    def fail(trial: Trial) -> Failure | None:
        found = trial.phase == "search" and trial.number == number
        return Failure(cause=cause, error=f"{cause.name.title()}Error: broken", seconds=5.0) if found else None

    return fail


def _is_failed(trial: Trial) -> bool:
    return trial.state is TrialState.FAILED


def test_a_trial_that_is_tried_again_goes_on_from_its_last_epoch_with_all_its_retries(
    raw_study: dict[str, Any], record_url: str
) -> None:
    sweep = new_sweep(parse_spec(raw_study, "a test"), record_url)
    trial = sweep.next_trial()
    assert trial is not None
    told = list(enumerate(curve(trial.config), start=1))
    for event in told[:4]:
        sweep.on_epoch(trial.trial_id, *event)
    for _ in range(3):
        sweep.on_failure(trial.trial_id, Failure(cause=FailureCause.ERROR, error="OSError: gone", seconds=2.0))
        sweep.next_trial()
    study = sweep.studies[0]
    study.search_table.save_synced_run(0, "its-run", TrialState.FAILED)
    before = study.search_table.trials[0]
    assert (before.state, before.failures, len(before.epochs)) == (TrialState.FAILED, 3, 4)
    sweep.close()
    (study,) = load_studies(sweep.spec, StudyDatabase(record_url))
    assert study.reset_trials(_is_failed) == [(before, "its-run")]
    (study,) = load_studies(sweep.spec, StudyDatabase(record_url))
    after = study.search_table.trials[0]
    assert (after.state, after.failures, after.losses, after.error, after.cause) == (
        TrialState.WAITING,
        0,
        0,
        None,
        None,
    )
    assert (after.epochs, after.attempt, after.lost_seconds) == (before.epochs, before.attempt, before.lost_seconds)
    assert study.search_table.synced_run(0) == ("its-run", None), "its run goes on, and its new end is told"
    drive(new_sweep(sweep.spec, record_url))
    assert new_sweep(sweep.spec, record_url).studies[0].search_table.trials[0].state is TrialState.COMPLETE


def test_a_forgotten_trial_is_as_if_it_had_never_been_run(raw_study: dict[str, Any], record_url: str) -> None:
    spec = parse_spec(raw_study, "a test")
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=2)
    before = outcome(sweep)
    (study,) = load_studies(spec, StudyDatabase(record_url))
    study.search_table.save_synced_run(2, "a-run", TrialState.COMPLETE)
    study.search_table.save_synced_run(3, "another", TrialState.COMPLETE)
    found = study.reset_trials(lambda trial: trial.phase == "final" or trial.number in (0, 2), discard_progress=True)
    assert [(trial.phase, trial.number, run) for trial, run in found] == [
        ("search", 0, None), ("search", 2, "a-run"), ("final", 0, None), ("final", 1, None)
    ]  # fmt: skip
    (study,) = load_studies(spec, StudyDatabase(record_url))
    for trial in (study.search_table.trials[2], *study.final_table.trials):
        empty = (TrialState.WAITING, (), 0, 0.0, None)
        assert (trial.state, trial.epochs, trial.attempt, trial.lost_seconds, trial.score) == empty
        assert not [name for name in trial.sampler_attrs if name.startswith("completed_rung")], (
            "nor has it passed a rung"
        )
    assert study.search_table.synced_run(2) == (None, None)
    assert study.search_table.synced_run(3) == ("another", "complete"), "others are as they were"
    again = new_sweep(spec, record_url)
    drive(again)
    assert outcome(again) == before


@pytest.mark.parametrize("forget", [False, True])
def test_duplicates_wait_with_the_trial_they_repeat_and_get_its_outcome(
    raw_study: dict[str, Any], record_url: str, forget: bool
) -> None:
    raw_study["space"] = {"prompt_length": {"type": "choice", "values": [1, 5]}}
    raw_study["fixed"] |= {"prompt_init": "random"}
    spec = parse_spec(raw_study, "two configs")
    sweep = new_sweep(spec, record_url)
    drive(sweep, fail=_failing(0))
    repeats = [t.number for t in sweep.studies[0].search_table.trials if t.duplicate_of == 0]
    assert repeats, "a choice of two is drawn twice in eight trials"
    (study,) = load_studies(spec, StudyDatabase(record_url))
    # Whichever of them is named, the one that was trained is run again.
    found = study.reset_trials(lambda trial: trial.number == repeats[-1], discard_progress=forget)
    assert [trial.number for trial, _ in found] == [0]
    waiting = {t.number for t in study.search_table.trials if t.state is TrialState.WAITING}
    assert waiting == {0, *repeats}
    again = new_sweep(spec, record_url)
    drive(again)
    trials = again.studies[0].search_table.trials
    assert trials[0].state is TrialState.COMPLETE
    for n in repeats:
        assert (trials[n].state, trials[n].epochs) == (trials[0].state, trials[0].epochs)
        assert (trials[n].score, trials[n].lost_seconds) == (trials[0].score, 0.0), "no time is counted twice"


class Killed(Exception):
    """The process ends here."""


class Dying:
    """A storage whose process is killed before its n-th call."""

    def __init__(self, storage: Any, calls: int) -> None:
        self._storage = storage
        self.left = calls

    def __getattr__(self, name: str) -> Any:
        kept = getattr(self._storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return kept(*arguments, **named)

        return call if callable(kept) else kept


def _content(study: Study) -> tuple[object, ...]:
    record = study.search_table
    return list(record.trials), [record.synced_run(trial.number) for trial in record.trials], record.settings


@pytest.mark.parametrize("change", ["retry", "forget", "wider"])
def test_a_rewrite_that_is_interrupted_anywhere_leaves_the_old_or_the_new(
    raw_study: dict[str, Any], tmp_path: Path, change: str
) -> None:
    raw_study |= {"methods": ["linear"], "space": {"lr": LR}, "final": {"seeds": [42]}}
    raw_study["search"] |= {"trials": 2, "sampler": "random"}
    spec = parse_spec(raw_study, "a test")
    home = tmp_path / "home"
    home.mkdir()
    record = StudyDatabase(f"sqlite:///{home / 'studies.db'}")
    sweep = Sweep.resume(spec, record, MemoryTracker())
    drive(sweep, fail=_failing(1, FailureCause.INVALID if change == "retry" else FailureCause.ERROR))
    sweep.studies[0].search_table.save_synced_run(1, "its-run", TrialState.FAILED)
    if change == "wider":
        raw_study["space"]["lr"] = {**LR, "high": 1.0}
        spec = parse_spec(raw_study, "a test")

    def changed(study: Study) -> None:
        study.save_settings() if change == "wider" else study.reset_trials(
            _is_failed, discard_progress=change == "forget"
        )

    def opened(place: Path) -> Study:
        (study,) = load_studies(spec, StudyDatabase(f"sqlite:///{place / 'studies.db'}"))
        return study

    old = _content(opened(home))
    ends = []
    for calls in range(1000):
        place = tmp_path / str(calls)
        shutil.copytree(home, place)
        study = opened(place)
        dying: Any = Dying(study.search_table._storage, calls)
        study.search_table._storage = dying
        try:
            changed(study)
        except Killed:
            ends.append(_content(opened(place)))
            if calls % 8 == 0:  # said again, it is done
                changed(opened(place))
                ends_well = opened(place)
        else:
            break
    new = _content(opened(place))
    assert new != old
    assert len(ends) > 6, "it was killed at many points"
    turn = ends.index(new) if new in ends else len(ends)
    assert ends[:turn] == [old] * turn, "until then nothing has changed"
    assert all(end[0] == new[0] for end in ends[turn:]), "and from then on all of it has"
    assert _content(ends_well) == new
    finished = new_sweep(spec, f"sqlite:///{place / 'studies.db'}")
    drive(finished)
    assert finished.is_done


def test_what_an_interrupted_rewrite_left_is_removed_with_the_study(raw_study: dict[str, Any], record_url: str) -> None:
    spec = parse_spec(raw_study, "a test")
    drive(new_sweep(spec, record_url), events=30)
    (study,) = load_studies(spec, StudyDatabase(record_url))
    storage: Any = study.search_table._storage
    study.search_table._storage = dying = Dying(storage, 10**6)  # type: ignore[assignment]
    dying.delete_study = _killed  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        study.reset_trials(lambda _: True, discard_progress=True)
    (study,) = load_studies(spec, StudyDatabase(record_url))
    study.search_table.delete()
    (study,) = load_studies(spec, StudyDatabase(record_url))
    assert study.search_table.trials == [], "and its older half does not come back"


def _killed(*_: object) -> None:
    raise Killed
