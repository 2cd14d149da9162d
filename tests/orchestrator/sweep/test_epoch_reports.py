"""Several epochs in one report are judged one by one, and written together."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage

from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Epoch, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome


def epochs_of(trial: Trial) -> list[Epoch]:
    return [Epoch(epoch=number, metrics=metrics) for number, metrics in enumerate(curve(trial.config), start=1)]


def drive_in_batches(sweep: Sweep, workers: int, seed: int) -> None:
    """Run a sweep on synthetic curves with reports of one to nine epochs."""
    order = random.Random(seed)
    left: dict[str, list[Epoch]] = {}
    while True:
        while len(left) < workers and (trial := sweep.next_trial()) is not None:
            left[trial.trial_id] = epochs_of(trial)
        if not left:
            return
        trial_id = order.choice(sorted(left))
        size = order.randint(1, 9)
        report, left[trial_id] = left[trial_id][:size], left[trial_id][size:]
        if not sweep.on_epochs(trial_id, report):
            del left[trial_id]


def stored(url: str) -> list[tuple[object, ...]]:
    """What Optuna's tables hold of each trial's epochs."""
    storage = RDBStorage(url)
    return [
        (study.study_name, trial.number, trial.state, trial.values, trial.intermediate_values)
        for study in sorted(storage.get_all_studies(), key=lambda study: study.study_name)
        for trial in storage.get_all_trials(study._study_id)
    ]


def test_reports_of_any_size_leave_the_same_sweep(raw_study: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(raw_study, "a test")
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("alone", "together")]
    alone, together = (new_sweep(spec, url) for url in urls)
    drive(alone)
    drive_in_batches(together, workers=3, seed=1)
    assert together.is_done
    assert outcome(together) == outcome(alone)
    assert outcome(new_sweep(spec, urls[1])) == outcome(alone), "and so says the study database"
    assert stored(urls[1]) == stored(urls[0]), "which every Optuna tool can read"


def first_trial(raw_study: dict[str, Any], url: str) -> tuple[Sweep, Trial]:
    raw_study["search"]["pruner"] = {"type": "none"}
    sweep = new_sweep(parse_spec(raw_study, "a test"), url)
    trial = sweep.next_trial()
    assert trial is not None
    return sweep, trial


def test_an_interrupted_trial_keeps_all_epochs_of_its_last_report(raw_study: dict[str, Any], record_url: str) -> None:
    sweep, trial = first_trial(raw_study, record_url)
    sweep.stop("enough")
    assert not sweep.on_epochs(trial.trial_id, epochs_of(trial)[:6])
    kept = new_sweep(sweep.spec, record_url).studies[0].search_table.trials[0]
    assert (kept.state, len(kept.epochs)) == (TrialState.WAITING, 6)


def test_a_report_may_begin_with_epochs_that_are_stored(raw_study: dict[str, Any], record_url: str) -> None:
    # As that of a trial whose worker was killed: its checkpoint yields all epochs again.
    sweep, trial = first_trial(raw_study, record_url)
    epochs = epochs_of(trial)
    assert sweep.on_epochs(trial.trial_id, epochs[:3])
    sweep.stop("enough")
    assert sweep.on_epochs(trial.trial_id, epochs[:2]), "a trial is interrupted at a new epoch"
    assert not sweep.on_epochs(trial.trial_id, epochs[:5])
    kept = sweep.studies[0].search_table.trials[0]
    assert [*kept.epochs] == [epoch.metrics for epoch in epochs[:5]]


def test_epochs_after_the_last_one_do_not_count(raw_study: dict[str, Any], record_url: str) -> None:
    sweep, trial = first_trial(raw_study, record_url)
    epochs = epochs_of(trial)
    beyond = Epoch(epoch=len(epochs) + 1, metrics={"train/loss": 0.0, "val/accuracy": 0.0})
    assert not sweep.on_epochs(trial.trial_id, [*epochs, beyond])
    assert sweep.studies[0].search_table.trials[0].epochs == tuple(epoch.metrics for epoch in epochs)


def test_a_report_of_many_epochs_takes_as_many_transactions_as_one_of_a_single_epoch(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    commits: list[object] = []

    def note(connection: object) -> None:
        commits.append(connection)

    counts = []
    for size in (1, 8):
        sweep, trial = first_trial(raw_study, f"sqlite:///{tmp_path / str(size)}.db")
        commits.clear()
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", note)
        try:
            assert sweep.on_epochs(trial.trial_id, epochs_of(trial)[:size])
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "commit", note)
        counts.append(len(commits))
    assert counts == [1, 1]
