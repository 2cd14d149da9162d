"""What is known of a trial: a frozen record that cannot be in an impossible state."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config import TrainConfig
from trainer.metric_names import EPOCH_SECONDS

Phase = Literal["search", "final"]
RUNG = "completed_rung"
"""How the notes begin in which a pruner keeps what a trial had reached at an epoch where it judges."""


class TrialState(enum.Enum):
    """Where a trial is in its life."""

    WAITING = "waiting"
    """To be run, again or further: its attempt failed for a reason that may pass, or was interrupted."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether nothing about the trial can change any more."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)


class FailureCause(enum.Enum):
    """Why an attempt ended badly, and with it what is done about it."""

    LOST = "worker lost"
    """Its process or node is gone: run again, counted as no failure."""
    MEMORY = "out of memory"
    """Run again on a larger share of a GPU while there is one."""
    DIVERGED = "diverged"
    """A result, told to the sampler: never run again."""
    INVALID = "bad data or configuration"
    """Its study is stopped: the next trial would fail of the same."""
    ERROR = "error"
    """Anything else: run again `retries` times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What a worker tells of a finished epoch."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """As the trainer has them, and from the worker: epoch/seconds that it was busy since it last told something,
    memory/peak_gb that it has used at most, memory/device_gb that its device has; the first two not where an earlier
    attempt did the work and was lost before it could tell."""
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    """What is no number: where it ran, on what software, which images it learnt from and was scored on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How an attempt ended badly."""

    cause: FailureCause
    error: str
    """One sentence, then the trace."""
    seconds: float = 0.0
    """Time of the attempt since its last epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial, as far as it has come.

    Raises:
        ValueError: if it would be complete without a finite score, or failed without an error and its cause.
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
    config: TrainConfig
    """The whole TrainConfig."""
    state: TrialState
    epochs: tuple[dict[str, float], ...] = ()
    """Metrics of each finished epoch; a report has them not (`open_studies`)."""
    last_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Each metric's last value."""
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    """What its worker told that is no number."""
    score: float | None = None
    """val/accuracy of a complete search trial at its last epoch, test/accuracy of a final one; 0..1."""
    error: str | None = None
    """How its last attempt ended badly: one sentence, then the trace."""
    cause: FailureCause | None = None
    """Why it did."""
    attempt: int = 1
    """How often it was handed out."""
    failures: int = 0
    """Attempts that count against `retries`."""
    losses: int = 0
    """Workers lost since it last finished an epoch."""
    gpu_share_factor: int = 1
    """Times the spec's share of a GPU that it is given; doubled when memory ran out."""
    lost_seconds: float = 0.0
    """Seconds of attempts after their last epoch."""
    duplicate_of: int | None = None
    """Number of the earlier trial with the same config, whose outcome this one has without training."""
    sampler_attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What Optuna's sampler and pruner keep with the trial."""

    def __post_init__(self) -> None:
        if self.state is TrialState.COMPLETE and (self.score is None or not math.isfinite(self.score)):
            raise ValueError(f"trial {self.trial_id} is complete and must have a finite score, got {self.score}.")
        if self.state is TrialState.FAILED and not (self.error and self.cause):
            raise ValueError(f"trial {self.trial_id} is failed and must have an error and its cause.")
        if self.state is not TrialState.COMPLETE and self.score is not None:
            raise ValueError(f"trial {self.trial_id} is {self.state.value} and must have no score, got {self.score}.")

    @property
    def seconds(self) -> float:
        """How long workers were busy with it, as far as is known."""
        return self.lost_seconds + sum(epoch.get(EPOCH_SECONDS, 0.0) for epoch in self.epochs)

    @property
    def error_summary(self) -> str:
        """The error without its trace; empty where there is none."""
        return self.error.splitlines()[0] if self.error else ""

    def with_epoch(self, epoch: dict[str, float], facts: Mapping[str, str]) -> Trial:
        """The same trial with one more epoch."""
        return dataclasses.replace(
            self,
            epochs=(*self.epochs, epoch),
            last_metrics=self.last_metrics | epoch,
            provenance={**self.provenance, **facts},
            losses=0,
        )

    def reset(self, *, discard_progress: bool = False) -> Trial:
        """The same trial waiting for a new attempt: from its last epoch, or as if it had never been run."""
        drawn = {name: value for name, value in self.sampler_attrs.items() if not name.startswith(RUNG)}
        fresh: dict[str, Any] = {"epochs": (), "last_metrics": {}, "provenance": {}, "sampler_attrs": drawn}
        fresh |= {"attempt": 0, "gpu_share_factor": 1, "lost_seconds": 0.0}
        return dataclasses.replace(
            self,
            state=TrialState.WAITING,
            score=None,
            error=None,
            cause=None,
            failures=0,
            losses=0,
            **(fresh if discard_progress else {}),
        )


def error_kind(trial: Trial) -> str:
    """What the error is called: `OSError`."""
    return trial.error_summary.partition(":")[0]
