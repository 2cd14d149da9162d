"""What is known of a trial: a frozen record that cannot be in an impossible state."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["search", "final"]


class TrialState(enum.Enum):
    """Where a trial is in its life."""

    WAITING = "waiting"
    """To be run again: its attempt failed for a reason that may pass."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether nothing about the trial can change any more."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One trial, as far as it has come.

    Raises:
        ValueError: if it would be complete without a finite score, or failed without an error.
    """

    trial_id: str
    """The config's fingerprint."""
    study: str
    """Key of its study."""
    phase: Phase
    number: int
    """Place in its study and phase, from 0."""
    params: dict[str, Any]
    """What was searched: the values this trial drew; a final trial's seed."""
    config: dict[str, Any]
    """The whole TrainConfig."""
    state: TrialState
    epochs: tuple[dict[str, float], ...] = ()
    """Metrics of each finished epoch."""
    score: float | None = None
    """val/accuracy of a complete search trial at its last epoch, test/accuracy of a final one; 0..1."""
    error: str | None = None
    """Why it failed: one sentence, then the trace."""
    attempt: int = 1
    duplicate_of: int | None = None
    """Number of the earlier trial with the same config, whose outcome this one has without training."""

    def __post_init__(self) -> None:
        if self.state is TrialState.COMPLETE and (self.score is None or not math.isfinite(self.score)):
            raise ValueError(f"trial {self.trial_id} is complete and must have a finite score, got {self.score}.")
        if self.state is TrialState.FAILED and not self.error:
            raise ValueError(f"trial {self.trial_id} is failed and must have an error.")
        if self.state is not TrialState.COMPLETE and self.score is not None:
            raise ValueError(f"trial {self.trial_id} is {self.state.value} and must have no score, got {self.score}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt ended badly."""

    error: str
    """One sentence, then the trace."""
    may_pass: bool
    """Whether the same config may succeed on another attempt."""
