"""Keep idle workers alive for the next trial."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.tune import PlacementGroupFactory

IDLE_TIMEOUT_S = 60.0
"""How long workers stay that have no trial: a new one takes ten seconds to start, and a node may be wanted back."""


class WarmWorkerPool:
    """Workers without a trial that stay for the next one, by the count that Tune's cache of workers goes by.

    By itself, the cache keeps one, and as many of a kind as trials of it are staged: those that wait for the end of a
    search would be ended, and started anew for its final trials.
    """

    def __init__(self) -> None:
        self._kept: Counter[PlacementGroupFactory] = Counter()
        self._none_rested = -math.inf

    def resize(self, cache: Any, wanted: Mapping[PlacementGroupFactory, int]) -> None:
        """Let so many of each kind stay; none, once some have rested for as long as they may."""
        now = time.monotonic()
        if cache.num_cached_objects == 0:
            self._none_rested = now
        if now - self._none_rested > IDLE_TIMEOUT_S:
            wanted = {}
        for kind in {*self._kept, *wanted}:
            cache.increase_max(kind, by=wanted.get(kind, 0) - self._kept[kind])
            self._kept[kind] = wanted.get(kind, 0)
