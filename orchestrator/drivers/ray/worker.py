"""Ray's worker: a process that runs one trial after another and returns one report a step."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import ray
from ray import tune

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.lookahead import LookAhead
from orchestrator.drivers.ray.messages import phase_result, to_result
from orchestrator.drivers.report_batch import seconds_to_wait
from orchestrator.study.trial import Epoch, Failure
from trainer.config import TrainConfig
from trainer.phase import listening

PHASE_AFTER_S = 1.0
"""Seconds without a first event after which a worker reports what its trial does. A quick trial reports only epochs."""
RunTrial = Callable[[TrainConfig, TrialContext, Callable[[], bool]], Iterable[Epoch | Failure]]
"""Runs a trial, given its config, its context, and a function that tells whether to stop."""


class TrialWorker(tune.Trainable):
    """Runs trials of a sweep, one after another.

    At SIGTERM, which a machine sends before it is taken away, the running trial saves a checkpoint. The driver then
    sees a lost worker, and the trial resumes elsewhere.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters passes the other arguments
        self, config: dict[str, Any], context: TrialContext, run_trial: RunTrial | None
    ) -> None:
        """Prepare the first trial.

        Args:
            config: what `TuneBridge.next_config` returned.
            run_trial: by default the trial trains (`trial_runner.run_trial`).
        """
        if run_trial is None:
            # Imported here, because torch takes a second and the driver does not need it.
            from orchestrator.drivers import trial_runner

            run_trial = trial_runner.run_trial
        self._context = context
        self._run_trial = run_trial

        self._is_terminated = False
        # Whether the last trial has left this process without a device.
        self._is_unusable = False
        # Whether a method that Ray calls is running. The signal handler must not end the process then.
        self._is_busy = True
        # Replaces Ray's handler, which ends the process.
        self._exit_handler = signal.signal(signal.SIGTERM, self._terminate)
        # A Ray of our own starts its processes with SIGTERM blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

        # Whether the trial has an event. Before, what it does, and what the driver knows of that.
        self._has_begun = False
        self._phase = ""
        self._reported_phase = ""
        # Kept, and never left: the process ends with its worker.
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(listening(self._note_phase))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial")
        self._trial = self._prepare(config)
        self._is_busy = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the next trial in the same process."""
        self._is_busy = True
        self._trial.cancel()
        self._trial = self._prepare(new_config)
        self._is_busy = False
        return True

    def step(self) -> dict[str, Any]:
        """Return the next report: an epoch or a failure, or several short epochs. The trial continues in its thread.

        A trial that takes long to its first epoch has reports of what it does until then.
        """
        self._is_busy = True
        if self._is_unusable:
            # The driver has the failure, and expects to lose this worker.
            ray.actor.exit_actor()
        phase = self._phase_until_event()
        events = [] if phase else self._collect()
        if self._is_terminated:
            # The driver sees a lost worker, and the trial resumes elsewhere from the checkpoint that is saved now.
            self._trial.finish()
            ray.actor.exit_actor()
        self._is_busy = False

        if phase:
            return phase_result(phase)
        last = events[-1]
        self._is_unusable = isinstance(last, Failure) and last.ends_process
        return to_result(events)

    def _phase_until_event(self) -> str:
        """Wait for the first event of the trial, or until there is something new to report of what it does meanwhile.

        Returns:
            What it does; an empty text once there is an event.
        """
        while not self._has_begun:
            self._has_begun = self._trial.has_next_within(PHASE_AFTER_S)
            if not self._has_begun and self._phase != self._reported_phase:
                self._reported_phase = self._phase
                return self._reported_phase
        return ""

    def _note_phase(self, phase: str) -> None:
        self._phase = phase

    def _collect(self) -> list[Epoch | Failure]:
        """Return the next event, when there is one, with those that follow it soon.

        If the process is killed meanwhile, no epoch is lost: the checkpoint has them, and the next attempt yields them.
        """
        began = time.monotonic()
        events = [next(self._trial)]
        while (left_s := seconds_to_wait(events[-1], self._num_epochs, time.monotonic() - began)) > 0:
            event = self._trial.next_within(left_s)
            if event is None:
                break
            events.append(event)
        return events

    def cleanup(self) -> None:
        """Cancel the trial, which writes its log."""
        self._is_busy = True
        self._trial.cancel()
        if self._is_terminated:
            ray.actor.exit_actor()
        self._is_busy = False

    def _prepare(self, config: dict[str, Any]) -> LookAhead[Epoch | Failure]:
        own = {name: config[name] for name in ("cpus", "gpus", "required_device")}
        context = dataclasses.replace(self._context, **own)
        self._num_epochs = config["config"]["epochs"]
        self._has_begun = False
        self._phase = ""
        self._reported_phase = ""
        return LookAhead(
            self._thread,
            lambda stop: self._run_trial(TrainConfig.from_stored(config["config"]), context, stop),
            lambda: self._is_terminated,
        )

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: let a running trial save its checkpoint. An idle worker ends immediately."""
        self._is_terminated = True
        if not self._is_busy and callable(self._exit_handler):
            self._is_busy = True
            self._trial.finish()
            self._exit_handler(number, frame)
