"""Writes the val accuracies of several epochs to Optuna's table in one transaction.

Through Optuna's own interface each of them is a transaction of its own, which takes as long as all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

# SQLite and PostgreSQL have the same words for this. A driver that died may have left the row of an epoch that is
# reported again.
SAVE_VALUE = text(
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
    "VALUES (:trial_id, :step, :value, 'FINITE') ON CONFLICT (trial_id, step) "
    "DO UPDATE SET intermediate_value = excluded.intermediate_value, intermediate_value_type = 'FINITE'"
)


def save_values(storage: RDBStorage, trial_id: int, values: Mapping[int, float]) -> None:
    """Write the intermediate values of a running trial, by epoch. They are finite.

    Raises:
        StorageInternalError: as Optuna's own writes do.
    """
    rows = [{"trial_id": trial_id, "step": step, "value": value} for step, value in values.items()]
    try:
        with storage.engine.begin() as connection:
            connection.execute(SAVE_VALUE, rows)
    except SQLAlchemyError as error:
        raise StorageInternalError(f"cannot write the epochs of a trial: {error}") from error
