"""The trials of many studies from Optuna's tables, in five queries: through its own interface every thousand trials
take a second."""

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
"""Studies asked for in one query: databases limit a query's values."""
ATTRIBUTES = {"user": "trial_user_attributes", "system": "trial_system_attributes"}

distribution_of = functools.lru_cache(maxsize=1024)(json_to_distribution)


@dataclass(slots=True)
class StoredTrial:
    """A trial as Optuna's tables have it."""

    trial_id: int
    """Optuna's, over all studies."""
    number: int
    state: OptunaState
    value: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    """User attributes."""
    system: dict[str, Any] = field(default_factory=dict)
    """System attributes: notes of samplers and pruners."""


def load_trials(storage: RDBStorage, study_ids: Sequence[int], *, without: str = "") -> dict[int, list[StoredTrial]]:
    """The trials of each study, by number.

    Args:
        without: name of a user attribute that is not read.
    """
    found: dict[int, list[StoredTrial]] = {study_id: [] for study_id in study_ids}
    for start in range(0, len(study_ids), STUDIES_PER_QUERY):
        rows: dict[int, StoredTrial] = {}
        ask = functools.partial(_query, storage, list(study_ids[start : start + STUDIES_PER_QUERY]))
        for study_id, trial_id, number, state in ask("study_id, trial_id, number, state", "trials", "number"):
            rows[trial_id] = StoredTrial(trial_id, number, OptunaState[state])
            found[study_id].append(rows[trial_id])
        # A driver at work may have added trials since the first query: they are seen the next time.
        for trial_id, value in ask("trial_id, value", "trial_values", "trial_id"):
            if trial_id in rows:
                rows[trial_id].value = value
        drawn = "trial_id, param_name, param_value, distribution_json"
        for trial_id, name, value, kind in ask(drawn, "trial_params", "param_id"):
            if trial_id in rows:
                rows[trial_id].params[name] = distribution_of(kind).to_external_repr(value)
        for kind, table in ATTRIBUTES.items():
            for trial_id, name, value in ask("trial_id, key, value_json", table, "trial_id", f"key != '{without}'"):
                if trial_id in rows:
                    getattr(rows[trial_id], kind)[name] = json.loads(value)
    return found


def _query(
    storage: RDBStorage, study_ids: list[int], columns: str, table: str, order: str, only: str = "1 = 1"
) -> Iterator[Any]:
    trials = "SELECT trial_id FROM trials WHERE study_id IN :studies"
    query = text(f"SELECT {columns} FROM {table} WHERE trial_id IN ({trials}) AND {only} ORDER BY {order}")
    with storage.engine.connect() as connection:
        yield from connection.execute(query.bindparams(bindparam("studies", study_ids, expanding=True)))
