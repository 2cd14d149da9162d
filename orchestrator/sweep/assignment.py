"""A trial that a worker has."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.study import Study


@dataclass(slots=True)
class Assignment:
    """A trial that a worker has."""

    study: Study
    table: TrialTable
    number: int
    started_at: float
    """When it was assigned, or started if that was later, by the sweep's clock."""
    last_heard: float = field(init=False)
    """When it was assigned, started, or last finished an epoch."""

    def __post_init__(self) -> None:
        self.start(self.started_at)

    def start(self, now: float) -> None:
        """Note that its worker starts it."""
        self.started_at = now
        self.last_heard = now
