"""Look-ahead: a trial trains its next epoch while the driver decides about the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Generic, TypeVar

Event = TypeVar("Event")


class TrialCancelled(BaseException):
    """The rest of a trial is not needed. It is no `Exception`, because nothing has failed."""


class LookAhead(Generic[Event]):
    """Iterator over the events of a trial. A thread computes the next event while the last one is processed.

    It is one event ahead, never more.

    Args:
        thread: an executor of one thread, which later trials use as well.
        run: returns the events. Its argument is called between training steps and tells whether to stop.
        stop: whether to stop. It is not asked any more once the trial is cancelled.
    """

    def __init__(
        self, thread: Executor, run: Callable[[Callable[[], bool]], Iterable[Event]], stop: Callable[[], bool]
    ) -> None:
        self._thread = thread
        self._stop = stop
        self._is_cancelled = False
        self._events = iter(run(self._should_stop))
        self._next: Future[Event | None] | None = None

    def __next__(self) -> Event:
        """Return the next event, or raise what the trial raised. The event after it is started.

        Raises:
            StopIteration: if the trial has been cancelled.
        """
        # The trial begins when its first event is asked for, not when its worker is set up.
        future = self._next or self._thread.submit(self._fetch)
        event = future.result()

        self._next = self._thread.submit(self._fetch)
        if event is None:
            raise StopIteration
        return event

    def next_within(self, seconds: float) -> Event | None:
        """Return the next event, or None if it does not come within so many seconds.

        Raises:
            StopIteration: if the trial has been cancelled.
        """
        return next(self) if self.has_next_within(seconds) else None

    def has_next_within(self, seconds: float) -> bool:
        """Return whether the next event comes within so many seconds. It is started, and not taken."""
        if self._next is None:
            self._next = self._thread.submit(self._fetch)
        wait([self._next], timeout=seconds)
        return self._next.done()

    def cancel(self) -> None:
        """End the trial at its next training step. Nothing is saved."""
        self._is_cancelled = True
        self.finish()

    def finish(self) -> None:
        """Wait for the event that is being computed, and end the trial after it."""
        if self._next is not None:
            wait([self._next])

        # A generator releases its memory and runs its `finally` now instead of at its garbage collection.
        if hasattr(self._events, "close"):
            self._events.close()

    def _fetch(self) -> Event | None:
        try:
            return next(self._events)
        except TrialCancelled:
            # A future would keep the exception, and its traceback all that the trial had in memory.
            return None

    def _should_stop(self) -> bool:
        if self._is_cancelled:
            raise TrialCancelled
        return self._stop()
