"""What is stored keeps its names, whatever the code is called; data of a newer version is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import create_trial

from orchestrator.errors import UserError
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage import stored_names
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.optuna_ids import study_id, trial_id
from orchestrator.study.study import load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from tests.orchestrator.conftest import Sptune, drive, new_sweep


def test_stored_names_are_those_of_version_1() -> None:
    """A name that changes here makes every existing home unreadable: raise SCHEMA_VERSION and read both."""
    assert stored_names.SCHEMA_VERSION == 1
    assert [*stored_names.SWEEP_ATTRS.values()] == ["spec", "halt", "schema_version", "sweep_id", "notified"]
    assert [*stored_names.DRIVER_ATTRS.values()] == [
        "host", "pid", "born", "since", "seconds", "stop", "boot", "namespaces", "start_ticks"
    ]  # fmt: skip
    assert [*stored_names.STUDY_ATTRS.values()] == [
        "settings",
        "stopped",
        "transferred",
        "mlflow_run",
        "shown",
        "replaces",
    ]
    assert stored_names.SYNCED_RUN_PREFIX == "mlflow/"
    assert [*stored_names.TRIAL_ATTRS.values()] == [
        "error", "cause", "attempt", "failures", "losses", "share", "wasted_s", "duplicate_of"
    ]  # fmt: skip
    assert (stored_names.TRIAL_ID, stored_names.CONFIG, stored_names.HISTORY, stored_names.LAST_VALUES) == (
        "trial_id", "config", "history", "came"
    )  # fmt: skip
    assert [*stored_names.HISTORY_KEYS.values(), *stored_names.LAST_VALUES_KEYS.values()] == [
        "epochs",
        "notes",
        "last",
        "facts",
    ]
    assert stored_names.table_name("demo", "vtab/dtd linear b 1", "search") == "demo: vtab/dtd linear b 1 search"
    assert stored_names.split_copy_name(stored_names.copy_name("a (b)", 2)) == ("a (b)", 2)
    assert stored_names.split_copy_name("demo") == ("demo", 1)
    assert [state.value for state in TrialState] == ["waiting", "running", "complete", "pruned", "failed"]
    assert [cause.value for cause in FailureCause] == [
        "worker lost", "out of memory", "diverged", "bad data or configuration", "error"
    ]  # fmt: skip


def test_a_sweep_stores_no_name_that_the_maps_lack(spec: SweepSpec, tmp_path: Path) -> None:
    def fail(trial: Trial) -> Failure | None:
        broken = trial.phase == "search" and trial.number == 1
        return Failure(cause=FailureCause.ERROR, error="OSError: no disk", seconds=2.0) if broken else None

    file = tmp_path / "studies.db"
    sweep = new_sweep(spec, f"sqlite:///{file}")
    lease = StudyDatabase(f"sqlite:///{file}").lease("small")
    lease.acquire("small")
    lease.request_stop()
    drive(sweep, fail=fail)
    sweep.close()
    lease.release()
    table = sweep.studies[0].search_table
    table.save_mlflow_run("a run")
    table.save_synced_digest("a digest")
    table.save_synced_run(0, "a run", TrialState.COMPLETE)
    sweep.studies[0].reset_trials(lambda trial: trial.number == 2)

    with sqlite3.connect(file) as database:
        of_studies = {key for (key,) in database.execute("SELECT DISTINCT key FROM study_user_attributes")}
        of_trials = {key for (key,) in database.execute("SELECT DISTINCT key FROM trial_user_attributes")}
    allowed = {*stored_names.SWEEP_ATTRS.values(), *stored_names.STUDY_ATTRS.values(), "mlflow/0"}
    assert of_studies <= allowed
    assert {"spec", "halt", "schema_version", "settings", "mlflow_run", "shown", "mlflow/0", "replaces"} <= of_studies
    allowed = {*stored_names.DRIVER_ATTRS.values(), *stored_names.TRIAL_ATTRS.values()}
    assert of_trials <= allowed | {"trial_id", "config", "history", "came"}
    assert {*stored_names.DRIVER_ATTRS.values(), "error", "cause", "failures", "wasted_s"} <= of_trials


def _set_version(url: str, version: int | None) -> None:
    """Give the sweep `small` a version, or none, as version 0.1 left it."""
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        if version is None:
            database.execute("DELETE FROM study_user_attributes WHERE key = 'schema_version'")
        else:
            value = (json.dumps(version),)
            database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'schema_version'", value)


def _content(file: Path) -> list[str]:
    with sqlite3.connect(file) as database:
        return [*database.iterdump()]


def test_a_sweep_without_a_version_is_read_and_gets_one(spec: SweepSpec, record_url: str) -> None:
    drive(new_sweep(spec, record_url), events=5)
    _set_version(record_url, None)
    before = [study.trials for study in load_studies(spec, StudyDatabase(record_url))]
    assert any(before), "its trials are read"
    sweep = new_sweep(spec, record_url)
    assert sum(len(study.trials) for study in sweep.studies) == sum(map(len, before))
    attributes = optuna.load_study(study_name="small", storage=record_url).user_attrs
    assert attributes["schema_version"] == 1, "once it is written again"


@pytest.mark.parametrize("command", ["status", "failures", "report", "resume", "stop", "rm", "export"])
def test_a_sweep_of_a_newer_version_is_refused_with_the_way_out(
    spec: SweepSpec, tmp_path: Path, sptune: Sptune, command: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    drive(new_sweep(spec, url), events=5)
    _set_version(url, 2)
    before = _content(tmp_path / "studies.db")
    code, _, complaint = sptune(command, "small", "--home", tmp_path)
    assert (code, complaint) == (
        2,
        "error: small was written by a newer version of sptune: its schema_version is 2, and this version reads at "
        "most 1. Upgrade sptune on this machine to the version that wrote it.\n",
    )
    with pytest.raises(UserError, match="its schema_version is 2"):
        new_sweep(spec, url)
    assert _content(tmp_path / "studies.db") == before, "nothing is written"


def test_another_sweep_of_a_newer_version_is_in_nobodys_way(
    raw_spec: dict[str, Any], spec: SweepSpec, tmp_path: Path, sptune: Sptune
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    drive(new_sweep(spec, url), events=5)
    _set_version(url, 2)
    other = spec.model_copy(update={"name": "other"})
    drive(new_sweep(other, url), events=5)
    code, said, _ = sptune("status", "other", "--home", tmp_path)
    assert (code, "other: " in said) == (0, True)


def test_optuna_has_the_private_ids_that_its_storage_asks_for(record_url: str) -> None:
    """The contract with the locked Optuna: these attributes exist and are the ids of its tables."""
    storage = RDBStorage(record_url)
    first = storage.create_new_study([StudyDirection.MAXIMIZE], "first")
    second = storage.create_new_study([StudyDirection.MAXIMIZE], "second")
    assert {study.study_name: study_id(study) for study in storage.get_all_studies()} == {
        "first": first,
        "second": second,
    }
    number = storage.create_new_trial(second, create_trial(state=optuna.trial.TrialState.WAITING))
    assert [trial_id(trial) for trial in storage.get_all_trials(second)] == [number]


def test_only_one_module_reads_private_attributes_of_optuna() -> None:
    root = Path(stored_names.__file__).parents[2]
    readers = []
    for file in root.rglob("*.py"):
        for line in file.read_text().splitlines():
            # `self._study_id` and `self._trial_id` are attributes of our own classes.
            private = line.replace("self._study_id", "").replace("self._trial_id", "")
            if "._study_id" in private or "._trial_id" in private:
                readers.append(file.name)
    assert {*readers} == {"optuna_ids.py"}
