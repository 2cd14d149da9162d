"""Training speed of trials that share a GPU, and how many of them should."""

from __future__ import annotations

import statistics

NUM_TRIALS = 3
"""Trials that measure a number of trials on a GPU. One is not enough: speed depends on params, too."""
NUM_EPOCHS = 3
"""Epochs of a trial that measure it. The median of three ignores one that something else has slowed down."""
MIN_GAIN = 1.05
"""Factor by which one more trial must raise the images per second of a GPU. Less is noise, and costs memory."""


class SharedSpeed:
    """Images per second of trials of one kind on one kind of GPU, by the number of trials on the GPU.

    The first trials that measure a number decide about it. So the answer does not swing with the noise of later ones.
    """

    def __init__(self) -> None:
        # By number of trials on the GPU: the speeds of measured trials, and the epochs of those that still measure.
        self._speeds: dict[int, list[float]] = {}
        self._epochs: dict[int, dict[str, list[float]]] = {}

    def add(self, trial_id: str, num_trials: int, images_per_s: float) -> None:
        """Add an epoch of a trial that was one of `num_trials` on its GPU."""
        speeds = self._speeds.setdefault(num_trials, [])
        if len(speeds) == NUM_TRIALS:
            return

        epochs = self._epochs.setdefault(num_trials, {}).setdefault(trial_id, [])
        epochs.append(images_per_s)
        # Epochs after these do not count: each trial is measured once.
        if len(epochs) == NUM_EPOCHS:
            speeds.append(statistics.median(epochs))

    def total(self, num_trials: int) -> float | None:
        """Return the images per second of `num_trials` together; None until enough trials have measured it."""
        speeds = self._speeds.get(num_trials, [])
        return num_trials * statistics.median(speeds) if len(speeds) == NUM_TRIALS else None

    def best_number(self, limit: int) -> int:
        """Return how many trials to put on a GPU next, at most `limit`.

        Numbers are tried from 1 upwards, as long as each is faster than the one before. A number that is not yet
        measured is returned, so that the next trials measure it.
        """
        number = 1
        while number < limit:
            total = self.total(number)
            if total is None:
                return number

            next_total = self.total(number + 1)
            if next_total is not None and next_total < MIN_GAIN * total:
                return number
            number += 1
            if next_total is None:
                return number
        return number
