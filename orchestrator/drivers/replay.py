"""Replay driver: runs a sweep on learning curves and a virtual clock, without training.

It answers what a spec would do. The curves come from an earlier sweep or are synthetic. Schedulers, budgets and
restarts can be tried over thousands of trials in seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.drivers.driver import ignore_change
from orchestrator.drivers.report_batch import seconds_to_wait, split_report
from orchestrator.spec.labels import study_text
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.study import Study
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.sweep import Sweep
from trainer.metric_names import EPOCH_SECONDS, TRAIN_LOSS
from trainer.plain_text import counted

Curve = Iterator[tuple[Epoch | Failure, float]]
"""The events of a trial, each with the seconds since the event before it."""
Curves = Callable[[Trial], Curve]
SECONDS_PER_EPOCH = 10.0
"""Length of an epoch where none was measured."""


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
        workers: number of trials that run at the same time.
        until: virtual seconds after which the driver stops as if it were killed.
    """

    def __init__(self, curves: Curves, clock: Clock, *, workers: int, until: float = math.inf) -> None:
        self._curves = curves
        self._clock = clock
        self._workers = workers
        self._until = until
        self._num_reports = 0
        self._reports: list[tuple[float, int, Trial, list[Epoch | Failure], Curve]] = []
        self.busy_seconds = 0.0
        """Worker seconds in which a trial ran."""

    def run(self, sweep: Sweep, on_change: Callable[[], None] = ignore_change) -> None:
        """Run trials until the sweep has ended, or until the given time. See `Driver`."""
        while True:
            self._start_trials(sweep)
            if not self._reports or self._reports[0][0] > self._until:
                return

            # The clock jumps to the next report, so waiting costs nothing.
            self._clock.now, _, trial, events, curve = heapq.heappop(self._reports)
            sweep.tick()
            epochs, failure = split_report(events)
            goes_on = not epochs or sweep.on_epochs(trial.trial_id, epochs)
            if goes_on and failure is not None:
                sweep.on_failure(trial.trial_id, failure)
            elif goes_on:
                self._schedule_next(trial, curve)
            on_change()

    def _start_trials(self, sweep: Sweep) -> None:
        # Each running trial has exactly one scheduled report.
        while len(self._reports) < self._workers:
            trial = sweep.next_trial()
            if trial is None:
                return
            self._schedule_next(trial, self._curves(trial))

    def _schedule_next(self, trial: Trial, curve: Curve) -> None:
        events: list[Epoch | Failure] = []
        report_s = 0.0

        # Short epochs are reported together, as by a worker of Ray.
        while not events or seconds_to_wait(events[-1], trial.config.epochs, report_s) > 0:
            event, seconds = next(curve)
            events.append(event)
            report_s += seconds
        self.busy_seconds += report_s

        # The number breaks ties of time, so that reports never compare each other.
        self._num_reports += 1
        heapq.heappush(self._reports, (self._clock.now + report_s, self._num_reports, trial, events, curve))


class SyntheticCurves:
    """Learning curves of invented tasks.

    Each task has an optimum in the search space, near the optimum of its group. Accuracy rises towards a limit, which
    falls with the distance of the trial's config from the optimum. Noise depends on the config alone.

    Args:
        plans: the studies, which define the search spaces.
        seconds_per_epoch: on the virtual clock.
        measured: seconds of an epoch where they are known, by key of the study and then by phase.
        spread: distance between the optima of a group's tasks, as a fraction of the width of the space.
    """

    def __init__(
        self,
        plans: Sequence[StudyPlan],
        seconds_per_epoch: float = SECONDS_PER_EPOCH,
        spread: float = 0.1,
        seed: int = 0,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._plans = {plan.key: plan for plan in plans}
        self._seconds_per_epoch = seconds_per_epoch
        self._spread = spread
        self._seed = seed
        self._measured = measured or {}

    def __call__(self, trial: Trial) -> Curve:
        """Yield the learning curve of a trial."""
        limit = self.limit(trial)
        noise = _random_numbers(self._seed, trial.trial_id)
        num_epochs = trial.config.epochs
        seconds = self._measured.get(trial.study, {}).get(trial.phase, self._seconds_per_epoch)

        for epoch in range(1, num_epochs + 1):
            accuracy = limit * (1 - math.exp(-4 * epoch / num_epochs)) + 0.01 * (next(noise) - 0.5)
            metrics = {TRAIN_LOSS: 2.0 * (1 - accuracy), EPOCH_SECONDS: seconds}
            if trial.config.is_scored(epoch):
                metrics[trial.config.eval_metric] = min(1.0, max(0.0, accuracy))
            yield Epoch(epoch=epoch, metrics=metrics), seconds

    def limit(self, trial: Trial) -> float:
        """Return the accuracy that a trial would reach after infinitely many epochs."""
        plan = self._plans[trial.study]
        config = dataclasses.asdict(trial.config)

        squared_distance = 0.0
        for name, dimension in plan.space.items():
            if dimension.is_active(config):
                # The keys are names, so that a task has the same optimum in every spec.
                group_optimum = next(_random_numbers(self._seed, f"{name} {plan.group}"))
                task_offset = next(_random_numbers(self._seed, f"{name} {plan.task}")) - 0.5
                optimum = min(1.0, max(0.0, group_optimum + self._spread * task_offset * 2))
                squared_distance += (unit_position(dimension, config[name]) - optimum) ** 2

        return 0.3 + 0.6 * math.exp(-3 * squared_distance)


class RecordedCurves:
    """Learning curves of an earlier sweep: those of the same config if it was trained, else of the nearest config.

    Args:
        studies: studies of the earlier sweep, with at least one trial each that trained all its epochs.

    Raises:
        ValueError: when called with a trial for whose study no trial of as many epochs was trained.
    """

    def __init__(self, studies: Sequence[Study]) -> None:
        self._plans = {study.plan.key: study.plan for study in studies}
        self._trials = {
            (study.plan.key, phase): [trial for trial in trials if len(trial.epochs) == trial.config.epochs]
            for study in studies
            for phase, trials in (("search", study.search_table.trials), ("final", study.final_table.trials))
        }

    def __call__(self, trial: Trial) -> Curve:
        """Yield the learning curve of a trial."""
        num_epochs = trial.config.epochs
        trained = self._trials.get((trial.study, trial.phase), [])
        candidates = [candidate for candidate in trained if len(candidate.epochs) == num_epochs]
        if not candidates:
            raise ValueError(
                f"the earlier sweep has no {trial.phase} trial of {study_text(trial.config)} that ran to its end of "
                f"{counted(num_epochs, 'epoch')}; replay a spec with the same studies and epochs, or "
                "without a sweep to take curves from."
            )

        # Final trials of a study differ in their seeds alone.
        nearest = min(
            candidates,
            key=lambda candidate: (self._distance(trial, candidate), candidate.config.seed != trial.config.seed),
        )
        for epoch, metrics in enumerate(nearest.epochs, start=1):
            curve = metrics
            # The earlier sweep may have been scored more often.
            if not trial.config.is_scored(epoch):
                scored = f"{trial.config.eval_split}/"
                curve = {name: value for name, value in metrics.items() if not name.startswith(scored)}
            yield Epoch(epoch=epoch, metrics=curve), metrics[EPOCH_SECONDS]

    def _distance(self, trial: Trial, candidate: Trial) -> float:
        """Return the squared distance of two trials of a study in its search space."""
        config = dataclasses.asdict(trial.config)
        candidate_config = dataclasses.asdict(candidate.config)

        distance = 0.0
        for name, dimension in self._plans[trial.study].space.items():
            num_active = dimension.is_active(config) + dimension.is_active(candidate_config)
            if num_active == 2:
                position = unit_position(dimension, config[name])
                candidate_position = unit_position(dimension, candidate_config[name])
                distance += (position - candidate_position) ** 2
            elif num_active == 1:
                # The two ends of a dimension are as far from each other.
                distance += 1.0
        return distance


def unit_position(dimension: Dimension, value: Any) -> float:
    """Return the position of a value in its dimension, from 0 to 1."""
    match dimension:
        case FloatRange() | IntRange():
            ends_and_value: list[float] = [dimension.low, dimension.high, value]
            if dimension.log:
                ends_and_value = [math.log(number) for number in ends_and_value]
            low, high, position = ends_and_value
            return (position - low) / (high - low)
        case Choice(values=values):
            return values.index(value) / max(1, len(values) - 1) if value in values else 0.0


def _random_numbers(seed: int, key: str) -> Iterator[float]:
    """Yield numbers from 0 to 1 that depend on seed and key alone."""
    # Not `hash`, which differs from process to process.
    generator = random.Random(hashlib.sha256(f"{seed} {key}".encode()).digest())
    while True:
        yield generator.random()
