"""One driver a sweep: a hold that ends with its holder.

A driver is a trial of the sweep's own Optuna study, RUNNING while the driver lives, kept alive by Optuna's heartbeat.
Ids of trials are unique in a database, so of two drivers that come at once the one with the lower id stays. One whose
heart has stopped, or whose process is gone from this machine, is told as FAIL, and its place is free.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from datetime import datetime
from typing import Any

import optuna
import psutil
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.errors import LeaseError
from orchestrator.study.storage.backoff import retry_while_locked

HEARTBEAT_S = 3
"""Seconds between two signs of life."""
GRACE_PERIOD_S = 30
"""Seconds without one after which a driver is dead."""


class Lease:
    """The hold of one driver on one sweep.

    Args:
        storage: with a heartbeat.
        study_id: of the sweep's own study.
    """

    def __init__(self, storage: RDBStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._trial_id: int | None = None
        self._since = self._beat = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.stop_requested = False
        """Whether someone asked this driver to stop, with `ask_to_stop`."""

    def holders(self) -> list[dict[str, Any]]:
        """The drivers that are alive: host, pid, since; at most one, unless two come at this moment."""
        return [trial.user_attrs for trial in self._running_drivers()]

    def hours(self) -> float:
        """How long drivers were at work on the sweep, this one included."""
        drivers = self._storage.get_all_trials(self._study_id)
        return sum(float(driver.user_attrs.get("seconds", 0.0)) for driver in drivers) / 3600

    def acquire(self, name: str) -> None:
        """Become the sweep's driver.

        Raises:
            LeaseError: if another one is, with who and since when.
        """
        study = optuna.load_study(study_name=name, storage=self._storage)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            fail_stale_trials(study)
        for trial in self._running_drivers():
            if _process_is_gone(trial.user_attrs):
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self._raise_if_held(name)
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        self._trial_id = self._storage.create_new_trial(
            self._study_id, create_trial(state=TrialState.RUNNING, user_attrs=holder)
        )
        self._storage.record_heartbeat(self._trial_id)
        try:
            self._raise_if_held(name)
        except LeaseError:
            self._storage.set_trial_state_values(self._trial_id, TrialState.FAIL)
            raise
        self._since = self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """Be sure that the hold is still ours, before anything is written.

        Raises:
            LeaseError: if this process slept so long that it was taken for dead.
        """
        if time.monotonic() - self._beat > GRACE_PERIOD_S / 2:
            retry_while_locked(self._send_heartbeat)

    def release(self) -> None:
        """Give it back."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        seconds = time.monotonic() - self._since
        for trial in self._running_drivers():
            if trial._trial_id == self._trial_id:
                self._storage.set_trial_user_attr(trial._trial_id, "seconds", seconds)
                self._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [seconds / 3600])

    def request_stop(self) -> bool:
        """Ask the driver, from another process, to stop; whether there is one."""
        alive = [trial for trial in self._running_drivers() if not _process_is_gone(trial.user_attrs)]
        for trial in alive:
            self._storage.set_trial_user_attr(trial._trial_id, "stop", True)
        return bool(alive)

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._send_heartbeat()
            except LeaseError:
                return
            except optuna.exceptions.StorageInternalError:
                continue  # locked or full for now; `verify` is strict where it matters

    def _send_heartbeat(self) -> None:
        assert self._trial_id is not None, "taken before it is renewed"
        own = self._storage.get_trial(self._trial_id)
        if own.state is not TrialState.RUNNING:
            raise LeaseError(
                f"this driver was silent for more than {GRACE_PERIOD_S} s and was taken for dead; another may go on. "
                "It stops here, and nothing is lost: `sptune resume` goes on."
            )
        self._storage.record_heartbeat(self._trial_id)
        self._storage.set_trial_user_attr(self._trial_id, "seconds", time.monotonic() - self._since)
        self._beat = time.monotonic()
        self.stop_requested = bool(own.user_attrs.get("stop"))

    def _running_drivers(self) -> list[FrozenTrial]:
        try:
            return self._storage.get_all_trials(self._study_id, states=(TrialState.RUNNING,))
        except KeyError:  # the sweep was forgotten
            return []

    def _raise_if_held(self, name: str) -> None:
        first = min(self._running_drivers(), key=lambda trial: trial._trial_id, default=None)
        if first is not None and first._trial_id != self._trial_id:
            raise LeaseError(
                f"{name} is driven by {describe_holder(first.user_attrs)}. `sptune status {name}` shows it, "
                f"`sptune stop {name}` ends it; a dead driver is noticed within {GRACE_PERIOD_S} s."
            )


def describe_holder(holder: dict[str, Any]) -> str:
    """A driver in words."""
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _process_is_gone(holder: dict[str, Any]) -> bool:
    """Whether a driver of this machine has no process any more; of another machine only its heartbeat can tell."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(holder["pid"])
        return process.create_time() != holder["born"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
