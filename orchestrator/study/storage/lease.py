"""Lease on a sweep, so that one driver at a time writes to it.

A driver is a trial of the sweep's own Optuna study. It is RUNNING while the driver runs, and Optuna's heartbeat shows
that the driver is alive. Trial ids are unique in a database: if two drivers start at the same time, the one with the
lower id keeps the lease. A driver whose heartbeat stopped, or whose process on this machine is gone, is set to FAIL,
and the lease is free again.
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
from orchestrator.study.storage.optuna_ids import trial_id
from orchestrator.study.storage.stored_names import DRIVER_ATTRS

HEARTBEAT_S = 3
"""Seconds between two heartbeats."""

GRACE_PERIOD_S = 30
"""Seconds without a heartbeat after which a driver counts as dead."""

HOST = DRIVER_ATTRS["host"]
PID = DRIVER_ATTRS["pid"]
BORN = DRIVER_ATTRS["born"]
SINCE = DRIVER_ATTRS["since"]
SECONDS = DRIVER_ATTRS["seconds"]
STOP = DRIVER_ATTRS["stop"]


class Lease:
    """The lease of one driver on one sweep.

    Args:
        storage: an Optuna storage with a heartbeat.
        study_id: id of the sweep's own Optuna study.
    """

    def __init__(self, storage: RDBStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._trial_id: int | None = None
        self._since = time.monotonic()
        self._last_heartbeat = self._since
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.stop_requested = False
        """Whether another process called `request_stop`."""

    def holders(self) -> list[dict[str, Any]]:
        """Return host, pid and start time of the drivers that are alive: at most one, except while two are starting."""
        return [trial.user_attrs for trial in self._running_drivers()]

    def hours(self) -> float:
        """Return the hours that drivers worked on the sweep, including this one."""
        drivers = self._storage.get_all_trials(self._study_id)
        return sum(float(driver.user_attrs.get(SECONDS, 0.0)) for driver in drivers) / 3600

    def acquire(self, name: str) -> None:
        """Acquire the lease and start to send heartbeats.

        Raises:
            LeaseError: if another driver has the lease. The error says which one, and since when.
        """
        # Drivers that died hold the lease no longer: first those without a heartbeat, on any machine, then those
        # without a process on this machine.
        study = optuna.load_study(study_name=name, storage=self._storage)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            fail_stale_trials(study)

        for trial in self._running_drivers():
            if _process_is_gone(trial.user_attrs):
                self._storage.set_trial_state_values(trial_id(trial), TrialState.FAIL)

        self._raise_if_held(name)

        holder = {
            HOST: socket.gethostname(),
            PID: os.getpid(),
            BORN: psutil.Process().create_time(),
            SINCE: datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        self._trial_id = self._storage.create_new_trial(
            self._study_id, create_trial(state=TrialState.RUNNING, user_attrs=holder)
        )
        self._storage.record_heartbeat(self._trial_id)

        # Another driver may have started since the check above. Only now both are visible to each other.
        try:
            self._raise_if_held(name)
        except LeaseError:
            self._storage.set_trial_state_values(self._trial_id, TrialState.FAIL)
            raise

        self._since = time.monotonic()
        self._last_heartbeat = self._since
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """Raise LeaseError if another driver has taken over the sweep. Call before every write."""
        # The thread sends heartbeats. If it was late, this process may have slept, and another driver may have
        # taken over.
        if time.monotonic() - self._last_heartbeat > GRACE_PERIOD_S / 2:
            retry_while_locked(self._send_heartbeat)

    def release(self) -> None:
        """Stop the heartbeats, and release the lease if this driver still has it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

        seconds = time.monotonic() - self._since
        for trial in self._running_drivers():
            if trial_id(trial) == self._trial_id:
                self._storage.set_trial_user_attr(self._trial_id, SECONDS, seconds)
                self._storage.set_trial_state_values(self._trial_id, TrialState.COMPLETE, [seconds / 3600])

    def request_stop(self) -> bool:
        """Ask the driver, from another process, to stop; return whether there is a driver."""
        alive = [trial for trial in self._running_drivers() if not _process_is_gone(trial.user_attrs)]
        for trial in alive:
            self._storage.set_trial_user_attr(trial_id(trial), STOP, True)

        return bool(alive)

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._send_heartbeat()
            except LeaseError:
                return
            except optuna.exceptions.StorageInternalError:
                # The database is locked, or its disk is full. `ensure_held` is strict where it matters.
                continue

    def _send_heartbeat(self) -> None:
        assert self._trial_id is not None, "the lease is acquired before it is renewed"
        driver = self._storage.get_trial(self._trial_id)

        if driver.state is not TrialState.RUNNING:
            raise LeaseError(
                f"this driver lost its lease: it sent no heartbeat for {GRACE_PERIOD_S} s, so another driver may have "
                "taken over. No results are lost. Run `sptune resume` to continue."
            )

        self._storage.record_heartbeat(self._trial_id)
        self._storage.set_trial_user_attr(self._trial_id, SECONDS, time.monotonic() - self._since)
        self._last_heartbeat = time.monotonic()
        self.stop_requested = bool(driver.user_attrs.get(STOP))

    def _running_drivers(self) -> list[FrozenTrial]:
        try:
            return self._storage.get_all_trials(self._study_id, states=(TrialState.RUNNING,))
        except KeyError:
            # The sweep was deleted.
            return []

    def _raise_if_held(self, name: str) -> None:
        first = min(self._running_drivers(), key=trial_id, default=None)

        if first is not None and trial_id(first) != self._trial_id:
            raise LeaseError(
                f"{name} is driven by {describe_holder(first.user_attrs)}. `sptune status {name}` shows it, "
                f"`sptune stop {name}` stops it. A dead driver is noticed within {GRACE_PERIOD_S} s."
            )


def describe_holder(holder: dict[str, Any]) -> str:
    """Return a driver's process, host and start time in words."""
    return f"process {holder[PID]} on {holder[HOST]} since {holder[SINCE]}"


def _process_is_gone(holder: dict[str, Any]) -> bool:
    """Whether a driver of this machine has no process any more. For other machines, only the heartbeat tells."""
    if holder[HOST] != socket.gethostname():
        return False

    try:
        process = psutil.Process(holder[PID])

        # A pid is reused after some time, so the start time must match too.
        return process.create_time() != holder[BORN] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
