"""Ctrl-C stops a sweep after the current epochs, a second one stops it immediately. It can resume in both cases."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.sweep.sweep import Sweep


@contextmanager
def stop_on_signal(sweep: Sweep) -> Iterator[None]:
    """Let SIGINT or SIGTERM stop the sweep after the current epoch of each running trial, within this context.

    Raises:
        KeyboardInterrupt: at the second signal.
    """

    def handle(number: int, _: FrameType | None) -> None:
        # A sweep whose budget is used up has a halt as well, and can still be stopped once.
        if sweep.halt is not None and sweep.halt.interrupt_running:
            raise KeyboardInterrupt
        sweep.stop(f"stopped by {signal.Signals(number).name}")
        print("stopping after the current epoch of each trial; press Ctrl-C again to stop immediately", file=sys.stderr)

    # SIGTERM too: batch systems send it before they end a job.
    previous_handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
