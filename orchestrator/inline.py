"""Drives a sweep in this process, one trial after another: for tests, for debugging, and where Ray is not wanted."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.home import Workplace
from orchestrator.results import Failure
from orchestrator.sweep import Sweep
from orchestrator.worker import run_trial


def drive(sweep: Sweep, workplace: Workplace, on_change: Callable[[], None]) -> None:
    """Run until the sweep is done, calling `on_change` whenever something happened."""
    while (trial := sweep.next_trial()) is not None:
        on_change()
        for event in run_trial(trial.config, workplace):
            if isinstance(event, Failure):
                sweep.on_failure(trial.trial_id, event)
            elif not sweep.on_epoch(trial.trial_id, event.epoch, event.metrics):
                on_change()
                break
            on_change()
    assert sweep.done, "with one trial at a time, nothing to run means done"
