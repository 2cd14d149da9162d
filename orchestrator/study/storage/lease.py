"""Lease on a sweep, so that one driver at a time writes to it.

A driver is a trial of the sweep's own Optuna study. It is RUNNING while the driver runs, and Optuna's heartbeat shows
that the driver is alive. Trial ids are unique in a database: if two drivers start at the same time, the one with the
lower id keeps the lease. The trial of a driver that died is set to FAIL, and the lease is free again.

`Lease.drivers` is the only place that tells live drivers from dead ones. A driver is

1. dead if its process ran on this machine, in this PID namespace, and has ended;
2. else alive if the age of its heartbeat is that of a live driver, by the clock of the database;
3. else alive if its process is suspended on this machine;
4. else alive if a heartbeat comes while this process watches for it. The clock may have been set, in either direction.

That a process exists is no proof that it drives: in a copy of a home, it drives the original.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.errors import LeaseError
from orchestrator.study.storage.backoff import WaitInterrupted, retry_while_locked
from orchestrator.study.storage.driver_process import HOST, PID, ProcessState, describe_this_process, state_of
from orchestrator.study.storage.optuna_ids import trial_id
from orchestrator.study.storage.stored_names import DRIVER_ATTRS

HEARTBEAT_S = 3
"""Seconds between two heartbeats."""

GRACE_PERIOD_S = 30
"""Seconds without a heartbeat after which a driver counts as dead. It is watched for the last of them."""

WATCH_S = 10
"""Seconds for which a driver is watched whose heartbeat is old, or of a later time than the database has now."""

SINCE = DRIVER_ATTRS["since"]
SECONDS = DRIVER_ATTRS["seconds"]
STOP = DRIVER_ATTRS["stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverStatus:
    """A driver that has not released its lease."""

    trial_id: int
    """Id of the Optuna trial that stands for it."""
    holder: Mapping[str, Any]
    """Host, process and start time, by the names in the study database."""
    process: ProcessState
    silent_s: float | None
    """Seconds since its last heartbeat, by the clock of the database; None if it sent none."""
    is_alive: bool

    def describe(self) -> str:
        """Return the driver's process, host and start time in words, with what is unusual about it."""
        text = f"process {self.holder[PID]} on {self.holder[HOST]} since {self.holder[SINCE]}"
        if self.is_alive and self.process is ProcessState.SUSPENDED:
            text += f" (suspended; `kill -CONT {self.holder[PID]}` continues it)"
        return text

    def describe_last_heartbeat(self) -> str:
        """Return the age of the last heartbeat in words."""
        if self.silent_s is None:
            return "it sent no heartbeat"
        if self.silent_s < 0:
            return "the clock was set back since its last heartbeat"
        return f"its last heartbeat was {self.silent_s:.0f} s ago"


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
        self._last_heartbeat = _now()
        self._lost: LeaseError | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.stop_requested = False
        """Whether another process called `request_stop`."""

    def drivers(self) -> list[DriverStatus]:
        """Return the drivers that have not released the lease, alive or dead, in the order of their starts.

        It takes up to `WATCH_S` if a heartbeat leaves it open whether its driver is alive. Nothing is written.
        """
        running = {trial_id(trial): trial.user_attrs for trial in self._running_drivers()}
        if not running:
            return []

        processes = {driver: state_of(holder) for driver, holder in running.items()}
        ages, heartbeats = self._heartbeats([*running])

        alive = set()
        doubtful: dict[int, datetime | None] = {}
        for driver, process in processes.items():
            if process is ProcessState.GONE:
                continue
            if _is_fresh(ages.get(driver)) or process is ProcessState.SUSPENDED:
                alive.add(driver)
            else:
                doubtful[driver] = heartbeats.get(driver)
        alive |= self._watch(doubtful)

        return [
            DriverStatus(
                trial_id=driver,
                holder=holder,
                process=processes[driver],
                silent_s=ages.get(driver),
                is_alive=driver in alive,
            )
            for driver, holder in running.items()
        ]

    def holders(self) -> list[Mapping[str, Any]]:
        """Return host, pid and start time of the drivers that are alive: at most one, except while two are starting."""
        return [driver.holder for driver in self.drivers() if driver.is_alive]

    def hours(self) -> float:
        """Return the hours that drivers worked on the sweep, including this one."""
        drivers = self._storage.get_all_trials(self._study_id)
        return sum(float(driver.user_attrs.get(SECONDS, 0.0)) for driver in drivers) / 3600

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since this driver's last heartbeat. Any thread may call it."""
        return _now() - self._last_heartbeat

    def acquire(self, name: str) -> None:
        """Acquire the lease and start to send heartbeats.

        Raises:
            LeaseError: if another driver has the lease. The error says which one, and since when.
        """
        # Drivers that died hold the lease no longer.
        for driver in self.drivers():
            if not driver.is_alive:
                # Another process may have done the same in between.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.set_trial_state_values(driver.trial_id, TrialState.FAIL)

        self._raise_if_held(name)

        holder = describe_this_process() | {SINCE: datetime.now().astimezone().isoformat(timespec="seconds")}
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
        self._last_heartbeat = _now()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)
        self._thread.start()

    def raise_if_driven(self, name: str) -> None:
        """Raise LeaseError if a driver that is alive has the lease. A dead one hinders nobody."""
        alive = next((driver for driver in self.drivers() if driver.is_alive), None)
        if alive is not None:
            raise _held_error(name, alive.describe())

    def ensure_held(self) -> None:
        """Raise LeaseError if another driver has taken over the sweep. Call before every write."""
        # The thread may have seen it already.
        if self._lost is not None:
            raise self._lost

        # The thread sends heartbeats. If it was late, this process may have slept, and another driver may have
        # taken over.
        if _now() - self._last_heartbeat > GRACE_PERIOD_S / 2:
            retry_while_locked(self._send_heartbeat)

    def release(self) -> None:
        """Stop the heartbeats, and release the lease if this driver still has it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

        seconds = time.monotonic() - self._since
        # A database that does not answer has no say: a driver that has ended counts as dead soon.
        with contextlib.suppress(WaitInterrupted):
            retry_while_locked(self._release, seconds)

    def _release(self, seconds: float) -> None:
        for trial in self._running_drivers():
            if trial_id(trial) == self._trial_id:
                self._storage.set_trial_user_attr(self._trial_id, SECONDS, seconds)
                self._storage.set_trial_state_values(self._trial_id, TrialState.COMPLETE, [seconds / 3600])

    def request_stop(self) -> list[DriverStatus]:
        """Ask the driver, from another process, to stop; return the drivers that were asked: none if none is alive."""
        alive = [driver for driver in self.drivers() if driver.is_alive]
        for driver in alive:
            # It may have ended in between.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(driver.trial_id, STOP, True)

        return alive

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._send_heartbeat()
            except LeaseError as error:
                self._lost = error
                return
            except optuna.exceptions.StorageInternalError:
                # The database is locked, or its disk is full. `ensure_held` is strict where it matters.
                continue

    def _send_heartbeat(self) -> None:
        assert self._trial_id is not None, "the lease is acquired before it is renewed"
        try:
            driver = self._storage.get_trial(self._trial_id)
        except KeyError:
            raise LeaseError("this driver lost its lease: its sweep was deleted by another process.") from None

        if driver.state is not TrialState.RUNNING:
            raise LeaseError(
                f"this driver lost its lease: it sent no heartbeat for {GRACE_PERIOD_S} s, so another driver may have "
                "taken over. No results are lost. Run `sptune resume` to continue."
            )

        self._storage.record_heartbeat(self._trial_id)
        self._storage.set_trial_user_attr(self._trial_id, SECONDS, time.monotonic() - self._since)
        self._last_heartbeat = _now()
        self.stop_requested = bool(driver.user_attrs.get(STOP))

    def _running_drivers(self) -> list[FrozenTrial]:
        try:
            return self._storage.get_all_trials(self._study_id, states=(TrialState.RUNNING,))
        except KeyError:
            # The sweep was deleted.
            return []

    def _heartbeats(self, trial_ids: Sequence[int]) -> tuple[dict[int, float], dict[int, datetime]]:
        """Return the age of each heartbeat in seconds, and its time, both by the clock of the database."""
        query = sqlalchemy.text("SELECT trial_id, heartbeat FROM trial_heartbeats WHERE trial_id IN :trials")
        query = query.bindparams(sqlalchemy.bindparam("trials", list(trial_ids), expanding=True))

        with self._storage.engine.connect() as connection:
            rows = connection.execute(query.columns(trial_id=sqlalchemy.Integer, heartbeat=sqlalchemy.DateTime))
            heartbeats = {row.trial_id: row.heartbeat for row in rows}
            now = connection.execute(sqlalchemy.select(sqlalchemy.func.now())).scalar_one()

        # PostgreSQL's time has a zone, and Optuna stores it without.
        now = now.replace(tzinfo=None)
        ages = {number: (now - heartbeat).total_seconds() for number, heartbeat in heartbeats.items()}
        return ages, heartbeats

    def _watch(self, heartbeats: Mapping[int, datetime | None]) -> set[int]:
        """Wait for new heartbeats of drivers, given their last ones, and return the drivers that sent one.

        The time of a heartbeat is compared with no clock, only with the heartbeat before.
        """
        heard: set[int] = set()
        end = time.monotonic() + WATCH_S
        while len(heard) < len(heartbeats) and time.monotonic() < end:
            time.sleep(0.5)
            _, latest = self._heartbeats(list(heartbeats))
            heard = {number for number, heartbeat in heartbeats.items() if latest.get(number) != heartbeat}
        return heard

    def _raise_if_held(self, name: str) -> None:
        first = min(self._running_drivers(), key=trial_id, default=None)
        if first is None or trial_id(first) == self._trial_id:
            return

        holder = next((driver for driver in self.drivers() if driver.trial_id == trial_id(first)), None)
        # It may have ended in between.
        raise _held_error(name, holder.describe() if holder is not None else "another driver")


def _held_error(name: str, who: str) -> LeaseError:
    quoted = shlex.quote(name)
    return LeaseError(
        f"{name} is driven by {who}. `sptune status {quoted}` shows it, `sptune stop {quoted}` stops it. "
        f"A dead driver is noticed within {GRACE_PERIOD_S} s."
    )


def _is_fresh(age_s: float | None) -> bool:
    """Whether a heartbeat of this age is one of a live driver."""
    # A heartbeat may be written while its age is being read.
    return age_s is not None and -HEARTBEAT_S <= age_s <= GRACE_PERIOD_S - WATCH_S


def _now() -> float:
    """Return seconds that go on while the machine sleeps, and that nobody can set."""
    # Python's monotonic clock stands still while a laptop is closed. Only Linux has this one.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
