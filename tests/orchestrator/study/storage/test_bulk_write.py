"""Values that are written straight to Optuna's table are those that Optuna's own interface reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import OperationalError

from orchestrator.study.storage.bulk_write import save_values
from tests.services.postgres import Postgres

AWKWARD = {1: 0.0, 2: 1.0, 3: 5e-324, 4: 1 / 3, 100: -0.0, 2**31 - 1: 1e300}


@pytest.fixture
def storage(record_url: str) -> RDBStorage:
    return RDBStorage(record_url)


def new_trial(storage: RDBStorage, name: str = "a study") -> int:
    return storage.create_new_trial(storage.create_new_study([StudyDirection.MAXIMIZE], name))


def test_optuna_reads_the_values_and_may_go_on_writing(storage: RDBStorage) -> None:
    check_writing(storage)


@pytest.mark.slow
def test_so_it_is_on_postgresql(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in postgres.env.items():
        monkeypatch.setenv(name, value)
    storage = RDBStorage(postgres.create("values"))
    try:
        check_writing(storage)
    finally:
        storage.engine.dispose()


def check_writing(storage: RDBStorage) -> None:
    trial_id, beside = new_trial(storage), new_trial(storage, "beside it")
    storage.set_trial_intermediate_value(trial_id, 3, 0.5)
    save_values(storage, trial_id, AWKWARD)
    assert storage.get_trial(trial_id).intermediate_values == AWKWARD, "a value of an earlier driver is replaced"
    storage.set_trial_intermediate_value(trial_id, 1, 0.25)
    save_values(storage, trial_id, {2: 0.75})
    assert storage.get_trial(trial_id).intermediate_values == AWKWARD | {1: 0.25, 2: 0.75}
    assert storage.get_trial(beside).intermediate_values == {}


def test_an_error_of_the_database_is_that_of_optunas_own_writes(storage: RDBStorage, tmp_path: Path) -> None:
    trial_id = new_trial(storage)
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("ALTER TABLE trial_intermediate_values RENAME TO gone")
    with pytest.raises(StorageInternalError) as refused:
        save_values(storage, trial_id, {1: 0.5})
    assert isinstance(refused.value.__cause__, OperationalError), "so that a lock is waited for"
