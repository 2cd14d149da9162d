"""What a run does before its first step: it loads weights, decodes images and builds prototypes, for minutes at times.

A function that begins such work names it. It is a line of the log, and a program that shows progress can listen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
# Without this, Python would make no record of what is no warning.
_log.setLevel(logging.INFO)


def begin(phase: str) -> None:
    """Name what this process does from now on, such as `loading the weights of vit_base_patch16_224.mae`."""
    _log.info(phase)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call a function with each phase that begins in this context, in the thread that begins it."""
    handler = _Listener(listener)
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)


class _Listener(logging.Handler):
    def __init__(self, listener: Callable[[str], None]) -> None:
        super().__init__()
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        self._listener(record.getMessage())
