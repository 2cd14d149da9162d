"""A trial: a frozen dataclass that cannot be in an impossible state."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config import TrainConfig
from trainer.metric_names import EPOCH_SECONDS
from trainer.plain_text import printable
from trainer.redaction import redact

Phase = Literal["search", "final"]

DEVICE_SEPARATOR = "; "
"""Between the kinds of devices of a trial that moved."""
RUNG = "completed_rung"
"""Prefix of the system attributes in which Optuna's pruners keep a trial's values at the epochs where they decide."""


class TrialState(enum.Enum):
    """State of a trial."""

    WAITING = "waiting"
    """To be run again or resumed: its last attempt was interrupted, or failed for a reason that may pass."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether the trial is complete, pruned or failed. Finished trials never change."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)


class FailureCause(enum.Enum):
    """Why an attempt failed, which decides what happens next."""

    LOST = "worker lost"
    """Its process, device or node is gone: run again, and not counted as a failure."""
    MEMORY = "out of memory"
    """Run again on a larger share of a GPU, up to a whole one."""
    DIVERGED = "diverged"
    """A result, and reported to the sampler: never run again."""
    INVALID = "bad data or configuration"
    """Its study is stopped: the next trial would fail for the same reason."""
    ERROR = "error"
    """Anything else: run again up to `retries` times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """A finished epoch, as a worker reports it."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """Metrics of the trainer, and three of the worker: epoch/seconds (busy since its last report), memory/peak_gb (most
    memory used so far) and memory/device_gb (memory of its device). The first two are missing if an earlier attempt
    trained the epoch and was lost before its report. The driver adds gpu/share and gpu/trials."""
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    """Facts that are no numbers: host, device, software, and the images that it was trained and scored on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A failed attempt."""

    cause: FailureCause
    error: str
    """One sentence, then the stack trace."""
    seconds: float = 0.0
    """Seconds of the attempt after its last epoch."""
    ends_process: bool = False
    """Whether its process cannot run another trial, because its GPU fails at every call from now on."""
    lost_gpu: str = ""
    """The GPU that failed, such as `GPU 3 of node7`; empty if none did."""
    stops_sweep: bool = False
    """Whether no more trials start, because the next worker would fail in the same way. This trial waits."""

    def __post_init__(self) -> None:
        # Databases and logs keep it for everyone to read, and PostgreSQL refuses some control characters.
        object.__setattr__(self, "error", printable(redact(self.error), keep="\n\t"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial, waiting, running or finished.

    Raises:
        ValueError: if it is complete without a finite score, failed without an error and its cause, or has a score
            without being complete.
    """

    trial_id: str
    """The config's fingerprint."""
    study: str
    """Key of its study."""
    phase: Phase
    number: int
    """Index of the trial in its study and phase, from 0."""
    params: dict[str, Any]
    """Values of the searched parameters; for a final trial, its seed."""
    config: TrainConfig
    state: TrialState
    epochs: tuple[dict[str, float], ...] = ()
    """Metrics of each finished epoch. Empty if `load_studies` was called without epochs."""
    last_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Each metric's last value."""
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    """Facts that are no numbers, as its worker reported them."""
    score: float | None = None
    """val/accuracy of a complete search trial at its last epoch, test/accuracy of a final one; 0..1."""
    error: str | None = None
    """Error of its last attempt: one sentence, then the stack trace."""
    cause: FailureCause | None = None
    """Cause of that error."""
    attempt: int = 1
    """Number of times that it was assigned to a worker."""
    failures: int = 0
    """Number of attempts that count against `retries`."""
    losses: int = 0
    """Number of workers lost since it last finished an epoch."""
    gpu_share_factor: int = 1
    """Multiple of the spec's share of a GPU that it gets; doubled after each out-of-memory error."""
    lost_seconds: float = 0.0
    """Seconds of its attempts after their last epochs."""
    duplicate_of: int | None = None
    """Number of the earlier trial with the same config. This trial has its outcome and is not trained."""
    sampler_attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """System attributes that Optuna's sampler and pruner store with the trial."""

    def __post_init__(self) -> None:
        # Checked here, because a NaN that counts as a score would win or lose silently.
        if self.state is TrialState.COMPLETE and (self.score is None or not math.isfinite(self.score)):
            raise ValueError(f"trial {self.trial_id} is complete and must have a finite score, got {self.score}.")
        if self.state is TrialState.FAILED and not (self.error and self.cause):
            raise ValueError(f"trial {self.trial_id} is failed and must have an error and its cause.")
        if self.state is not TrialState.COMPLETE and self.score is not None:
            raise ValueError(f"trial {self.trial_id} is {self.state.value} and must have no score, got {self.score}.")

    @property
    def seconds(self) -> float:
        """Seconds that workers were busy with the trial, if they reported them."""
        return self.lost_seconds + sum(epoch.get(EPOCH_SECONDS, 0.0) for epoch in self.epochs)

    @property
    def devices(self) -> list[str]:
        """Kinds of devices that it ran on, in their order."""
        device = self.provenance.get("device")
        return device.split(DEVICE_SEPARATOR) if device else []

    @property
    def has_produced(self) -> bool:
        """Whether it has a finished epoch or an outcome. To have diverged is an outcome; another failure is none."""
        has_outcome = self.state in (TrialState.COMPLETE, TrialState.PRUNED) or self.cause is FailureCause.DIVERGED
        return has_outcome or bool(self.epochs or self.last_metrics)

    @property
    def error_summary(self) -> str:
        """The first line of the error, without the stack trace; empty if there is no error."""
        return self.error.splitlines()[0] if self.error else ""

    def with_epoch(self, epoch: dict[str, float], facts: Mapping[str, str]) -> Trial:
        """Return the trial with one more epoch."""
        provenance = {**self.provenance, **facts}
        if "device" in facts:
            # A resumed trial may have moved to another kind of device, and both decide its bits.
            provenance["device"] = DEVICE_SEPARATOR.join(dict.fromkeys([*self.devices, facts["device"]]))

        return dataclasses.replace(
            self,
            epochs=(*self.epochs, epoch),
            last_metrics=self.last_metrics | epoch,
            provenance=provenance,
            # An epoch that finishes shows that the trial itself does not kill its workers.
            losses=0,
        )

    def reset(self, *, discard_progress: bool = False) -> Trial:
        """Return the trial, waiting for a new attempt: from its last epoch, or as if it had never run.

        A trial with all its epochs loses the last one, which makes it complete again.
        """
        # The rungs belong to the epochs. The other attributes belong to the params and stay.
        drawn = {name: value for name, value in self.sampler_attrs.items() if not name.startswith(RUNG)}
        fresh: dict[str, Any] = {"epochs": (), "last_metrics": {}, "provenance": {}, "sampler_attrs": drawn}
        fresh |= {"attempt": 0, "gpu_share_factor": 1, "lost_seconds": 0.0}

        changes: dict[str, Any] = {}
        if discard_progress:
            changes = fresh
        elif len(self.epochs) == self.config.epochs:
            changes = {"epochs": self.epochs[:-1]}

        return dataclasses.replace(
            self,
            state=TrialState.WAITING,
            score=None,
            error=None,
            cause=None,
            failures=0,
            losses=0,
            **changes,
        )


def error_kind(trial: Trial) -> str:
    """Return the type of a trial's error, such as `OSError`."""
    return trial.error_summary.partition(":")[0]


def wrong_device(required: str, device: str) -> Failure:
    """Return the failure of a trial whose worker has another kind of device than its study requires."""
    return Failure(
        cause=FailureCause.LOST,
        stops_sweep=True,
        error=f"WrongDevice: resources.mix_devices is false, the study's first trials ran on {required}, and a worker "
        f"has {device}. Set resources.accelerator_type so that all workers have {required}, or mix_devices: true.",
    )
