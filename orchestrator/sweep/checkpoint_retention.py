"""Delete checkpoints that no trial needs any more. Prompts, predictions and plots stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from orchestrator.study.study import Study
from orchestrator.study.trial import FailureCause, Trial, TrialState
from trainer.run_folder import CHECKPOINT
from trainer.storage.files import delete_file, file_sizes


class CheckpointRetention:
    """The checkpoints of a sweep.

    Args:
        trials: folder (path or URI) that holds the trials, one folder each.
        keep: which checkpoints of finished trials stay: `best` keeps those of each study's best trial and of the final
            trials, `final` those of the final trials, `all` every one. Trials that may still resume keep theirs.
    """

    def __init__(self, trials: str, keep: Literal["best", "final", "all"]) -> None:
        self._trials = trials
        self._keep = keep
        self._deleted: set[str] = set()

    def delete_unneeded(self, study: Study) -> None:
        """Delete the checkpoints that a study's finished trials need no more, unless storage is away."""
        if self._keep == "all":
            return

        best = study.best if self._keep == "best" else None
        for trial in study.search_table.trials:
            is_best = best is not None and trial.trial_id == best.trial_id
            if _may_resume(trial) or is_best or trial.trial_id in self._deleted:
                continue

            try:
                delete_file(f"{self._trials}/{trial.trial_id}/{CHECKPOINT}")
            except OSError:
                # Storage is away. The next finished trial of the study tries again.
                return
            self._deleted.add(trial.trial_id)

    def delete_late(self, studies: Iterable[Study]) -> None:
        """Delete checkpoints that appeared after their deletion. Call when no worker is left.

        A worker is one epoch ahead of the driver, so it may still write the checkpoint of a trial that was pruned.
        """
        # Listing a bucket takes seconds.
        if not self._deleted:
            return

        try:
            names = file_sizes(self._trials)
        except OSError:
            # A checkpoint too many harms nothing.
            return

        present = {name.split("/")[-2] for name in names if name.endswith(f"/{CHECKPOINT}")}
        late = self._deleted & present
        if late:
            self._deleted -= late
            for study in studies:
                self.delete_unneeded(study)

    def size(self) -> tuple[int, int, int]:
        """Return the number of checkpoints, their bytes, and the bytes of all files of the trials."""
        sizes = file_sizes(self._trials)
        checkpoints = [size for name, size in sizes.items() if name.endswith(f"/{CHECKPOINT}")]
        return len(checkpoints), sum(checkpoints), sum(sizes.values())


def _may_resume(trial: Trial) -> bool:
    if not trial.state.is_finished:
        return True
    # A user may retry a failed trial, but one that diverged diverges again.
    return trial.state is TrialState.FAILED and trial.cause is not FailureCause.DIVERGED
