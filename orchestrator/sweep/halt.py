"""Why a sweep stops before it is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Halt:
    """Reason why no more trials start although the sweep is not done."""

    reason: str
    interrupt_running: bool = False
    """Whether running trials stop at their next epoch and resume later. If not, they run to their end."""
    is_budget: bool = False
    """Whether a limit of `budget` is the reason."""
