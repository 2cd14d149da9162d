"""The Ray driver: runs a sweep as one run of Ray Tune.

Tune schedules, places and restarts trials; it decides nothing else. A searcher gives it the sweep's next trial, of any
study. A scheduler passes the epochs of each report to the sweep, and stops the trials that the sweep prunes or
interrupts.
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

from orchestrator.drivers.activity import Activity
from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.driver import ignore_change
from orchestrator.drivers.ray.bridge import TuneBridge
from orchestrator.drivers.ray.capacity import ClusterCapacity
from orchestrator.drivers.ray.cluster import check_resources_exist
from orchestrator.drivers.ray.tune_internals import SilentProgress, actor_cache, error_of, worker_of
from orchestrator.drivers.ray.warm_workers import WarmWorkerPool
from orchestrator.drivers.ray.worker import RunTrial, TrialWorker
from orchestrator.drivers.signals import stop_on_signal
from orchestrator.sweep.sweep import Sweep


class RayDriver:
    """Runs a sweep as one Tune run, on the Ray that this process is connected to.

    Args:
        context: where trials run. CPUs and GPU share are replaced by those of each trial.
        run_trial: what a worker does with a config. By default it trains (`trial_runner.run_trial`).
        activity: what trials do before the first epoch is noted here.
    """

    def __init__(
        self, context: TrialContext, run_trial: RunTrial | None = None, activity: Activity | None = None
    ) -> None:
        self._context = context
        self._run_trial = run_trial
        self._activity = activity or Activity()

    def run(self, sweep: Sweep, on_change: Callable[[], None] = ignore_change) -> None:
        """Run trials until the sweep has ended. See `Driver`.

        Raises:
            ClusterError: if no node has what a trial needs, and the cluster cannot grow.
            KeyboardInterrupt: at the second Ctrl-C.
        """
        resources = {backbone: sweep.spec.resources.for_backbone(backbone) for backbone in sweep.spec.backbones}
        if sweep.spec.cluster.workers is None:
            check_resources_exist(resources)
        capacity = ClusterCapacity(
            lambda: [sweep.gpu_allocator.smallest_resources(backbone) for backbone in resources],
            sweep.spec.cluster.workers,
        )

        # By default Tune stages a single pending trial, and a large cluster would start one worker at a time.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(capacity.num_trials())
        bridge = TuneBridge(sweep, on_change, capacity, self._activity)
        with tempfile.TemporaryDirectory(prefix="sptune-tune-") as scratch, stop_on_signal(sweep):
            try:
                self._tuner(bridge, sweep.spec.name, scratch).fit()
            except TuneError:
                if bridge.error is not None:
                    raise bridge.error from None
                raise

    def _tuner(self, bridge: TuneBridge, name: str, scratch: str) -> tune.Tuner:
        trainable = tune.with_resources(
            tune.with_parameters(TrialWorker, context=self._context, run_trial=self._run_trial),
            lambda config: PlacementGroupFactory([config["resources"]]),
        )
        # `ps` shows this name: people search for it when they want to end a worker.
        trainable.__qualname__ = TrialWorker.__name__

        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_SweepSearcher(bridge),
                scheduler=_SweepScheduler(bridge),
                num_samples=-1,
                # A worker keeps its backbone and images for the next trial.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=scratch,
                verbose=0,
                callbacks=[_StepCallback(bridge), SilentProgress()],
                # The trainer writes its own checkpoints.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )


class _StepCallback(tune.Callback):
    """Checks the sweep in each iteration of Tune's loop, about ten times a second."""

    def __init__(self, bridge: TuneBridge) -> None:
        self._bridge = bridge

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Check for a stop request and for silent trials."""
        self._bridge.tick()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a worker starts a trial."""
        self._bridge.on_start(trial.trial_id)


class _SweepSearcher(Searcher):
    """Gives Tune the sweep's next trial."""

    def __init__(self, bridge: TuneBridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """Return the next config; None if there is none at present; FINISHED if there will be no more."""
        return self._bridge.next_config(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a trial has ended, for any reason."""
        if trial_id in self._bridge.trial_ids:
            self._bridge.on_end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study database has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study database has everything."""


class _SweepScheduler(FIFOScheduler):
    """Passes each report to the sweep."""

    def __init__(self, bridge: TuneBridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._warm_workers = WarmWorkerPool()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose no trial, so that Tune starts pending trials in their order.

        FIFO's own choice iterates over every trial since the start of the sweep.
        """
        for trial in self._bridge.take_unstarted():
            tune_controller.stop_trial(trial)
        self._warm_workers.resize(actor_cache(tune_controller), self._bridge.allowed_idle_workers())

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep Tune's trial, to be able to kill its worker."""
        self._bridge.add(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Process a lost worker, with Ray's error: the searcher is notified later, without the error."""
        if trial.trial_id in self._bridge.trial_ids:
            self._bridge.on_end(trial.trial_id, error_of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Pass a report to the sweep, and return whether Tune continues or stops the trial."""
        goes_on = self._bridge.on_result(trial.trial_id, result)

        # The worker is one epoch ahead. Cancelled now, it does not train that epoch to its end.
        worker = worker_of(trial)
        if not goes_on and worker is not None:
            worker.cleanup.remote()

        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
