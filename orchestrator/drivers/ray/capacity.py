"""Capacity of the cluster: how many trials may be with Ray Tune at the same time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from orchestrator.drivers.ray.cluster import nodes, num_trials_that_fit
from orchestrator.spec.resources import TrialResources

REFRESH_S = 5.0
"""Seconds between two queries of the nodes. Tune asks for the capacity several times a second."""


class ClusterCapacity:
    """Number of trials that fit the cluster.

    Args:
        resources: returns those of one trial, for each backbone. With `gpus: auto` they change during a sweep.
        workers: the number of trials that a growing cluster will fit; None to count what fits the present nodes.
    """

    def __init__(self, resources: Callable[[], Sequence[TrialResources]], workers: int | None) -> None:
        self._resources = resources
        self._workers = workers
        self._num_trials = 0
        self._num_gpus = 0
        self._refreshed_at = -math.inf

    def num_trials(self) -> int:
        """Return how many of the smallest trials fit at the same time. Some of the larger ones must wait then."""
        self._refresh()
        return self._num_trials

    def num_gpus(self) -> int:
        """Return how many GPUs the present nodes have."""
        self._refresh()
        return self._num_gpus

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed_at <= REFRESH_S:
            return

        present = nodes()
        fitting = max(num_trials_that_fit(resources, present) for resources in self._resources())
        # At least 1: with no trial at Tune, a cluster that grows on demand would never start a node.
        self._num_trials = max(1, self._workers or fitting)
        self._num_gpus = int(sum(node.resources.get("GPU", 0) for node in present))
        self._refreshed_at = time.monotonic()
