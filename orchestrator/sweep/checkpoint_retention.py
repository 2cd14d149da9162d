"""Checkpoints of trials that need them no more are dropped; what was learnt stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from orchestrator.study.study import Study
from orchestrator.study.trial import FailureCause, TrialState
from trainer.run_folder import CHECKPOINT
from trainer.storage.files import delete_file, file_sizes


class CheckpointRetention:
    """The checkpoints of a sweep.

    Args:
        trials: folder (path or URI) with a folder a trial.
        keep: those of each study's best trial and its final trials, of final trials, or all. Trials that may still go
            on keep theirs.
    """

    def __init__(self, trials: str, keep: Literal["best", "final", "all"]) -> None:
        self._trials = trials
        self._keep = keep
        self._dropped: set[str] = set()

    def delete_unneeded(self, study: Study) -> None:
        """Drop what a study's finished trials have no use for, as far as storage lets it."""
        if self._keep == "all":
            return
        best = study.best if self._keep == "best" else None
        for trial in study.search_table.trials:
            may_go_on = not trial.state.is_finished or (
                trial.state is TrialState.FAILED and trial.cause is not FailureCause.DIVERGED
            )
            is_best = best is not None and trial.trial_id == best.trial_id
            if not (may_go_on or is_best or trial.trial_id in self._dropped):
                try:
                    delete_file(f"{self._trials}/{trial.trial_id}/{CHECKPOINT}")
                except OSError:
                    return  # storage is away: they are dropped when the study's next trial is finished
                self._dropped.add(trial.trial_id)

    def delete_late(self, studies: Iterable[Study]) -> None:
        """Drop those too that a worker was still writing when their trial was given up; no worker is left now."""
        if not self._dropped:
            return
        try:
            there = {name.split("/")[-2] for name in file_sizes(self._trials) if name.endswith(f"/{CHECKPOINT}")}
        except OSError:
            return  # it is as good without
        if late := self._dropped & there:
            self._dropped -= late
            for study in studies:
                self.delete_unneeded(study)

    def size(self) -> tuple[int, int, int]:
        """How many there are, their bytes, and the bytes of all that the trials hold."""
        sizes = file_sizes(self._trials)
        kept = [size for name, size in sizes.items() if name.endswith(f"/{CHECKPOINT}")]
        return len(kept), sum(kept), sum(sizes.values())
