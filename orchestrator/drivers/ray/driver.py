"""The door to Ray Tune: drives a `Sweep` through a single run.

Tune schedules, places and restarts; it decides nothing. Our `Searcher` hands it the sweep's next trial of any study,
our scheduler passes each epoch to the sweep and stops what the sweep gives up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.bridge import TuneBridge
from orchestrator.drivers.ray.capacity import ClusterCapacity
from orchestrator.drivers.ray.cluster import check_resources_exist
from orchestrator.drivers.ray.warm_workers import WarmWorkerPool
from orchestrator.drivers.ray.worker import RunTrial, TrialWorker
from orchestrator.drivers.signals import stop_on_signal
from orchestrator.sweep.sweep import Sweep


def run_sweep(
    sweep: Sweep,
    context: TrialContext,
    on_change: Callable[[], None],
    run_trial: RunTrial | None = None,
) -> None:
    """Run until the sweep has ended, on the Ray that this process is connected to.

    Args:
        run_trial: what a worker does with a config; by default it trains (`worker.run_trial`).

    Raises:
        ClusterError: if no node has what a trial needs, and the cluster is not said to grow.
        KeyboardInterrupt: if it was told twice to stop.
    """
    shares = {backbone: sweep.spec.resources.for_backbone(backbone) for backbone in sweep.spec.backbones}
    if sweep.spec.cluster.workers is None:
        check_resources_exist(shares)
    slots = ClusterCapacity([*shares.values()], sweep.spec.cluster.workers)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.num_trials())
    bridge = TuneBridge(sweep, on_change, slots)
    trainable = tune.with_resources(
        tune.with_parameters(TrialWorker, workplace=context, run_trial=run_trial),
        lambda config: PlacementGroupFactory([config["resources"]]),
    )
    trainable.__qualname__ = TrialWorker.__name__  # what `ps` shows of a worker, for who wants to end it
    with tempfile.TemporaryDirectory(prefix="sptune-tune-") as scratch, stop_on_signal(sweep):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_SweepSearcher(bridge),
                scheduler=_SweepScheduler(bridge),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=sweep.spec.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[_StepCallback(bridge)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the trainer keeps its own
            ),
        )
        try:
            tuner.fit()
        except TuneError:
            if bridge.error is not None:
                raise bridge.error from None
            raise


class _StepCallback(tune.Callback):
    """Looks at the sweep as often as Tune turns round, some ten times a second."""

    def __init__(self, bridge: TuneBridge) -> None:
        self._bridge = bridge

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See what is silent, and whether someone asked to stop."""
        self._bridge.tick()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker has it now."""
        self._bridge.on_start(trial.trial_id)


class _SweepSearcher(Searcher):
    """Hands Tune the sweep's next trial."""

    def __init__(self, bridge: TuneBridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None to be asked again, FINISHED when no more will come."""
        return self._bridge.next_config(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial's worker is free, whatever happened."""
        if trial_id in self._bridge.trial_ids:
            self._bridge.on_end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the record has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the record has it all."""


class _SweepScheduler(FIFOScheduler):
    """Passes each epoch to the sweep."""

    def __init__(self, bridge: TuneBridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._resting = WarmWorkerPool()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune starts what is pending in its order; FIFO's own choice walks over every trial there ever was."""
        for trial in self._bridge.take_unstarted():
            tune_controller.stop_trial(trial)
        self._resting.resize(tune_controller._tune_controller._actor_cache, self._bridge.allowed_idle_workers())

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Know Tune's trial, to be able to kill its worker."""
        self._bridge.add(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """What Ray says of a lost worker: asked here, before the searcher is told without it."""
        if trial.trial_id in self._bridge.trial_ids:
            self._bridge.on_end(trial.trial_id, trial.get_pickled_error())

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP once the sweep has given the trial up or has all of it: its worker is one epoch ahead."""
        go_on = self._bridge.on_result(trial.trial_id, result)
        if not go_on and (actor := trial.temporary_state.ray_actor) is not None:
            actor.cleanup.remote()
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)
