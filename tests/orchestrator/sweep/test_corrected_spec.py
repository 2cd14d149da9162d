"""A mistake does not lock a name: trials that produced nothing do not contradict the corrected spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.errors import ConflictError
from orchestrator.launch import launch
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome

CORRECTIONS: list[tuple[str, str, Any]] = [
    ("fixed", "batch_size", 16),
    ("fixed", "epochs", 2),
    ("search", "seed", 5),
    ("search", "sampler", "random"),
    ("search", "max_concurrent", 1),
    ("search", "pruner", {"type": "none"}),
    ("space", "lr", {"type": "choice", "values": [0.1]}),
    ("space", "ema_decay", {"type": "choice", "values": [None, 0.9]}),
]


def corrected(raw: dict[str, Any], part: str, key: str, value: Any) -> dict[str, Any]:
    return raw | {part: raw[part] | {key: value}}


def failing(cause: FailureCause) -> Failure:
    return Failure(cause=cause, error="ValueError: batch_size=32 exceeds the 20 images.")


@pytest.mark.parametrize(
    ("cause", "part", "key", "value"),
    [(FailureCause.INVALID, *correction) for correction in CORRECTIONS]
    + [(cause, *CORRECTIONS[0]) for cause in (FailureCause.ERROR, FailureCause.MEMORY)],
)
def test_what_failed_before_an_epoch_is_replaced_by_the_trials_of_the_corrected_spec(
    raw_study: dict[str, Any], tmp_path: Path, cause: FailureCause, part: str, key: str, value: Any
) -> None:
    url = f"sqlite:///{tmp_path / 'mistaken.db'}"
    raw_study |= {"retries": 0, "pause_after": 100, "fixed": {"epochs": 3, "warmup_epochs": 1}}
    raw_study["search"] |= {"trials": 4, "startup_trials": 1}
    mistaken = new_sweep(parse_spec(raw_study, "a mistake"), url)
    drive(mistaken, fail=lambda _: failing(cause))
    mistaken.close()
    assert any(trial.state is TrialState.FAILED for study in mistaken.studies for trial in study.trials)

    deleted: list[tuple[str, int]] = []

    def on_delete(study: Study) -> None:
        deleted.append((study.plan.key, len(study.trials)))

    spec = parse_spec(corrected(raw_study, part, key, value), "corrected")
    after = Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), on_delete=on_delete)
    assert [key for key, _ in deleted] == [study.plan.key for study in after.studies]
    assert all(count for _, count in deleted), "it is told while the trials are still there"
    drive(after)

    # As if the mistake had never been made: the numbers of trials decide what samplers and pruners see.
    clean = new_sweep(spec, f"sqlite:///{tmp_path / 'clean.db'}")
    drive(clean)
    assert outcome(after) == outcome(clean)
    assert outcome(new_sweep(spec, url)) == outcome(clean), "and the database holds no trace of it"


def test_a_driver_that_died_before_an_epoch_locks_nothing(raw_study: dict[str, Any], record_url: str) -> None:
    before = new_sweep(parse_spec(raw_study, "before"), record_url)
    before.next_trial()
    # No close: the driver was killed, and its trial stays running in the database.
    after = new_sweep(parse_spec(corrected(raw_study, "fixed", "batch_size", 16), "after"), record_url)
    assert not after.studies[0].trials


@pytest.mark.parametrize(
    ("produced", "eval_every"),
    [("epoch", 1), ("diverged", 1), ("epoch of a killed driver", 1), ("epoch of a killed driver", 4)],
)
def test_one_trial_that_produced_something_contradicts_as_before(
    raw_study: dict[str, Any], record_url: str, produced: str, eval_every: int
) -> None:
    raw_study |= {"retries": 0, "pause_after": 100}
    raw_study["search"] |= {"eval_every": eval_every, "pruner": {"type": "none"}}
    before = new_sweep(parse_spec(raw_study, "before"), record_url)
    first, second = before.next_trial(), before.next_trial()
    assert first is not None
    assert second is not None
    before.on_failure(first.trial_id, failing(FailureCause.ERROR))
    if produced == "diverged":
        before.on_failure(second.trial_id, failing(FailureCause.DIVERGED))
    else:
        before.on_epoch(second.trial_id, 1, next(curve(second.config)))
    if produced == "epoch":
        before.close()

    with pytest.raises(ConflictError, match=r"fixed\.batch_size was not set, is 16"):
        new_sweep(parse_spec(corrected(raw_study, "fixed", "batch_size", 16), "after"), record_url)
    (study,) = load_studies(before.spec, StudyDatabase(record_url))
    assert len(study.trials) == 2, "nothing was deleted"


def test_a_study_that_produced_something_keeps_the_others_as_they_are(
    raw_spec: dict[str, Any], record_url: str
) -> None:
    raw_spec |= {"retries": 0, "pause_after": 100, "methods": ["linear"], "fixed": {"epochs": 2, "warmup_epochs": 1}}
    raw_spec["search"]["trials"] = 2
    raw_spec["space"] = {"lr": raw_spec["space"]["lr"]}

    def fail(trial: Trial) -> Failure | None:
        return failing(FailureCause.INVALID) if trial.config.task == "demo/shapes_loc" else None

    before = new_sweep(parse_spec(raw_spec, "before"), record_url)
    drive(before, fail=fail)
    before.close()
    with pytest.raises(ConflictError, match="demo/digits"):
        new_sweep(parse_spec(corrected(raw_spec, "fixed", "batch_size", 16), "after"), record_url)
    assert all(study.trials for study in load_studies(before.spec, StudyDatabase(record_url)))

    # An entry for the failed study alone contradicts nothing.
    entry = {"group": "demo/shapes_loc", "fixed": {"batch_size": 16}}
    after = new_sweep(parse_spec(raw_spec | {"per": [entry]}, "after"), record_url)
    drive(after)
    assert all(study.is_done for study in after.studies)
    assert after.studies[0].trials == before.studies[0].trials


def test_runs_and_folders_of_a_mistake_go_with_its_trials(
    store: Path, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    spec: dict[str, Any] = {
        "name": "mistaken",
        "tasks": ["demo/digits"],
        "backbones": ["vit_nano_patch4_32.mae"],
        "methods": ["linear"],
        # The final trial has 804 images to learn from; the trials of the search have fewer than a batch.
        "train_sizes": [0.1],
        "fixed": {"epochs": 1, "warmup_epochs": 0, "batch_size": 90},
        "space": {"lr": {"type": "float", "low": 0.01, "high": 0.02}},
        "search": {"trials": 1, "sampler": "random"},
        "final": {"seeds": [42]},
    }
    outcomes = launch(spec, home=str(tmp_path / "home"), driver="inline")
    assert outcomes.studies_without_result
    (failed,) = outcomes.studies[0].trials
    assert failed.state is TrialState.FAILED

    again = launch(spec | {"fixed": spec["fixed"] | {"batch_size": 16}}, home=str(tmp_path / "home"), driver="inline")
    assert not again.studies_without_result
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("mistaken")
    assert experiment is not None
    tags = [run.data.tags for run in client.search_runs([experiment.experiment_id])]
    assert {each["trial_id"] for each in tags if "trial_id" in each} == {t.trial_id for t in again.studies[0].trials}
    assert sum(each["phase"] == "study" for each in tags) == 1
    folders = {folder.name for folder in (tmp_path / "home/sweeps/mistaken/trials").iterdir()}
    assert failed.trial_id not in folders
