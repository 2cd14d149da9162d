"""The inline driver: one trial after another in this process, for tests, debuggers and machines without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from orchestrator.drivers.activity import Activity
from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.driver import ignore_change
from orchestrator.drivers.signals import stop_on_signal
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.sweep import Sweep
from trainer.phase import listening


class InlineDriver:
    """Trains in this process, without Ray.

    Args:
        context: where trials run. CPUs and GPU share are replaced by those of each trial.
        activity: what the trial does before the first epoch is noted here.
    """

    def __init__(self, context: TrialContext, activity: Activity | None = None) -> None:
        self._context = context
        self._activity = activity or Activity()

    def run(self, sweep: Sweep, on_change: Callable[[], None] = ignore_change) -> None:
        """Run trials until the sweep has ended. See `Driver`."""
        with stop_on_signal(sweep):
            while (trial := sweep.next_trial()) is not None:
                self._activity.on_assign(trial.trial_id)
                on_change()
                with listening(self._noting(trial, on_change)):
                    self._run_trial(sweep, trial, on_change)
                self._activity.on_end(trial.trial_id)
                on_change()

        # No trial is running here, so none can be blocked by another.
        assert sweep.has_ended, "without running trials, no next trial means the end"

    def _noting(self, trial: Trial, on_change: Callable[[], None]) -> Callable[[str], None]:
        """Return a function that notes a phase of a trial."""

        def note(phase: str) -> None:
            self._activity.on_phase(trial.trial_id, phase)
            on_change()

        return note

    def _run_trial(self, sweep: Sweep, trial: Trial, on_change: Callable[[], None]) -> None:
        resources = sweep.gpu_allocator.resources_for(trial)
        context = dataclasses.replace(
            self._context,
            cpus=resources.cpus,
            gpus=resources.initial_gpus,
            required_device=sweep.device_kinds.required(trial.study),
        )

        def must_stop_waiting() -> bool:
            return sweep.halt is not None and sweep.halt.interrupt_running

        for event in run_trial(trial.config, context, stop_waiting=must_stop_waiting):
            sweep.tick()
            if isinstance(event, Epoch):
                self._activity.on_epoch()
            if isinstance(event, Failure):
                sweep.on_failure(trial.trial_id, event)
                if event.ends_process and not sweep.has_ended:
                    sweep.stop("stopped: the GPU failed, and this process cannot use it any more")
            elif not sweep.on_epoch(trial.trial_id, event.epoch, event.metrics, event.provenance):
                break
            on_change()
