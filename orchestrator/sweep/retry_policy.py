"""What is done about attempts that ended badly, and how they are told."""

from __future__ import annotations

import dataclasses

from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState, error_kind

MAX_LOSSES = 5
"""Workers that a trial may lose without finishing an epoch, before it is taken for what kills them."""


def next_state_after(trial: Trial, failure: Failure, *, retries: int, gpus: float) -> Trial:
    """A trial after a failure: waiting for another attempt, or failed.

    Args:
        gpus: the share of a GPU that it had.
    """
    trial = dataclasses.replace(
        trial, error=failure.error, cause=failure.cause, lost_seconds=trial.lost_seconds + failure.seconds
    )
    match failure.cause:
        case FailureCause.LOST:
            trial = dataclasses.replace(trial, losses=trial.losses + 1)
            again = trial.losses < MAX_LOSSES
        case FailureCause.MEMORY if 0 < gpus < 1:
            trial, again = dataclasses.replace(trial, gpu_share_factor=2 * trial.gpu_share_factor), True
        case FailureCause.DIVERGED | FailureCause.INVALID:
            again = False
        case _:
            trial = dataclasses.replace(trial, failures=trial.failures + 1)
            again = trial.failures <= retries
    return dataclasses.replace(trial, state=TrialState.WAITING if again else TrialState.FAILED)


class FailureStreak:
    """Failures with nothing good between them, as long as they are of one kind."""

    def __init__(self) -> None:
        self._kind: tuple[FailureCause, str] | None = None
        self._trials: list[str] = []

    def reset(self) -> None:
        """Something went well."""
        self._trials = []

    def add(self, trial: Trial) -> None:
        """One more failure. A diverged trial is a result; a first loss is a machine's, which may have held many."""
        assert trial.cause is not None, "a failure has a cause"
        kind = (trial.cause, error_kind(trial))
        lost_once = trial.cause is FailureCause.LOST and trial.losses < 2
        if trial.cause is not FailureCause.DIVERGED and not lost_once:
            self._trials = [*(self._trials if kind == self._kind else []), trial.trial_id]
            self._kind = kind

    def reaches(self, limit: int) -> bool:
        """Whether there are so many, and not all of one trial."""
        return len(self._trials) >= limit and len({*self._trials}) > 1
