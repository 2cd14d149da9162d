"""Drives a sweep in this process, one trial after another: for tests, for debugging, and where Ray is not wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.signals import stop_on_signal
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Failure
from orchestrator.sweep.sweep import Sweep


def run_sweep(sweep: Sweep, context: TrialContext, on_change: Callable[[], None]) -> None:
    """Run until the sweep has ended, calling `on_change` whenever something happened."""
    with stop_on_signal(sweep):
        while (trial := sweep.next_trial()) is not None:
            on_change()
            share = sweep.gpu_allocator.resources_for(trial)
            place = dataclasses.replace(context, cpus=share.cpus, gpus=share.initial_gpus)
            for event in run_trial(trial.config, place):
                sweep.tick()
                if isinstance(event, Failure):
                    sweep.on_failure(trial.trial_id, event)
                elif not sweep.on_epoch(trial.trial_id, event.epoch, event.metrics, event.provenance):
                    break
                on_change()
            on_change()
    assert sweep.has_ended, "with one trial at a time, nothing to run means the end"
