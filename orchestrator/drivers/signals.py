"""Signals stop a sweep: the first one after the current epochs, a second one immediately. It can resume in both cases.

SIGINT is Ctrl-C, SIGTERM comes from batch systems, and SIGHUP from a terminal that is lost. A process whose SIGHUP is
ignored, as `nohup` does it, goes on ignoring it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.study.storage.backoff import WaitInterrupted, allow_waits, interrupt_waits, waits_are_interrupted
from orchestrator.sweep.sweep import Sweep

log = logging.getLogger(__name__)
Handler = Callable[[int, FrameType | None], None]


class _Arrival:
    """Which signal came first to this process."""

    first: signal.Signals | None = None


_arrival = _Arrival()


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Let every signal raise KeyboardInterrupt, as Ctrl-C does, and end waits for the study database."""

    def handle(number: int, _: FrameType | None) -> None:
        _prepare_to_stop(number)
        raise KeyboardInterrupt

    # One of an earlier launch in this process.
    _arrival.first = None
    try:
        with _handling(handle):
            yield
    finally:
        # For another launch in this process.
        allow_waits()


def first_signal() -> signal.Signals | None:
    """Return the first signal that has come since `interrupt_on_signal` began; None if none has come."""
    return _arrival.first


def is_stopping() -> bool:
    """Whether a signal has come since `interrupt_on_signal` began."""
    return waits_are_interrupted()


@contextmanager
def stop_on_signal(sweep: Sweep) -> Iterator[None]:
    """Let a signal stop the sweep after the current epoch of each running trial, within this context.

    Raises:
        KeyboardInterrupt: at the second signal.
    """

    def handle(number: int, _: FrameType | None) -> None:
        _prepare_to_stop(number)
        # A sweep whose budget is used up has a halt as well, and can still be stopped once.
        if sweep.halt is not None and sweep.halt.interrupt_running:
            raise KeyboardInterrupt
        sweep.stop(f"stopped by {signal.Signals(number).name}")

        # A lost terminal must not keep the sweep from saving.
        with contextlib.suppress(OSError):
            print(
                "stopping after the current epoch of each trial; press Ctrl-C again to stop immediately",
                file=sys.stderr,
            )

    with _handling(handle):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Handle the signals of this context at its end.

    Python may run a handler inside a destructor, where a KeyboardInterrupt is printed with its trace and lost.
    """
    arrived: list[int] = []
    try:
        with _handling(lambda number, _: arrived.append(number)):
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM where the context replaces it by one that raises SystemExit, as `ray.init` does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    handler = signal.getsignal(signal.SIGTERM)
    is_terminated = False
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        is_terminated = True
    finally:
        signal.signal(signal.SIGTERM, handler)

    if is_terminated:
        # For the handler that was kept.
        signal.raise_signal(signal.SIGTERM)


def close_sweep(sweep: Sweep) -> None:
    """Save the states of the trials, unless a signal ended the wait for the study database."""
    try:
        sweep.close()
    except WaitInterrupted as error:
        log.warning(
            "%s. The last epochs are not recorded; a resumed sweep takes them from the trials' checkpoints", error
        )


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    # Python handles signals in the main thread only.
    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)

    previous_handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)


def _prepare_to_stop(number: int) -> None:
    interrupt_waits()
    if _arrival.first is None:
        _arrival.first = signal.Signals(number)
    if number == signal.SIGHUP:
        _leave_terminal()


def _leave_terminal() -> None:
    """Send what is still printed to a terminal nowhere: writing to one that is lost is an error."""
    for output in (1, 2):
        # A lost terminal does not say any more that it is one. It still is a character device.
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)
