"""Metrics of a driver for Prometheus, on this machine's loopback address alone.

    sptune_trials{sweep, state}                        trials in each state: waiting, running, complete, pruned, failed
    sptune_trials_planned{sweep}                       trials that the spec asks for
    sptune_trials_queued{sweep}                        planned trials that are neither finished nor running
    sptune_images_per_second{sweep}                    training images per second of all running trials
    sptune_mlflow_queued{sweep}                        trials and studies that MLflow lacks so far
    sptune_heartbeat_timestamp_seconds{sweep}          time of the driver's last heartbeat, in Unix seconds

Names are stable: dashboards and alerts hold them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.errors import UserError
from orchestrator.study.storage.lease import Lease
from orchestrator.study.summary import count_states
from orchestrator.study.trial import TrialState
from orchestrator.sweep.sweep import Sweep
from trainer.metric_names import TRAIN_IMAGES_PER_S

LOOPBACK = "127.0.0.1"


@contextmanager
def serve_metrics(port: int, sweep: Sweep, lease: Lease, num_unlogged: Callable[[], int]) -> Iterator[int]:
    """Serve the metrics of a sweep within this context, and give the port.

    Args:
        port: a port of the loopback address; 0 for any that is free.
        num_unlogged: returns how many trials and studies MLflow lacks. Any thread may call it.

    Raises:
        UserError: if the port cannot be used.
    """
    registry = CollectorRegistry()
    registry.register(SweepCollector(sweep, lease, num_unlogged))
    try:
        server, thread = start_http_server(port, LOOPBACK, registry)
    except OSError as error:
        raise UserError(
            f"--metrics {port}: the port cannot be used: {error.strerror}. Choose another, such as {port + 1}."
        ) from None

    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class SweepCollector(Collector):
    """Reads the metrics of a sweep when Prometheus asks, in the thread of the server."""

    def __init__(self, sweep: Sweep, lease: Lease, num_unlogged: Callable[[], int]) -> None:
        self._sweep = sweep
        self._lease = lease
        self._num_unlogged = num_unlogged

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        summaries = self._sweep.summaries()
        states = count_states(summaries)
        num_planned = sum(summary.num_planned for summary in summaries)

        # Studies that were stopped by a mistake start no more trials.
        queued = [
            summary.num_planned - summary.num_finished - summary.states[TrialState.RUNNING]
            for summary in summaries
            if summary.stop_reason is None
        ]
        images_per_s = sum(
            trial.last_metrics.get(TRAIN_IMAGES_PER_S, 0.0)
            for study in self._sweep.studies
            for trial in study.trials
            if trial.state is TrialState.RUNNING
        )

        by_state = GaugeMetricFamily("sptune_trials", "Trials in each state.", labels=["sweep", "state"])
        for state in TrialState:
            by_state.add_metric([self._sweep.spec.name, state.value], states[state])
        yield by_state

        yield self._gauge("sptune_trials_planned", "Trials that the spec asks for.", num_planned)
        yield self._gauge("sptune_trials_queued", "Planned trials that are neither finished nor running.", sum(queued))
        yield self._gauge("sptune_images_per_second", "Training images per second of running trials.", images_per_s)
        yield self._gauge("sptune_mlflow_queued", "Trials and studies that MLflow lacks.", self._num_unlogged())
        yield self._gauge(
            "sptune_heartbeat_timestamp_seconds",
            "Time of the driver's last heartbeat.",
            time.time() - self._lease.heartbeat_age_s,
        )

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, text, labels=["sweep"])
        gauge.add_metric([self._sweep.spec.name], value)
        return gauge
