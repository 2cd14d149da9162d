"""How a sweep is shown to people while it runs: the protocol, and a tracker that only remembers.

The record is the truth, and what is shown is made equal to it: showing something again changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.study.trial import Trial, TrialState

if TYPE_CHECKING:
    from orchestrator.study.study import Study


class SyncLog(Protocol):
    """Where it is kept what was shown of a study and its trials; `record.StudyRecord` is one."""

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run."""

    def save_mlflow_run(self, run_id: str) -> None:
        """Remember the parent run."""

    @property
    def synced_digest(self) -> str | None:
        """What the study had come to when it was last shown."""

    def save_synced_digest(self, mark: str) -> None:
        """Remember what the study had come to."""

    def synced_run(self, number: int) -> tuple[str | None, str | None]:
        """A trial's run id, and the finished state that was told."""

    def save_synced_run(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Remember a trial's run, and the finished state once all of it is told."""


class Tracker(Protocol):
    """Shows a sweep to people while it runs."""

    def open_study(self, study: Study) -> None:
        """Make a study known before its trials."""

    def sync(self, trial: Trial, ledger: SyncLog) -> None:
        """Show a trial as it is now; whatever was shown of it before is not shown twice."""

    def sync_study(self, study: Study) -> None:
        """Show what a study has come to, if that is not shown yet."""

    def close(self) -> int:
        """Finish what can be finished; the number of trials and studies that could not be shown."""


class MemoryTracker:
    """Keeps what it is shown: for tests, and for sweeps that nobody browses."""

    def __init__(self) -> None:
        self.studies: list[Study] = []
        self.runs: dict[str, Trial] = {}
        self.digests: dict[str, str] = {}
        """What each study had come to, by its key."""

    def open_study(self, study: Study) -> None:
        """Keep the study."""
        self.studies.append(study)

    def sync(self, trial: Trial, ledger: SyncLog) -> None:
        """Keep the trial."""
        self.runs[trial.trial_id] = trial

    def sync_study(self, study: Study) -> None:
        """Keep how far it is."""
        self.digests[study.plan.key] = study.digest

    def close(self) -> int:
        """Nothing is left."""
        return 0
