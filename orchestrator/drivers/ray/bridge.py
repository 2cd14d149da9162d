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

from orchestrator.drivers.ray.capacity import ClusterCapacity
from orchestrator.drivers.ray.cluster import ray_resources
from orchestrator.drivers.ray.tune_internals import worker_of
from orchestrator.study.trial import Failure, FailureCause
from orchestrator.sweep.sweep import Sweep

PREFETCHED_TRIALS = 1
"""Trials that are with Tune before a worker is free for them: so it waits neither for the sampler nor for Tune."""


class TuneBridge:
    """The sweep, and which of its trials each of Tune's trials is."""

    def __init__(self, sweep: Sweep, on_change: Callable[[], None], slots: ClusterCapacity) -> None:
        self.sweep = sweep
        self._capacity = slots
        self.on_change = on_change
        self.trial_ids: dict[str, str] = {}
        self.tune_trials: dict[str, Trial] = {}
        self._started: set[str] = set()
        """Of `ours`, those that a worker has; the others are staged."""
        self._worker_freed = False
        """A worker has come free for a staged trial since a trial was last asked for."""
        self._worker_kinds: set[PlacementGroupFactory] = set()
        """What workers hold of a machine."""
        self.error: Exception | None = None
        """What went wrong in the sweep itself, which Tune would hide in an error of its own."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its parts for a `restore` that is never used: the record is what a sweep goes on from."""
        return {}

    def next_config(self, tune_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None to be asked again, FINISHED when no more will come."""
        if self._worker_freed:  # the staged trial begins first; the one after it is thought out meanwhile
            self._worker_freed = False
            return None
        trial = (
            self.sweep.next_trial() if len(self.trial_ids) < self._capacity.num_trials() + PREFETCHED_TRIALS else None
        )
        if trial is None:
            return str(Searcher.FINISHED) if self.sweep.has_ended else None
        self.trial_ids[tune_id] = trial.trial_id
        self.on_change()
        share = self.sweep.gpu_allocator.resources_for(trial)
        return {
            "config": dataclasses.asdict(trial.config),
            "cpus": share.cpus,
            "gpus": share.gpus,
            "resources": ray_resources(share),
        }

    def on_start(self, tune_id: str) -> None:
        """A worker has it now: its silence counts from here."""
        if tune_id in self.trial_ids:
            self._started.add(tune_id)
            self.sweep.on_start(self.trial_ids[tune_id])

    def take_unstarted(self) -> list[Trial]:
        """Trials that are not to begin any more, because the sweep stops at once: it keeps them for another day."""
        if self.sweep.halt is None or not self.sweep.halt.interrupt_running:
            return []
        staged = self.trial_ids.keys() - self._started
        for tune_id in staged:
            self.trial_ids.pop(tune_id)
        return [self.tune_trials.pop(tune_id) for tune_id in staged]

    def add(self, trial: Trial) -> None:
        """Tune has made a trial of its own for one of ours."""
        assert trial.placement_group_factory is not None, "Tune makes it before it tells"
        self.tune_trials[trial.trial_id] = trial
        self._worker_kinds.add(trial.placement_group_factory)

    def allowed_idle_workers(self) -> dict[PlacementGroupFactory, int]:
        """How many workers of each kind may stay without a trial: none where a staged trial needs another kind."""
        if self.sweep.has_ended:
            return {}
        staged = self.tune_trials.keys() & self.trial_ids.keys() - self._started
        asked = {self.tune_trials[tune_id].placement_group_factory for tune_id in staged}
        return {kind: self._capacity.num_trials() for kind in self._worker_kinds if asked <= {kind}}

    def on_result(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Pass on what a worker reported; whether it goes on."""
        trial_id = self.trial_ids[tune_id]
        go_on = False
        with self._noting_errors():
            if "failure" in result:
                cause = FailureCause(result["cause"])
                failure = Failure(cause=cause, error=result["failure"], seconds=result["seconds"])
                self.sweep.on_failure(trial_id, failure)
            elif self.sweep.is_running(trial_id):
                metrics, facts = dict(result["metrics"]), dict(result["facts"])
                go_on = self.sweep.on_epoch(trial_id, result["epoch"], metrics, facts)
            self.on_change()
        return go_on

    def on_end(self, tune_id: str, error: Exception | None = None) -> None:
        """A trial that ended without a word lost its worker."""
        trial_id = self.trial_ids.pop(tune_id)
        self.tune_trials.pop(tune_id, None)
        self._started.discard(tune_id)
        self._worker_freed = self.trial_ids.keys() > self._started
        with self._noting_errors():
            if self.sweep.is_running(trial_id):
                self.sweep.on_failure(trial_id, failure_from(error))
                self.on_change()

    def tick(self) -> None:
        """Kill the workers of trials that are silent for too long: Tune then reports them lost."""
        silent = self.sweep.tick()
        for tune_id in [tune_id for tune_id, trial_id in self.trial_ids.items() if trial_id in silent]:
            actor = worker_of(self.tune_trials[tune_id]) if tune_id in self.tune_trials else None
            if actor is not None:
                ray.kill(actor)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def failure_from(error: Exception | None) -> Failure:
    """How a worker was lost, from what Ray says of it."""
    if isinstance(error, OutOfMemoryError):
        return Failure(cause=FailureCause.MEMORY, error=f"OutOfMemoryError: its node had no memory left.\n\n{error}")
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayActorError):
        return Failure(cause=FailureCause.ERROR, error=f"{type(error.cause).__name__}: {error.cause}\n\n{error}")
    return Failure(
        cause=FailureCause.LOST, error=f"WorkerLost: its process or node died, or was silent.\n\n{error or ''}"
    )
