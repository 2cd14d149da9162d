"""Ids of studies and trials in Optuna's tables.

Optuna's storage interface asks for these ids, but Optuna keeps them in private attributes. Only this module reads
those attributes.
"""

from __future__ import annotations

from typing import Protocol

from optuna.trial import FrozenTrial


class _HasStudyId(Protocol):
    _study_id: int


def study_id(study: _HasStudyId) -> int:
    """Return the id of a study that `get_all_studies` of an Optuna storage returned."""
    return study._study_id


def trial_id(trial: FrozenTrial) -> int:
    """Return the id of a trial, unique over all studies of a database."""
    return trial._trial_id
