"""Ctrl-C: once, and the sweep stops after saving; twice, and it stops at once. Both go on later."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.sweep.sweep import Sweep


@contextmanager
def stop_on_signal(sweep: Sweep) -> Iterator[None]:
    """While in it, SIGINT or SIGTERM stops the sweep after its running trials' next epoch, a second one at once.

    Raises:
        KeyboardInterrupt: at the second signal.
    """

    def answer(number: int, _: FrameType | None) -> None:
        if sweep.halt is not None and sweep.halt.interrupt_running:
            raise KeyboardInterrupt
        sweep.stop(f"stopped by {signal.Signals(number).name}")
        print("stopping: running trials save at their next epoch; again to stop at once", file=sys.stderr)

    handlers = {number: signal.signal(number, answer) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
