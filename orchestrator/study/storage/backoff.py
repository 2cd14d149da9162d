"""Waits for a study database that is locked, full or away, which Ctrl-C and other signals can end.

Python hears a signal only between two steps of Python. So no wait is left to SQLite, which would wait in C, and no
sleep is long.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

RETRY_FOR_S = 600.0
"""Seconds after which a write is not retried any more."""

LOCKED_FOR_S = 60.0
"""Seconds after which a statement does not wait any more for another program's lock on an SQLite file."""

SHORT_LOCK_S = 5.0
"""Seconds for which a lock is not worth a word."""

INTERRUPTED_FOR_S = 2.0
"""Seconds that a wait may last after a signal: a short lock must not cost what a driver saves that is stopping."""

STEP_S = 0.1
"""Seconds between two looks for a signal."""

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class _Stop:
    """When a signal asked the driver to stop. It is no threading.Event, which a signal handler must not set."""

    asked_at: float | None = None


_stop = _Stop()


class WaitInterrupted(KeyboardInterrupt):
    """A signal ended a wait for the study database. It is no `Exception`, because nothing has failed."""


def interrupt_waits() -> None:
    """Let all waits for the study database end soon, now and later. A signal handler may call it."""
    if _stop.asked_at is None:
        _stop.asked_at = time.monotonic()


def waits_are_interrupted() -> bool:
    """Whether a signal asked the driver to stop."""
    return _stop.asked_at is not None


def allow_waits() -> None:
    """Let waits for the study database last again, for another launch in this process."""
    _stop.asked_at = None


def retry_while_locked(write: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call `write` with the arguments; retry while the database is locked or away or its disk is full.

    Raises:
        StorageInternalError: if that lasts for `RETRY_FOR_S`, or immediately for any other error.
        WaitInterrupted: if a signal ended the wait.
    """
    started = time.monotonic()
    delay_s = 0.5

    while True:
        try:
            return write(*arguments)
        except StorageInternalError as error:
            # Optuna raises one error for everything; the cause tells a locked database from a bug.
            if not isinstance(error.__cause__, OperationalError):
                raise
            reason = str(error.__cause__).splitlines()[0]
            if _is_over(started):
                raise WaitInterrupted(f"the study database cannot be written: {reason}") from None
            if time.monotonic() - started > RETRY_FOR_S:
                raise
            if _stop.asked_at is None:
                log.warning(
                    "cannot write to the study database (%s): trying again in %g s; Ctrl-C ends the wait",
                    reason,
                    delay_s,
                )

        _sleep(delay_s)
        delay_s = min(2 * delay_s, 15.0)


class PatientConnection(sqlite3.Connection):
    """A connection to an SQLite file that waits for other writers in Python. Give it a timeout of a moment."""

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor that waits for other writers. `execute` of a connection uses it as well."""
        return super().cursor(factory or _PatientCursor)

    def commit(self) -> None:
        """Commit, and wait for other writers."""
        _wait_for_lock(super().commit)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, *arguments: Any) -> Any:
        return _wait_for_lock(super().execute, *arguments)

    def executemany(self, *arguments: Any) -> Any:
        return _wait_for_lock(super().executemany, *arguments)


def _wait_for_lock(call: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call again while another program holds the lock, for `LOCKED_FOR_S` at most."""
    started = time.monotonic()
    is_told = False

    while True:
        try:
            return call(*arguments)
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - started
            # A transaction that has read what another has changed since must begin again: waiting does not help it.
            is_locked = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            is_outdated = error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT
            if not is_locked or is_outdated or _is_over(started) or waited_s > LOCKED_FOR_S:
                raise

        # A short lock is usual: drivers and commands write in turns.
        if not is_told and waited_s > SHORT_LOCK_S:
            log.warning("another program has locked the study database; Ctrl-C ends the wait")
            is_told = True
        time.sleep(STEP_S)


def _is_over(started: float) -> bool:
    """Whether a wait that started then has lasted long enough after a signal."""
    return _stop.asked_at is not None and time.monotonic() - max(_stop.asked_at, started) > INTERRUPTED_FOR_S


def _sleep(seconds: float) -> None:
    """Sleep until a signal comes: a handler that raises nothing would not end Python's own sleep."""
    end = time.monotonic() + seconds
    time.sleep(STEP_S)
    while _stop.asked_at is None and time.monotonic() < end:
        time.sleep(STEP_S)
