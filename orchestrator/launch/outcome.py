"""What a launch reports while it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING, Literal

from orchestrator.environment.home import Home

if TYPE_CHECKING:
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial
    from orchestrator.sweep.halt import Halt
    from orchestrator.sweep.sweep import Sweep

DriverName = Literal["ray", "inline"]
Step = Literal[
    "checking the spec",
    "downloading weights",
    "checking the servers",
    "opening the sweep",
    "starting Ray",
    "joining the cluster",
    "checking the nodes",
    "running trials",
    "logging to MLflow",
    "notifying",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a launch is doing now. `on_progress` is called with it after every change."""

    step: Step
    sweep: Sweep | None = None
    """The sweep, while trials run."""
    note: str = ""
    """A sentence for the user, such as that the MLflow server is away."""
    activity: str = ""
    """What trials do before the first epoch of this launch, such as `decoding the images of vtab/dtd`; then empty."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Rerun:
    """Finished trials that `resume` runs again."""

    matches: Callable[[Trial], bool]
    must_match: bool = False
    """Whether it is a mistake if no trial matches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """How a launch ended."""

    name: str
    home: Home
    studies: list[Study]
    """The studies of the sweep with all their trials."""
    halt: Halt | None
    """Why the sweep stopped before it was done; None if it is done, or if it was interrupted before it stopped."""
    was_finished: bool
    """Whether the sweep was finished before, so that nothing was run."""
    is_interrupted: bool
    """Whether running trials were cut off, by a second Ctrl-C or while Ray was starting. They resume from their last
    checkpoints."""
    stopped_by: Signals | None
    """The first signal that came; None if none did, as with `sptune stop`."""
    num_rerun: int
    """Finished trials that were run again."""
    num_unlogged: int
    """Trials and studies that MLflow still lacks. `sptune sync` and the next launch log them."""
    notes: tuple[str, ...]
    """Sentences about what went wrong without stopping the sweep, such as an MLflow server that is away."""

    @property
    def is_done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        return self.halt is None and not self.is_interrupted

    @property
    def studies_without_result(self) -> list[str]:
        """Keys of the studies that have no final trial with a score: none was started, or all failed."""
        return [study.plan.key for study in self.studies if not study.has_result]
