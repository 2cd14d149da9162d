"""Drives a sweep on learning curves and a virtual clock, without training: what would this spec have done?

The curves are recorded ones of an earlier sweep, or synthetic ones. Schedulers, budgets and restarts can be tried
over thousands of trials in seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.drivers.driver import ignore_change
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.study import Study
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.sweep import Sweep
from trainer.metric_names import EPOCH_SECONDS, TRAIN_LOSS

Curve = Iterator[tuple[Epoch | Failure, float]]
"""What a trial tells, each with the seconds until then since the last."""
Curves = Callable[[Trial], Curve]


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ReplayDriver:
    """Runs a sweep on learning curves and a virtual clock.

    Args:
        curves: the learning curve of each trial.
        clock: the clock that the sweep was opened with.
        workers: trials at once.
        until: virtual seconds after which the driver stops as if it were killed.
    """

    def __init__(self, curves: Curves, clock: Clock, *, workers: int, until: float = math.inf) -> None:
        self._curves = curves
        self._clock = clock
        self._workers = workers
        self._until = until
        self._num_events = 0
        self._events: list[tuple[float, int, str, Epoch | Failure, Curve]] = []
        self.busy_seconds = 0.0
        """Worker seconds in which a trial ran."""

    def run(self, sweep: Sweep, on_change: Callable[[], None] = ignore_change) -> None:
        """Run trials until the sweep has ended, or until the given time. See `Driver`."""
        while True:
            while len(self._events) < self._workers and (trial := sweep.next_trial()) is not None:
                self._expect(trial.trial_id, self._curves(trial))
            if not self._events or self._events[0][0] > self._until:
                return

            self._clock.now, _, trial_id, event, curve = heapq.heappop(self._events)
            sweep.tick()
            if isinstance(event, Failure):
                sweep.on_failure(trial_id, event)
            elif sweep.on_epoch(trial_id, event.epoch, event.metrics, event.provenance):
                self._expect(trial_id, curve)
            on_change()

    def _expect(self, trial_id: str, curve: Curve) -> None:
        event, seconds = next(curve)
        self.busy_seconds += seconds
        # The number breaks ties of time, so that events never compare each other.
        self._num_events += 1
        heapq.heappush(self._events, (self._clock.now + seconds, self._num_events, trial_id, event, curve))


class SyntheticCurves:
    """Learning curves of made-up tasks: each has its own best place in the space, near its group's.

    Accuracy rises towards a height that falls with the distance from that place, with noise that depends on the
    config alone.

    Args:
        plans: the studies, whose spaces the places are in.
        seconds_per_epoch: on the virtual clock.
        spread: how far tasks of a group lie from each other, as a share of the space's width.
    """

    def __init__(
        self, plans: Sequence[StudyPlan], seconds_per_epoch: float = 10.0, spread: float = 0.1, seed: int = 0
    ) -> None:
        self._plans = {plan.key: plan for plan in plans}
        self._seconds = seconds_per_epoch
        self._spread = spread
        self._seed = seed

    def __call__(self, trial: Trial) -> Curve:
        """The curve of a trial."""
        height = self.height(trial)
        noise = _draws(self._seed, trial.trial_id)
        epochs = trial.config.epochs
        for epoch in range(1, epochs + 1):
            accuracy = height * (1 - math.exp(-4 * epoch / epochs)) + 0.01 * (next(noise) - 0.5)
            split = trial.config.eval_split
            metrics = {TRAIN_LOSS: 2.0 * (1 - accuracy), EPOCH_SECONDS: self._seconds}
            if split == "val" or epoch == epochs:
                metrics[f"{split}/accuracy"] = min(1.0, max(0.0, accuracy))
            yield Epoch(epoch=epoch, metrics=metrics), self._seconds

    def height(self, trial: Trial) -> float:
        """The accuracy that a trial would reach with endless epochs."""
        plan = self._plans[trial.study]
        config, distance = dataclasses.asdict(trial.config), 0.0
        for name, dimension in plan.space.items():
            if dimension.is_active(config):
                group, own = (next(_draws(self._seed, f"{name} {key}")) for key in (plan.group, plan.task))
                place = min(1.0, max(0.0, group + self._spread * (own - 0.5) * 2))
                distance += (unit(dimension, config[name]) - place) ** 2
        return 0.3 + 0.6 * math.exp(-3 * distance)


class RecordedCurves:
    """Curves of an earlier sweep: of the same config where it was tried, else of the nearest in the same study.

    Args:
        studies: of the earlier sweep, with at least one trial that ran to its end each.

    Raises:
        ValueError: for a trial of a study of which the record has none with as many epochs that ran to its end.
    """

    def __init__(self, studies: Sequence[Study]) -> None:
        self._plans = {study.plan.key: study.plan for study in studies}
        self._trials = {
            (study.plan.key, phase): [trial for trial in trials if len(trial.epochs) == trial.config.epochs]
            for study in studies
            for phase, trials in (("search", study.search_table.trials), ("final", study.final_table.trials))
        }

    def __call__(self, trial: Trial) -> Curve:
        """The curve of a trial."""
        epochs, seed = trial.config.epochs, trial.config.seed
        known = [one for one in self._trials.get((trial.study, trial.phase), []) if len(one.epochs) == epochs]
        if not known:
            raise ValueError(
                f"the record has no {trial.phase} trial of {trial.study} that ran to its end of {epochs} epochs."
            )
        nearest = min(known, key=lambda other: (self._distance(trial, other), other.config.seed != seed))
        for epoch, metrics in enumerate(nearest.epochs, start=1):
            yield Epoch(epoch=epoch, metrics=metrics), metrics[EPOCH_SECONDS]

    def _distance(self, one: Trial, other: Trial) -> float:
        configs = [dataclasses.asdict(trial.config) for trial in (one, other)]
        distance = 0.0
        for name, dimension in self._plans[one.study].space.items():
            active = [dimension.is_active(config) for config in configs]
            if all(active):
                distance += (unit(dimension, configs[0][name]) - unit(dimension, configs[1][name])) ** 2
            elif any(active):
                distance += 1.0
        return distance


def unit(dimension: Dimension, value: Any) -> float:
    """Where in its dimension a value lies, from 0 to 1."""
    match dimension:
        case FloatRange() | IntRange():
            low, high, at = (math.log(v) if dimension.log else v for v in (dimension.low, dimension.high, value))
            return (at - low) / (high - low)
        case Choice(values=values):
            return values.index(value) / max(1, len(values) - 1) if value in values else 0.0


def _draws(seed: int, what: str) -> Iterator[float]:
    """Numbers from 0 to 1 that depend on nothing but these words."""
    draw = random.Random(hashlib.sha256(f"{seed} {what}".encode()).digest())
    while True:
        yield draw.random()
