"""Reads the trials of many studies from Optuna's tables in five queries.

Through Optuna's own interface, reading a thousand trials takes a second.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState as OptunaState
from sqlalchemy import bindparam, text

STUDIES_PER_QUERY = 500
"""Number of studies in one query: databases limit the number of bound values."""

ATTRIBUTE_TABLES = {"user": "trial_user_attributes", "system": "trial_system_attributes"}

# A sweep has few different distributions and many params, so most are parsed once only.
distribution_of = functools.lru_cache(maxsize=1024)(json_to_distribution)


@dataclass(slots=True)
class StoredTrial:
    """A trial as Optuna's tables have it."""

    trial_id: int
    """Optuna's id, unique over all studies."""
    number: int
    """Index of the trial in its Optuna study, from 0."""
    state: OptunaState
    value: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    """User attributes."""
    system: dict[str, Any] = field(default_factory=dict)
    """System attributes: what samplers and pruners store with a trial."""


def load_trials(storage: RDBStorage, study_ids: Sequence[int], *, without: str = "") -> dict[int, list[StoredTrial]]:
    """Return the trials of each study, ordered by number.

    Args:
        without: name of a user attribute that is not read.
    """
    by_study: dict[int, list[StoredTrial]] = {study_id: [] for study_id in study_ids}

    for start in range(0, len(study_ids), STUDIES_PER_QUERY):
        by_trial: dict[int, StoredTrial] = {}
        query = functools.partial(_query, storage, list(study_ids[start : start + STUDIES_PER_QUERY]))

        for study_id, trial_id, number, state in query("study_id, trial_id, number, state", "trials", "number"):
            by_trial[trial_id] = StoredTrial(trial_id, number, OptunaState[state])
            by_study[study_id].append(by_trial[trial_id])

        # A running driver may have added trials since the first query. They are read the next time.
        for trial_id, value in query("trial_id, value", "trial_values", "trial_id"):
            if trial_id in by_trial:
                by_trial[trial_id].value = value

        columns = "trial_id, param_name, param_value, distribution_json"
        for trial_id, name, value, distribution in query(columns, "trial_params", "param_id"):
            if trial_id in by_trial:
                by_trial[trial_id].params[name] = distribution_of(distribution).to_external_repr(value)

        for kind, table in ATTRIBUTE_TABLES.items():
            rows = query("trial_id, key, value_json", table, "trial_id", f"key != '{without}'")
            for trial_id, name, value in rows:
                if trial_id in by_trial:
                    getattr(by_trial[trial_id], kind)[name] = json.loads(value)

    return by_study


def _query(
    storage: RDBStorage, study_ids: list[int], columns: str, table: str, order: str, condition: str = "1 = 1"
) -> Iterator[Any]:
    trials = "SELECT trial_id FROM trials WHERE study_id IN :studies"
    query = text(f"SELECT {columns} FROM {table} WHERE trial_id IN ({trials}) AND {condition} ORDER BY {order}")

    with storage.engine.connect() as connection:
        yield from connection.execute(query.bindparams(bindparam("studies", study_ids, expanding=True)))
