"""The study database: all sweeps, studies and trials, in an ordinary Optuna storage that every Optuna tool can read.

A study's search is one Optuna study and its final trials are another. A third one, named after the sweep alone, is the
sweep itself: it holds the spec, and its trials are the drivers that worked on the sweep (`lease.py`). Only the driver
that has the lease writes.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection

from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import BEFORE_KEY_EXISTED
from orchestrator.study.storage.bulk_read import load_trials
from orchestrator.study.storage.lease import Lease
from orchestrator.study.storage.opening import open_for_reading, open_for_writing
from orchestrator.study.storage.optuna_ids import study_id
from orchestrator.study.storage.stored_names import (
    HISTORY,
    SCHEMA_VERSION,
    STUDY_ATTRS,
    SWEEP_ATTRS,
    belongs_to_sweep,
    check_version,
    split_copy_name,
    table_name,
)
from orchestrator.study.storage.trial_table import StoredTable, TrialTable
from orchestrator.study.trial import Phase

optuna.logging.set_verbosity(optuna.logging.WARNING)

PHASES: tuple[Phase, ...] = ("search", "final")


class StudyDatabase:
    """All sweeps of a home.

    Args:
        url: an SQLAlchemy database, such as ``sqlite:////home/ada/sptune-home/studies.db``.
        read_only: open it for reading. Nothing is created or written, so the right to read is enough.

    Raises:
        NothingStored: if `read_only`, and there is no database, or no table in it yet.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self._resources = contextlib.ExitStack()
        if not read_only:
            self._storage = open_for_writing(url)
            return

        # If opening fails, a copy that it made is deleted.
        with contextlib.ExitStack() as stack:
            self._storage = open_for_reading(url, stack)
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Close the connections to the database."""
        self._storage.engine.dispose()
        self._resources.close()

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Return the recorded spec of every sweep, by the sweep's name."""
        spec = SWEEP_ATTRS["spec"]
        studies = self._storage.get_all_studies()
        return {
            study.study_name: BEFORE_KEY_EXISTED | study.user_attrs[spec]
            for study in studies
            if spec in study.user_attrs
        }

    def save_sweep(self, name: str, spec: dict[str, Any]) -> None:
        """Save the spec of a sweep in place of an earlier one, and clear the reason of its last halt.

        Raises:
            UserError: if a newer sptune wrote the sweep.
        """
        sweep_id = self._sweep_id(name)
        check_version(name, self._storage.get_study_user_attrs(sweep_id))

        # The version comes first: an older sptune must never see newer data without it.
        self._storage.set_study_user_attr(sweep_id, SWEEP_ATTRS["schema_version"], SCHEMA_VERSION)
        self._storage.set_study_user_attr(sweep_id, SWEEP_ATTRS["spec"], spec)
        self.save_halt_reason(name, None)

    def check_version(self, name: str) -> None:
        """Raise UserError if a newer sptune wrote the sweep."""
        for study in self._storage.get_all_studies():
            if study.study_name == name:
                check_version(name, study.user_attrs)

    def halt_reason(self, name: str) -> str | None:
        """Return why the sweep's last driver ended before the sweep was done, or None."""
        attributes = self._storage.get_study_user_attrs(self._sweep_id(name))
        reason: str | None = attributes.get(SWEEP_ATTRS["halt_reason"])
        return reason

    def save_halt_reason(self, name: str, reason: str | None) -> None:
        """Save why the driver ends before the sweep is done."""
        self._storage.set_study_user_attr(self._sweep_id(name), SWEEP_ATTRS["halt_reason"], reason)

    def notified(self, name: str) -> list[str]:
        """Return the ids of the messages about the sweep that somebody was told."""
        attributes = self._storage.get_study_user_attrs(self._sweep_id(name))
        return list(attributes.get(SWEEP_ATTRS["notified"], []))

    def save_notified(self, name: str, messages: list[str]) -> None:
        """Save the ids of the messages that somebody was told. Call with the lease."""
        self._storage.set_study_user_attr(self._sweep_id(name), SWEEP_ATTRS["notified"], messages)

    def sweep_id(self, name: str) -> str:
        """Return the identity of a sweep, among all that ever had this name. A sweep without one gets it now.

        Call with the lease. It moves with the home, and a sweep that is deleted and launched again has another.
        """
        study = self._sweep_id(name)
        stored: str | None = self._storage.get_study_user_attrs(study).get(SWEEP_ATTRS["sweep_id"])
        if stored is None:
            stored = uuid.uuid4().hex[:12]
            self._storage.set_study_user_attr(study, SWEEP_ATTRS["sweep_id"], stored)
        return stored

    def lease(self, name: str) -> Lease:
        """Return the lease that one driver at a time has on the sweep."""
        return Lease(self._storage, self._sweep_id(name))

    def load_tables(
        self, sweep: str, plans: Sequence[StudyPlan], *, epochs: bool = True
    ) -> list[tuple[TrialTable, TrialTable]]:
        """Return the search and the final trials of each study, in the order of the plans.

        Args:
            epochs: whether to read the metrics of every epoch, which are most of the data. Tables without them are
                for reading only.

        Raises:
            UserError: if a newer sptune wrote the sweep.
        """
        replaces = STUDY_ATTRS["replaces"]
        latest: dict[str, StoredTable] = {}

        for study in self._storage.get_all_studies():
            if study.study_name == sweep:
                check_version(sweep, study.user_attrs)

            # A copy counts once it is whole. Until then it does not say which study it replaces.
            name, copy = split_copy_name(study.study_name)
            is_whole = copy == 1 or replaces in study.user_attrs
            if is_whole and (name not in latest or copy > latest[name].copy):
                latest[name] = StoredTable(copy=copy, study_id=study_id(study), attributes=study.user_attrs)

        names = {(plan.key, phase): table_name(sweep, plan.key, phase) for plan in plans for phase in PHASES}
        ids = [latest[name].study_id for name in names.values() if name in latest]
        trials = load_trials(self._storage, ids, without="" if epochs else HISTORY)

        def load(plan: StudyPlan, phase: Phase) -> TrialTable:
            name = names[plan.key, phase]
            stored = latest.get(name)
            rows = trials[stored.study_id] if stored is not None else []
            return TrialTable(self._storage, name, stored, rows, plan, phase)

        return [(load(plan, "search"), load(plan, "final")) for plan in plans]

    def delete_sweep(self, sweep: str) -> None:
        """Delete the sweep with all its studies."""
        for study in self._storage.get_all_studies():
            if belongs_to_sweep(study.study_name, sweep):
                self._storage.delete_study(study_id(study))

    def _sweep_id(self, name: str) -> int:
        try:
            return self._storage.get_study_id_from_name(name)
        except KeyError:
            pass

        try:
            return self._storage.create_new_study([StudyDirection.MAXIMIZE], name)
        except optuna.exceptions.DuplicatedStudyError:
            # Another process created it in between.
            return self._storage.get_study_id_from_name(name)
