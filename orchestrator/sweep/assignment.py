"""A trial that a worker has."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.study import Study


@dataclass(slots=True)
class Assignment:
    """A trial that a worker has."""

    study: Study
    table: TrialTable
    number: int
    last_heard: float
    """When it was assigned, started, or last finished an epoch, by the sweep's clock."""
