"""Translate between the trials of a sweep and Ray Tune's trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.drivers.activity import Activity
from orchestrator.drivers.ray.capacity import ClusterCapacity
from orchestrator.drivers.ray.cluster import ray_resources
from orchestrator.drivers.ray.messages import from_result, phase_of
from orchestrator.drivers.ray.tune_internals import worker_of
from orchestrator.drivers.report_batch import split_report
from orchestrator.study.trial import Failure, FailureCause
from orchestrator.sweep.sweep import Sweep

PREFETCHED_TRIALS = 1
"""Number of trials that Tune receives before a worker is free. A free worker then waits neither for the sampler nor for
Tune."""


class TuneBridge:
    """A sweep, and the Tune trials that run its trials.

    Tune calls it through the searcher, the scheduler and the callback in `driver.py`, all in one thread.

    Args:
        on_change: called after every change of a trial.
        activity: what trials do before the first epoch is noted here.
    """

    def __init__(
        self, sweep: Sweep, on_change: Callable[[], None], capacity: ClusterCapacity, activity: Activity
    ) -> None:
        self.sweep = sweep
        self.on_change = on_change
        self._capacity = capacity
        self._activity = activity
        self.trial_ids: dict[str, str] = {}
        """Trial id in the sweep, by Tune's id, of every trial that Tune has."""
        self.tune_trials: dict[str, Trial] = {}
        """Tune's trials, by Tune's id."""
        self._started: set[str] = set()
        """Tune's ids of trials that a worker has. The others are prefetched."""
        self._worker_freed = False
        """Whether a worker has become free for a prefetched trial since the last request for a trial."""
        self._last_failures: dict[str, Failure] = {}
        """By Tune's id, the failures of trials whose workers are about to end."""
        self._worker_kinds: set[PlacementGroupFactory] = set()
        """Resources of workers, as Tune requests them."""
        self.error: Exception | None = None
        """An error of the sweep itself. Tune would wrap it into an error of its own."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing. Tune pickles its parts for its own `restore`, which is never used."""
        return {}

    def next_config(self, tune_id: str) -> dict[str, Any] | str | None:
        """Return the config and the resources of the next trial.

        Returns:
            None if there is none at present; FINISHED if there will be no more.
        """
        # A free worker starts the prefetched trial first. The sampler proposes the trial after it meanwhile.
        if self._worker_freed:
            self._worker_freed = False
            return None

        trial = None
        if len(self.trial_ids) < self._capacity.num_trials() + PREFETCHED_TRIALS:
            self.sweep.gpu_allocator.num_gpus = self._capacity.num_gpus()
            trial = self.sweep.next_trial()
        if trial is None:
            return str(Searcher.FINISHED) if self.sweep.has_ended else None

        self.trial_ids[tune_id] = trial.trial_id
        self._activity.on_assign(trial.trial_id)
        self.on_change()
        resources = self.sweep.gpu_allocator.resources_for(trial)
        return {
            "config": dataclasses.asdict(trial.config),
            "cpus": resources.cpus,
            "gpus": resources.gpus,
            "required_device": self.sweep.device_kinds.required(trial.study),
            "resources": ray_resources(resources),
        }

    def on_start(self, tune_id: str) -> None:
        """Note that a worker starts a trial. The time limit for silent trials begins now."""
        if tune_id in self.trial_ids:
            self._started.add(tune_id)
            self.sweep.on_start(self.trial_ids[tune_id])

    def take_unstarted(self) -> list[Trial]:
        """Return prefetched Tune trials to cancel, if the sweep is stopping immediately; else none.

        Their trials in the sweep stay assigned. `Sweep.close` makes them WAITING.
        """
        if self.sweep.halt is None or not self.sweep.halt.interrupt_running:
            return []

        # Removed before Tune stops them: `on_end` would take them for trials that have lost their workers.
        prefetched = self.trial_ids.keys() - self._started
        for tune_id in prefetched:
            self.trial_ids.pop(tune_id)
        return [self.tune_trials.pop(tune_id) for tune_id in prefetched]

    def add(self, trial: Trial) -> None:
        """Keep a trial that Tune has created for a config of `next_config`."""
        assert trial.placement_group_factory is not None, "Tune sets it before it calls the scheduler"
        self.tune_trials[trial.trial_id] = trial
        self._worker_kinds.add(trial.placement_group_factory)

    def allowed_idle_workers(self) -> dict[PlacementGroupFactory, int]:
        """Return how many workers of each kind may stay without a trial.

        None may stay if a prefetched trial needs a worker of another kind, because they occupy its resources.
        """
        if self.sweep.has_ended:
            return {}

        prefetched = self.tune_trials.keys() & self.trial_ids.keys() - self._started
        required_kinds = {self.tune_trials[tune_id].placement_group_factory for tune_id in prefetched}
        return {kind: self._capacity.num_trials() for kind in self._worker_kinds if required_kinds <= {kind}}

    def on_result(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Pass a report of a worker to the sweep, and return whether the trial goes on."""
        trial_id = self.trial_ids[tune_id]
        phase = phase_of(result)
        if phase:
            self._activity.on_phase(trial_id, phase)
            self.on_change()
            return self.sweep.is_running(trial_id)

        goes_on = False
        with self._keeping_error():
            epochs, failure = split_report(from_result(result))
            # A worker is one epoch ahead, so a report may come after the trial has ended.
            if epochs:
                self._activity.on_epoch()
            if epochs and self.sweep.is_running(trial_id):
                goes_on = self.sweep.on_epochs(trial_id, epochs)

            if failure is not None and failure.ends_process:
                # Tune would give the worker another trial. Asked for more of this one, it exits.
                self._last_failures[tune_id] = failure
                goes_on = True
            elif failure is not None and self.sweep.is_running(trial_id):
                self.sweep.on_failure(trial_id, failure)
                goes_on = False
            self.on_change()
        return goes_on

    def on_end(self, tune_id: str, error: Exception | None = None) -> None:
        """Remove a Tune trial that has ended. If it is still running for the sweep, it has lost its worker."""
        trial_id = self.trial_ids.pop(tune_id)
        self._activity.on_end(trial_id)
        last_failure = self._last_failures.pop(tune_id, None)
        self.tune_trials.pop(tune_id, None)
        self._started.discard(tune_id)
        self._worker_freed = self.trial_ids.keys() > self._started

        with self._keeping_error():
            if self.sweep.is_running(trial_id):
                self.sweep.on_failure(trial_id, last_failure or failure_from(error))
                self.on_change()

    def tick(self) -> None:
        """Check for a stop request, and kill the workers of silent trials, which Tune then reports as lost."""
        silent = self.sweep.tick()
        for tune_id, trial_id in self.trial_ids.items():
            if trial_id in silent and tune_id in self.tune_trials:
                worker = worker_of(self.tune_trials[tune_id])
                if worker is not None:
                    ray.kill(worker)

    # Every call from Tune that can fail in the sweep is inside this context.
    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def failure_from(error: Exception | None) -> Failure:
    """Return the failure of a trial that lost its worker, given what Ray says about it."""
    if isinstance(error, OutOfMemoryError):
        return Failure(cause=FailureCause.MEMORY, error=f"OutOfMemoryError: its node ran out of memory.\n\n{error}")

    # A task error whose cause is an actor error means that the actor's process died, as below.
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayActorError):
        return Failure(cause=FailureCause.ERROR, error=f"{type(error.cause).__name__}: {error.cause}\n\n{error}")

    text = f"WorkerLost: its process or node died, or it was silent for too long.\n\n{error or ''}"
    return Failure(cause=FailureCause.LOST, error=text)
