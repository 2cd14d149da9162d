"""The protocol that all drivers implement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.sweep.sweep import Sweep


def ignore_change() -> None:
    """Do nothing. It is the default for callers that show no progress."""


class Driver(Protocol):
    """Runs the trials of a sweep. `InlineDriver`, `RayDriver` and `ReplayDriver` are its implementations."""

    def run(self, sweep: Sweep, on_change: Callable[[], None] = ignore_change) -> None:
        """Run trials until `sweep.has_ended` and none is running.

        Args:
            on_change: called after every change of a trial.

        Raises:
            KeyboardInterrupt: at the second Ctrl-C. The first one stops the sweep after each trial's current epoch.
        """
