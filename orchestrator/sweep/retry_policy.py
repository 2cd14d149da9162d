"""Retry policy: which failed trials run again, and when a series of failures pauses the sweep."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState, error_kind
from orchestrator.sweep.halt import Halt
from trainer.plain_text import counted

MAX_LOSSES = 5
"""Workers that a trial may lose without finishing an epoch. After that, the trial itself is likely to kill them."""
MAX_GPU_LOSSES = 3
"""Times in a row that a GPU may fail. Ray cannot leave out a single GPU, so the sweep pauses after that."""


def next_state_after(trial: Trial, failure: Failure, *, retries: int, gpus: float) -> Trial:
    """Return a trial after a failure: waiting for another attempt, or failed.

    Args:
        retries: how often a trial may fail and run again.
        gpus: the GPU share of the failed attempt.
    """
    trial = dataclasses.replace(
        trial, error=failure.error, cause=failure.cause, lost_seconds=trial.lost_seconds + failure.seconds
    )

    match failure.cause:
        case _ if failure.stops_sweep:
            # Not the trial's fault, so it is not counted.
            runs_again = True
        case FailureCause.LOST:
            trial = dataclasses.replace(trial, losses=trial.losses + 1)
            runs_again = trial.losses < MAX_LOSSES
        case FailureCause.MEMORY if 0 < gpus < 1:
            # Not counted as a failure: the share doubles until it is a whole GPU, so this ends by itself.
            trial = dataclasses.replace(trial, gpu_share_factor=2 * trial.gpu_share_factor)
            runs_again = True
        case FailureCause.DIVERGED | FailureCause.INVALID:
            # The same config would fail in the same way.
            runs_again = False
        case _:
            trial = dataclasses.replace(trial, failures=trial.failures + 1)
            runs_again = trial.failures <= retries

    return dataclasses.replace(trial, state=TrialState.WAITING if runs_again else TrialState.FAILED)


class FailureStreak:
    """Consecutive failures of one kind. Any finished epoch, and a failure of another kind, starts a new streak.

    Losses of a GPU are counted for each GPU, until an epoch finishes on it. With MPS, an error of one trial ends all
    trials that share its GPU: that is one loss.
    """

    def __init__(self) -> None:
        self._gpu_losses: Counter[str] = Counter()
        self._lost_at: dict[str, float] = {}
        """When each GPU was lost, by its last loss that was counted."""
        self._kind: tuple[FailureCause, str] | None = None
        self._trial_ids: list[str] = []

    def reset(self, provenance: Mapping[str, str], *, started_at: float) -> None:
        """End the streak, because an epoch finished.

        Args:
            provenance: facts of the epoch, with its `gpu`.
            started_at: when its attempt started.
        """
        self._trial_ids = []
        gpu = provenance.get("gpu", "")
        # An epoch from before the loss, which is reported after it, says nothing about the GPU.
        if started_at >= self._lost_at.get(gpu, started_at):
            self._gpu_losses.pop(gpu, None)

    def add(self, trial: Trial, failure: Failure, *, started_at: float, now: float) -> None:
        """Add a failed trial to the streak, unless its failure says nothing about the setup.

        Args:
            started_at: when the attempt started, in seconds of the clock of `now`.
        """
        # An attempt that was running when its GPU was lost before may have been lost with it.
        if failure.lost_gpu and started_at >= self._lost_at.get(failure.lost_gpu, started_at):
            self._gpu_losses[failure.lost_gpu] += 1
            self._lost_at[failure.lost_gpu] = now

        assert trial.cause is not None, "a failure has a cause"

        # A diverged trial is a result. A first loss is the fault of a machine, which may have run many trials.
        is_first_loss = trial.cause is FailureCause.LOST and trial.losses < 2
        if trial.cause is FailureCause.DIVERGED or is_first_loss:
            return

        kind = (trial.cause, error_kind(trial))
        if kind != self._kind:
            self._trial_ids = []
        self._kind = kind
        self._trial_ids.append(trial.trial_id)

    def halt_after(self, failure: Failure, trial: Trial, limit: int) -> Halt | None:
        """Return why no more trials start after a failure, whose trial was added; None if they do."""
        if failure.stops_sweep:
            return Halt(f"stopped: {trial.error_summary}")
        num_lost = self._gpu_losses[failure.lost_gpu] if failure.lost_gpu else 0
        if num_lost >= MAX_GPU_LOSSES:
            return Halt(
                f"paused: {failure.lost_gpu} failed {counted(num_lost, 'time')} in a row, the last: "
                f"{trial.error_summary}. Repair it, or start Ray there without it (CUDA_VISIBLE_DEVICES)"
            )
        if self.reaches(limit):
            return Halt(f"paused: failures in a row ({failure.cause.value}), the last: {trial.error_summary}")
        return None

    def reaches(self, limit: int) -> bool:
        """Return whether the streak has at least so many failures, of at least two trials."""
        return len(self._trial_ids) >= limit and len(set(self._trial_ids)) > 1
