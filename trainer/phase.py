"""What a run does before its first step: it loads weights, decodes images and builds prototypes, for minutes at times.

A function that begins such work names it. A log, or a program that shows progress, can listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[str], None]] = []


def begin(phase: str) -> None:
    """Name what this process does from now on, such as `loading the weights of vit_base_patch16_224.mae`."""
    # A copy, because another thread may begin or end to listen.
    for listener in [*_listeners]:
        listener(phase)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call a function with each phase that begins in this context, in the thread that begins it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
