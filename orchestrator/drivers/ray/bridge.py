"""Translate between the trials of a sweep and Ray Tune's trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.drivers.ray.capacity import Slots
from orchestrator.drivers.ray.cluster import resources_of
from orchestrator.study.trial import Cause, Failure
from orchestrator.sweep.sweep import Sweep

STAGED = 1
"""Trials that are with Tune before a worker is free for them: so it waits neither for the sampler nor for Tune."""


class _Bridge:
    """The sweep, and which of its trials each of Tune's trials is."""

    def __init__(self, sweep: Sweep, on_change: Callable[[], None], slots: Slots) -> None:
        self.sweep = sweep
        self._slots = slots
        self.on_change = on_change
        self.ours: dict[str, str] = {}
        self.theirs: dict[str, Trial] = {}
        self._begun: set[str] = set()
        """Of `ours`, those that a worker has; the others are staged."""
        self._freed = False
        """A worker has come free for a staged trial since a trial was last asked for."""
        self._kinds: set[PlacementGroupFactory] = set()
        """What workers hold of a machine."""
        self.error: Exception | None = None
        """What went wrong in the sweep itself, which Tune would hide in an error of its own."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its parts for a `restore` that is never used: the record is what a sweep goes on from."""
        return {}

    def next(self, tune_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None to be asked again, FINISHED when no more will come."""
        if self._freed:  # the staged trial begins first; the one after it is thought out meanwhile
            self._freed = False
            return None
        trial = self.sweep.next_trial() if len(self.ours) < self._slots.count() + STAGED else None
        if trial is None:
            return str(Searcher.FINISHED) if self.sweep.ended else None
        self.ours[tune_id] = trial.trial_id
        self.on_change()
        share = self.sweep.sharing.of(trial)
        return {"config": trial.config, "cpus": share.cpus, "gpus": share.gpus, "resources": resources_of(share)}

    def begin(self, tune_id: str) -> None:
        """A worker has it now: its silence counts from here."""
        if tune_id in self.ours:
            self._begun.add(tune_id)
            self.sweep.on_start(self.ours[tune_id])

    def withdrawn(self) -> list[Trial]:
        """Trials that are not to begin any more, because the sweep stops at once: it keeps them for another day."""
        if self.sweep.halt is None or not self.sweep.halt.at_once:
            return []
        staged = self.ours.keys() - self._begun
        for tune_id in staged:
            self.ours.pop(tune_id)
        return [self.theirs.pop(tune_id) for tune_id in staged]

    def add(self, trial: Trial) -> None:
        """Tune has made a trial of its own for one of ours."""
        assert trial.placement_group_factory is not None, "Tune makes it before it tells"
        self.theirs[trial.trial_id] = trial
        self._kinds.add(trial.placement_group_factory)

    def may_rest(self) -> dict[PlacementGroupFactory, int]:
        """How many workers of each kind may stay without a trial: none where a staged trial needs another kind."""
        if self.sweep.ended:
            return {}
        staged = self.theirs.keys() & self.ours.keys() - self._begun
        asked = {self.theirs[tune_id].placement_group_factory for tune_id in staged}
        return {kind: self._slots.count() for kind in self._kinds if asked <= {kind}}

    def on_result(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Pass on what a worker reported; whether it goes on."""
        trial_id = self.ours[tune_id]
        go_on = False
        with self._noting_errors():
            if "failure" in result:
                cause = Cause(result["cause"])
                failure = Failure(cause=cause, error=result["failure"], seconds=result["seconds"])
                self.sweep.on_failure(trial_id, failure)
            elif self.sweep.is_under_way(trial_id):
                metrics, facts = dict(result["metrics"]), dict(result["facts"])
                go_on = self.sweep.on_epoch(trial_id, result["epoch"], metrics, facts)
            self.on_change()
        return go_on

    def on_end(self, tune_id: str, error: Exception | None = None) -> None:
        """A trial that ended without a word lost its worker."""
        trial_id = self.ours.pop(tune_id)
        self.theirs.pop(tune_id, None)
        self._begun.discard(tune_id)
        self._freed = self.ours.keys() > self._begun
        with self._noting_errors():
            if self.sweep.is_under_way(trial_id):
                self.sweep.on_failure(trial_id, _loss(error))
                self.on_change()

    def tick(self) -> None:
        """Kill the workers of trials that are silent for too long: Tune then reports them lost."""
        silent = self.sweep.tick()
        for tune_id in [tune_id for tune_id, trial_id in self.ours.items() if trial_id in silent]:
            actor = self.theirs[tune_id].temporary_state.ray_actor if tune_id in self.theirs else None
            if actor is not None:
                ray.kill(actor)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def _loss(error: Exception | None) -> Failure:
    """How a worker was lost, from what Ray says of it."""
    if isinstance(error, OutOfMemoryError):
        return Failure(cause=Cause.MEMORY, error=f"OutOfMemoryError: its node had no memory left.\n\n{error}")
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayActorError):
        return Failure(cause=Cause.ERROR, error=f"{type(error.cause).__name__}: {error.cause}\n\n{error}")
    return Failure(cause=Cause.LOST, error=f"WorkerLost: its process or node died, or was silent.\n\n{error or ''}")
