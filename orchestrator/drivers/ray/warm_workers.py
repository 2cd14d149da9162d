"""Keep idle workers alive for the next trial."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

from ray.tune import PlacementGroupFactory

from orchestrator.drivers.ray.tune_internals import ActorCache

IDLE_TIMEOUT_S = 60.0
"""How long a worker stays without a trial. A new one takes ten seconds to start, but its node may be wanted back."""


class WarmWorkerPool:
    """Controls how many idle workers Tune keeps.

    By default Tune keeps one, and one more for each staged trial of the same kind. Workers that wait for the end of a
    search would be stopped, and started again for its final trials.
    """

    def __init__(self) -> None:
        self._allowed: Counter[PlacementGroupFactory] = Counter()
        self._last_all_busy = -math.inf

    def resize(self, cache: ActorCache | None, wanted: Mapping[PlacementGroupFactory, int]) -> None:
        """Allow that many idle workers of each kind; none once some have been idle for `IDLE_TIMEOUT_S`.

        Args:
            cache: Tune's own cache of workers; None where this version of Ray hides it, and nothing is done.
        """
        if cache is None:
            return

        now = time.monotonic()
        if cache.num_cached_objects == 0:
            self._last_all_busy = now
        if now - self._last_all_busy > IDLE_TIMEOUT_S:
            wanted = {}

        # Tune's cache can only be changed by a difference.
        for kind in {*self._allowed, *wanted}:
            num_wanted = wanted.get(kind, 0)
            cache.increase_max(kind, by=num_wanted - self._allowed[kind])
            self._allowed[kind] = num_wanted
