"""The one door to Ray: drives a `Sweep` through a single Tune run.

Tune schedules, places and restarts; it decides nothing. Our `Searcher` hands it the sweep's next trial of any study,
our scheduler passes each epoch to the sweep and stops what the sweep gives up.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is the command line's to answer
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.errors import ClusterError
from orchestrator.home import Workplace
from orchestrator.results import Failure
from orchestrator.sweep import Sweep


def drive(sweep: Sweep, workplace: Workplace, on_change: Callable[[], None], address: str | None) -> None:
    """Run until the sweep is done, on the cluster at `address` or on a Ray of this machine that ends with it.

    Raises:
        ClusterError: if there is no cluster at the address, or it has not what one trial needs.
    """
    _connect(address)
    try:
        slots = _slots(workplace)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
        bridge = _Bridge(sweep, on_change)
        trainable = tune.with_resources(
            tune.with_parameters(_trainable, workplace=workplace), {"cpu": workplace.cpus, "gpu": workplace.gpus}
        )
        with tempfile.TemporaryDirectory(prefix="sptune-tune-") as scratch:
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_SweepSearcher(bridge),
                    scheduler=_SweepScheduler(bridge),
                    num_samples=-1,
                    max_concurrent_trials=slots,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(name=sweep.spec.name, storage_path=scratch, verbose=0),
            ).fit()
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address is not None and (place := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}. Start one, or leave --address out.") from None


def _slots(workplace: Workplace) -> int:
    """How many trials fit the cluster at once."""
    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
    if cpus < workplace.cpus or gpus < workplace.gpus:
        raise ClusterError(
            f"a trial asks for {workplace.cpus} CPUs and {workplace.gpus:g} GPUs, and Ray has {cpus:g} and {gpus:g}. "
            "Lower `resources` in the spec, or give --address of a larger cluster."
        )
    return int(min(cpus // workplace.cpus, gpus // workplace.gpus if workplace.gpus else cpus))


def _trainable(config: dict[str, Any], workplace: Workplace) -> None:
    """Runs in a worker process, for one trial after another."""
    from orchestrator.worker import run_trial  # torch is a worker's business

    for event in run_trial(config, workplace):
        if isinstance(event, Failure):
            tune.report({"failure": event.error, "may_pass": event.may_pass})
        else:
            tune.report({"epoch": event.epoch, "metrics": [*event.metrics.items()]})  # Tune flattens dicts


class _Bridge:
    """The sweep, and which of its trials each of Tune's trials is."""

    def __init__(self, sweep: Sweep, on_change: Callable[[], None]) -> None:
        self.sweep = sweep
        self.on_change = on_change
        self.ours: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its parts for a `restore` that is never used: the record is what a sweep goes on from."""
        return {}

    def on_result(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Pass on what a worker reported; whether it goes on."""
        trial_id = self.ours[tune_id]
        go_on = False
        if "failure" in result:
            self.sweep.on_failure(trial_id, Failure(error=result["failure"], may_pass=result["may_pass"]))
        elif self.sweep.is_under_way(trial_id):
            go_on = self.sweep.on_epoch(trial_id, result["epoch"], dict(result["metrics"]))
        self.on_change()
        return go_on

    def on_end(self, tune_id: str) -> None:
        """A trial that ended without a word lost its worker."""
        trial_id = self.ours.pop(tune_id)
        if self.sweep.is_under_way(trial_id):
            self.sweep.on_failure(trial_id, Failure(error="WorkerLost: the worker process died.", may_pass=True))
            self.on_change()


class _SweepSearcher(Searcher):
    """Hands Tune the sweep's next trial."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial; None to be asked again, FINISHED when the sweep is done."""
        trial = self._bridge.sweep.next_trial()
        if trial is None:
            return Searcher.FINISHED if self._bridge.sweep.done else None
        self._bridge.ours[trial_id] = trial.trial_id
        self._bridge.on_change()
        return trial.config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial's worker is free, whatever happened."""
        if trial_id in self._bridge.ours:
            self._bridge.on_end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the record has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the record has it all."""


class _SweepScheduler(FIFOScheduler):
    """Passes each epoch to the sweep."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP once the sweep has given the trial up or has all of it."""
        go_on = self._bridge.on_result(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)
