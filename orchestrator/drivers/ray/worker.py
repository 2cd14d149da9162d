"""The door to Ray on a worker's side: one process, one trial after another, an event a step."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import ray
from ray import tune

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.lookahead import LookAhead
from orchestrator.study.trial import Epoch, Failure
from trainer.config import TrainConfig

RunTrial = Callable[[TrainConfig, TrialContext, Callable[[], bool]], Iterable[Epoch | Failure]]
"""What a worker does with a config, at a place, until it is asked to stop."""


class TrialWorker(tune.Trainable):
    """Runs trials of a sweep; a SIGTERM, as a machine gets that is taken away, has the one under way saved."""

    def setup(  # type: ignore[override]  # tune.with_parameters gives the rest
        self, config: dict[str, Any], context: TrialContext, run_trial: RunTrial | None
    ) -> None:
        """Begin the first trial.

        Args:
            run_trial: by default it trains (`worker.run_trial`).
        """
        if run_trial is None:
            # Imported here: torch takes a second, and the driver does without it.
            from orchestrator.drivers import trial_runner

            run_trial = trial_runner.run_trial
        self._context = context
        self._run_trial = run_trial
        self._terminated = False
        self._at_work = True
        """Whether this process is within a call of the driver's: not for `_terminate` to end."""
        self._end_at_once = signal.signal(signal.SIGTERM, self._terminate)  # in place of Ray's
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial")
        self._trial = self._begin(config)
        self._at_work = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in the same process."""
        self._at_work = True
        self._trial.cancel()
        self._trial = self._begin(new_config)
        self._at_work = False
        return True

    def step(self) -> dict[str, Any]:
        """Wait until there is something to tell; training goes on meanwhile."""
        self._at_work = True
        event = next(self._trial)
        if self._terminated:
            self._trial.finish()
            ray.actor.exit_actor()  # the driver sees a lost worker, and the trial goes on elsewhere
        self._at_work = False
        if isinstance(event, Failure):
            return {"failure": event.error, "cause": event.cause.value, "seconds": event.seconds}
        # Tune flattens dicts.
        return {"epoch": event.epoch, "metrics": [*event.metrics.items()], "facts": [*event.provenance.items()]}

    def cleanup(self) -> None:
        """End the trial, which goes on no more: its log is written."""
        self._at_work = True
        self._trial.cancel()
        if self._terminated:
            ray.actor.exit_actor()
        self._at_work = False

    def _begin(self, config: dict[str, Any]) -> LookAhead[Epoch | Failure]:
        context = dataclasses.replace(self._context, cpus=config["cpus"], gpus=config["gpus"])
        return LookAhead(
            self._thread,
            lambda stop: self._run_trial(TrainConfig.from_stored(config["config"]), context, stop),
            lambda: self._terminated,
        )

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Let the epoch under way be saved; a worker that rests has nothing to save."""
        self._terminated = True
        if not self._at_work and callable(self._end_at_once):
            self._at_work = True
            self._trial.finish()
            self._end_at_once(number, frame)
