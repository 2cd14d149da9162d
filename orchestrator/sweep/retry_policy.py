"""What is done about attempts that ended badly, and how they are told."""

from __future__ import annotations

import dataclasses

from orchestrator.study.trial import Cause, Failure, TrialResult, TrialState, kind_of

MAX_LOSSES = 5
"""Workers that a trial may lose without finishing an epoch, before it is taken for what kills them."""


def settled(trial: TrialResult, failure: Failure, *, retries: int, gpus: float) -> TrialResult:
    """A trial after a failure: waiting for another attempt, or failed.

    Args:
        gpus: the share of a GPU that it had.
    """
    trial = dataclasses.replace(
        trial, error=failure.error, cause=failure.cause, wasted_s=trial.wasted_s + failure.seconds
    )
    match failure.cause:
        case Cause.LOST:
            trial = dataclasses.replace(trial, losses=trial.losses + 1)
            again = trial.losses < MAX_LOSSES
        case Cause.MEMORY if 0 < gpus < 1:
            trial, again = dataclasses.replace(trial, share=2 * trial.share), True
        case Cause.DIVERGED | Cause.INVALID:
            again = False
        case _:
            trial = dataclasses.replace(trial, failures=trial.failures + 1)
            again = trial.failures <= retries
    return dataclasses.replace(trial, state=TrialState.WAITING if again else TrialState.FAILED)


class Row:
    """Failures with nothing good between them, as long as they are of one kind."""

    def __init__(self) -> None:
        self._kind: tuple[Cause, str] | None = None
        self._trials: list[str] = []

    def end(self) -> None:
        """Something went well."""
        self._trials = []

    def add(self, trial: TrialResult) -> None:
        """One more failure. A diverged trial is a result; a first loss is a machine's, which may have held many."""
        assert trial.cause is not None, "a failure has a cause"
        kind = (trial.cause, kind_of(trial))
        lost_once = trial.cause is Cause.LOST and trial.losses < 2
        if trial.cause is not Cause.DIVERGED and not lost_once:
            self._trials = [*(self._trials if kind == self._kind else []), trial.trial_id]
            self._kind = kind

    def is_long(self, limit: int) -> bool:
        """Whether there are so many, and not all of one trial."""
        return len(self._trials) >= limit and len({*self._trials}) > 1
