"""How many trials are with Ray Tune at once, and how many workers stay with it that have none."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from orchestrator.drivers.ray.cluster import nodes, num_trials_that_fit
from orchestrator.spec.resources import TrialResources

REFRESH_S = 5.0
"""How often it is asked which nodes there are."""


class ClusterCapacity:
    """How many trials may be with Tune at once: as many as fit the nodes that are there, or come to be."""

    def __init__(self, shares: Sequence[TrialResources], workers: int | None) -> None:
        self._shares = shares
        self._workers = workers
        self._count = 0
        self._looked = -math.inf

    def num_trials(self) -> int:
        """Of the smallest trials; of larger ones some wait for their turn."""
        if time.monotonic() - self._looked > REFRESH_S:
            there = nodes()
            self._count = max(1, self._workers or max(num_trials_that_fit(share, there) for share in self._shares))
            self._looked = time.monotonic()
        return self._count
