"""Synchronization on demand: make MLflow equal to the study database, without running trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.environment.home import Home
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.study.trial import TrialState
from orchestrator.tracking.mlflow_runs import open_runs
from orchestrator.tracking.mlflow_server import check_reachable
from orchestrator.tracking.mlflow_tracker import MlflowTracker


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncOutcome:
    """What a synchronization did."""

    num_created: int
    """Runs that MLflow did not have."""
    num_restored: int
    """Runs that a person had deleted."""
    num_removed: int
    """Second runs of one trial, which lost answers of a server leave."""
    num_logged: int
    """Trials and studies whose runs were completed."""
    num_left: int
    """Trials and studies that could not be logged."""
    problem: str | None
    """Why not, as the end of a sentence about MLflow."""


def sync_sweep(
    home: Home, database: StudyDatabase, spec: SweepSpec, on_wait: Callable[[int], None] = lambda _: None
) -> SyncOutcome:
    """Make the runs of a sweep equal to its trials and studies. Nothing is trained, and no trial changes.

    Args:
        on_wait: called twice a second with the number of trials and studies that are left.

    Raises:
        LeaseError: if a driver runs the sweep, which logs it itself.
        ServiceError: if the server does not answer.
    """
    if home.mlflow_artifacts is None:
        check_reachable(home.mlflow_uri)

    database.check_version(spec.name)
    lease = database.lease(spec.name)
    lease.acquire(spec.name)
    try:
        tracker = MlflowTracker(open_runs(home, spec, database.sweep_id(spec.name)))
        for study in load_studies(spec, database):
            tracker.open_study(study)
            for table in (study.search_table, study.final_table):
                for trial in table.trials:
                    # The lease is ours, so nobody runs it.
                    is_abandoned = trial.state is TrialState.RUNNING
                    waiting = dataclasses.replace(trial, state=TrialState.WAITING) if is_abandoned else trial
                    if trial.duplicate_of is None:
                        tracker.sync(waiting, table)
            if study.has_new_summary:
                tracker.sync_study(study)
        num_left = tracker.close(on_wait)
    finally:
        lease.release()

    return SyncOutcome(
        num_created=tracker.changes["created"],
        num_restored=tracker.changes["restored"],
        num_removed=tracker.changes["removed"],
        num_logged=tracker.num_logged,
        num_left=num_left,
        problem=tracker.problem,
    )
