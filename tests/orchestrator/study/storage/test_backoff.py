"""Waits for a locked database: they last as long as the lock, and a signal ends them."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError

from orchestrator.drivers.signals import interrupt_on_signal, stop_on_signal
from orchestrator.errors import LeaseError
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage import backoff
from orchestrator.study.storage.backoff import WaitInterrupted, interrupt_waits, retry_while_locked
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture
def database(file: Path, spec: SweepSpec) -> StudyDatabase:
    database = StudyDatabase(f"sqlite:///{file}")
    database.save_sweep("small", spec.model_dump(mode="json"))
    return database


@contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program writes, and does not end."""
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


@contextmanager
def signal_in(seconds: float, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Send this process a signal a little later."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), number])
    timer.start()
    yield
    timer.join()


def test_a_write_waits_for_the_lock_of_another_program(database: StudyDatabase, file: Path) -> None:
    with locked(file) as other:
        timer = threading.Timer(0.6, other.rollback)
        timer.start()
        database.save_halt_reason("small", "budget")
        timer.join()
    assert database.halt_reason("small") == "budget"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_signal_ends_a_wait_at_once_where_nothing_runs(
    database: StudyDatabase, file: Path, number: signal.Signals
) -> None:
    started = time.monotonic()
    with locked(file), signal_in(0.3, number), pytest.raises(KeyboardInterrupt), interrupt_on_signal():
        retry_while_locked(database.save_halt_reason, "small", "budget")
    assert time.monotonic() - started < 10, "not the minute for which SQLite waits"
    assert not backoff.waits_are_interrupted(), "and the next launch waits again"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_the_first_signal_ends_the_wait_of_a_driver(
    database: StudyDatabase, file: Path, spec: SweepSpec, number: signal.Signals
) -> None:
    sweep = Sweep.resume(spec, database, MemoryTracker())
    with interrupt_on_signal(), locked(file), signal_in(0.3, number):
        with stop_on_signal(sweep), pytest.raises(WaitInterrupted, match=r"cannot be written: .*database is locked"):
            retry_while_locked(database.save_halt_reason, "small", "budget")
        assert sweep.halt is not None
        assert sweep.halt.reason == f"stopped by {number.name}"

        # What is saved while the driver ends is tried, and waits no more.
        started = time.monotonic()
        with pytest.raises(WaitInterrupted):
            retry_while_locked(database.save_halt_reason, "small", "budget")
        assert time.monotonic() - started < 10


def test_a_driver_that_is_stopping_still_waits_for_a_moment(database: StudyDatabase, file: Path) -> None:
    try:
        # The signal came minutes ago, and the last epoch of a trial ends now.
        backoff._stop.asked_at = time.monotonic() - 300
        with locked(file) as other:
            timer = threading.Timer(0.3, other.rollback)
            timer.start()
            retry_while_locked(database.save_halt_reason, "small", "stopped")
            timer.join()
        assert database.halt_reason("small") == "stopped"
    finally:
        backoff.allow_waits()


def test_other_errors_are_raised_at_once(database: StudyDatabase) -> None:
    def write() -> None:
        raise StorageInternalError("a bug")

    with pytest.raises(StorageInternalError, match="a bug"):
        retry_while_locked(write)


def test_a_lease_is_released_without_the_database_if_a_signal_ended_the_wait(
    database: StudyDatabase, file: Path
) -> None:
    lease = database.lease("small")
    lease.acquire("small")
    with interrupt_on_signal(), locked(file):
        interrupt_waits()
        lease.release()
    # As long as this process lives, its heartbeat decides.
    with pytest.raises(LeaseError):
        database.lease("small").acquire("small")
