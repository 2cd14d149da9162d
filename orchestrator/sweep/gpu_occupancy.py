"""Which trials are on which GPU, as far as their epochs tell."""

from __future__ import annotations

import math
from collections.abc import Mapping

REPORT_DELAY_S = 5.0
"""Longest time between the end of an epoch and its report, which may hold several epochs."""
FULL = 0.99
"""Sum of shares from which on a GPU has no room for another trial. Shares such as 1/3 are rounded."""


class GpuOccupancy:
    """The trials on each GPU.

    A trial reports its GPU with its first epoch. Before that, it may be on any GPU that has room. So the number of
    trials on a GPU is known only while the shares of those that have reported fill it.
    """

    def __init__(self) -> None:
        self._shares: dict[str, dict[str, float]] = {}
        self._changed_at: dict[str, float] = {}

    def add(self, trial_id: str, gpu: str, share: float, now: float) -> None:
        """Note that a trial is on a GPU. Seconds are of any clock."""
        trials = self._shares.setdefault(gpu, {})
        if trial_id not in trials:
            trials[trial_id] = share
            self._changed_at[gpu] = now

    def remove(self, trial_id: str, now: float) -> None:
        """Note that a trial has ended, wherever it was."""
        for gpu, trials in self._shares.items():
            if trials.pop(trial_id, None) is not None:
                self._changed_at[gpu] = now

    def num_trials(self, gpu: str, seconds: float, now: float) -> int | None:
        """Return how many trials were on a GPU during an epoch of that length; None if that is not certain."""
        trials: Mapping[str, float] = self._shares.get(gpu, {})
        is_full = sum(trials.values()) >= FULL
        has_changed = self._changed_at.get(gpu, math.inf) > now - seconds - REPORT_DELAY_S
        return len(trials) if is_full and not has_changed else None
