"""What is remembered of sweeps, in an ordinary Optuna storage, of which any tool of Optuna's makes sense.

A study's search is an Optuna study, its final trials are another, and a third without the study's key in its name is
the sweep itself: it holds the spec, and its trials are the drivers that worked on it (`lease.py`). Only the driver
that holds the lease writes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from orchestrator.spec.plan import StudyPlan
from orchestrator.study.storage.bulk_read import load_trials
from orchestrator.study.storage.conversion import (
    HISTORY,
)
from orchestrator.study.storage.lease import GRACE_PERIOD_S, HEARTBEAT_S, Lease
from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.trial import Phase

optuna.logging.set_verbosity(optuna.logging.WARNING)

PHASES: tuple[Phase, ...] = ("search", "final")


class StudyDatabase:
    """All sweeps of a home.

    Args:
        url: an SQLAlchemy database, such as ``sqlite:///sptune-home/studies.db``.
    """

    def __init__(self, url: str) -> None:
        # The tracker's thread writes too: wait for the other's turn instead of failing.
        sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {"connect_args": {"timeout": 60} if sqlite else {"connect_timeout": 10}}
        options["pool_pre_ping"] = not sqlite  # a server may have ended what was open
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            self._storage = RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_PERIOD_S
            )
        if sqlite:
            sqlalchemy.event.listen(self._storage.engine, "connect", _write_ahead)
            self._storage.engine.dispose()

    def close(self) -> None:
        """Give the database's connections back."""
        self._storage.engine.dispose()

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """The spec of every sweep, by its name."""
        studies = self._storage.get_all_studies()
        return {study.study_name: study.user_attrs["spec"] for study in studies if "spec" in study.user_attrs}

    def save_sweep(self, name: str, spec: dict[str, Any]) -> None:
        """Remember the spec of a sweep, in place of an earlier one; why it was last halted is forgotten."""
        study_id = self._sweep_id(name)
        self._storage.set_study_user_attr(study_id, "spec", spec)
        self.save_halt_reason(name, None)

    def halt_reason(self, name: str) -> str | None:
        """Why the sweep's last driver ended before the sweep was done."""
        reason: str | None = self._storage.get_study_user_attrs(self._sweep_id(name)).get("halt")
        return reason

    def save_halt_reason(self, name: str, reason: str | None) -> None:
        """Remember why the driver ends."""
        self._storage.set_study_user_attr(self._sweep_id(name), "halt", reason)

    def lease(self, name: str) -> Lease:
        """The hold that one driver at a time has on a sweep."""
        return Lease(self._storage, self._sweep_id(name))

    def load_tables(
        self, sweep: str, plans: Sequence[StudyPlan], *, epochs: bool = True
    ) -> list[tuple[TrialTable, TrialTable]]:
        """Search and final trials of each study, as far as there are any; without `epochs`, which are most of what
        there is to read, to be looked at only."""
        found: dict[str, list[tuple[int, int, Mapping[str, Any]]]] = {}
        for study in self._storage.get_all_studies():
            name, copy = re.fullmatch(r"(.*?)(?: \((\d+)\))?", study.study_name).groups()  # type: ignore[union-attr]
            if copy is None or "replaces" in study.user_attrs:
                found.setdefault(name, []).append((int(copy or 1), study._study_id, study.user_attrs))

        names = {(plan.key, phase): f"{sweep}: {plan.key} {phase}" for plan in plans for phase in PHASES}
        latest = {name: max(found[name]) for name in names.values() if name in found}
        ids = [study_id for _, study_id, _ in latest.values()]
        rows = load_trials(self._storage, ids, without="" if epochs else HISTORY)

        def opened(plan: StudyPlan, phase: Phase) -> TrialTable:
            study = latest.get(name := names[plan.key, phase])
            return TrialTable(self._storage, name, study, rows[study[1]] if study else [], plan, phase)

        return [(opened(plan, "search"), opened(plan, "final")) for plan in plans]

    def delete_sweep(self, sweep: str) -> None:
        """Delete the sweep with all its studies."""
        for study in self._storage.get_all_studies():
            if study.study_name == sweep or study.study_name.startswith(f"{sweep}: "):
                self._storage.delete_study(study._study_id)

    def _sweep_id(self, name: str) -> int:
        try:
            return self._storage.get_study_id_from_name(name)
        except KeyError:
            pass
        try:
            return self._storage.create_new_study([StudyDirection.MAXIMIZE], name)
        except optuna.exceptions.DuplicatedStudyError:  # another process was faster
            return self._storage.get_study_id_from_name(name)


def _write_ahead(connection: Any, _: object) -> None:
    """A commit costs 0.2 ms instead of 20. A killed process loses nothing; a power cut may cost the record its last
    epochs, which the trials' checkpoints tell it again."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
