"""A trial that trains its next epoch while the driver judges the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Generic, TypeVar

Event = TypeVar("Event")


class TrialCancelled(BaseException):
    """Nobody waits for the rest of a trial; no `Exception`, for nothing has gone wrong."""


class LookAhead(Generic[Event]):
    """The events of a trial, the next of them brought by a thread while the last is dealt with, and no more than that.

    Args:
        thread: one, which stays from trial to trial.
        run: makes the events, given the question that is asked between steps: whether to stop.
        stop: the answer, unless the trial is given up.
    """

    def __init__(
        self, thread: Executor, run: Callable[[Callable[[], bool]], Iterable[Event]], stop: Callable[[], bool]
    ) -> None:
        self._thread = thread
        self._stop = stop
        self._cancelled = False
        self._events = iter(run(self._should_stop))
        self._next: Future[Event | None] | None = None

    def __next__(self) -> Event:
        """The next event, or what the trial raised; another one is on its way then.

        Raises:
            StopIteration: if the trial has been given up.
        """
        event = (self._next or self._thread.submit(self._fetch)).result()
        self._next = self._thread.submit(self._fetch)
        if event is None:
            raise StopIteration
        return event

    def cancel(self) -> None:
        """End it at its next step, for nobody wants to know any more."""
        self._cancelled = True
        self.finish()

    def finish(self) -> None:
        """Wait until the event on its way has come, and end it there."""
        if self._next is not None:
            wait([self._next])
        if hasattr(self._events, "close"):  # a generator
            self._events.close()

    def _fetch(self) -> Event | None:
        try:
            return next(self._events)
        except TrialCancelled:  # kept no longer than this: its trace holds all that the trial had in memory
            return None

    def _should_stop(self) -> bool:
        if self._cancelled:
            raise TrialCancelled
        return self._stop()
