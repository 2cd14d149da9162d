"""The protocol of trackers, which log a sweep for people to watch, and a tracker that keeps all in memory.

The study database is the truth. A tracker makes its own copy equal to it, so logging something twice changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.study.trial import Trial, TrialState

if TYPE_CHECKING:
    from orchestrator.study.study import Study


class SyncLog(Protocol):
    """Log of what a tracker has received of a study and its trials. `TrialTable` stores it."""

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run, or None."""

    def save_mlflow_run(self, run_id: str) -> None:
        """Save the id of the study's parent run."""

    @property
    def synced_digest(self) -> str | None:
        """Digest of the study when its summary was last logged, or None."""

    def save_synced_digest(self, digest: str) -> None:
        """Save the digest of the study whose summary was logged."""

    def synced_run(self, number: int) -> tuple[str | None, str | None]:
        """Return a trial's run id, and its finished state if the tracker has all of the trial."""

    def save_synced_run(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Save a trial's run id, and the finished state once the tracker has all of the trial."""


class Tracker(Protocol):
    """Logs a sweep for people to watch."""

    def open_study(self, study: Study) -> None:
        """Prepare for a study. Call before its trials are synced."""

    def sync(self, trial: Trial, log: SyncLog) -> None:
        """Log all of a trial that is not logged yet."""

    def sync_study(self, study: Study) -> None:
        """Log the study's summary if it has changed since it was last logged."""

    def close(self) -> int:
        """Log what is left, and return the number of trials and studies that could not be logged."""


class MemoryTracker:
    """Keeps studies and trials in memory: for tests, and for sweeps that nobody watches."""

    def __init__(self) -> None:
        # Public, because tests compare them with what was asked for.
        self.studies: list[Study] = []
        self.runs: dict[str, Trial] = {}
        """The last state of each trial, by its id."""
        self.digests: dict[str, str] = {}
        """The last digest of each study, by its key."""

    def open_study(self, study: Study) -> None:
        """Keep the study."""
        self.studies.append(study)

    def sync(self, trial: Trial, log: SyncLog) -> None:
        """Keep the trial."""
        self.runs[trial.trial_id] = trial

    def sync_study(self, study: Study) -> None:
        """Keep the study's digest."""
        self.digests[study.plan.key] = study.digest

    def close(self) -> int:
        """Return 0, because nothing can fail."""
        return 0
