"""A trial computes its next event while the last one is processed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from orchestrator.drivers.ray.lookahead import LookAhead


@pytest.fixture
def thread() -> Iterator[Executor]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield thread


class Steps:
    """A trial of three events, each of which waits for a permission."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.by: set[str] = set()
        self.ended = False
        self.saved = False
        self.reached = threading.Condition()
        self.let = threading.Semaphore(0)
        self.end = time.monotonic() + 30

    def run(self, stop: Callable[[], bool]) -> Iterator[int]:
        try:
            for event in (1, 2, 3):
                with self.reached:
                    self.begun.append(event)
                    self.by.add(threading.current_thread().name)
                    self.reached.notify_all()
                while not self.let.acquire(timeout=0.01):
                    if stop() or time.monotonic() > self.end:
                        self.saved = True
                        yield -event
                        return
                yield event
        finally:
            self.ended = True

    def await_begin(self, event: int) -> None:
        with self.reached:
            assert self.reached.wait_for(lambda: event in self.begun, timeout=20)


def at_its_second(steps: Steps, thread: Executor, stop: Callable[[], bool] = lambda: False) -> LookAhead[int]:
    """A trial that has returned its first event, and computes its second one."""
    ahead = LookAhead(thread, steps.run, stop)
    steps.let.release()
    assert next(ahead) == 1
    steps.await_begin(2)
    return ahead


def test_the_next_event_is_computed_while_the_last_is_processed_and_no_more(thread: Executor) -> None:
    steps = Steps()
    ahead = LookAhead(thread, steps.run, lambda: False)
    thread.submit(lambda: None).result()  # the thread has nothing to do
    assert steps.begun == [], "it begins when the driver says so"
    for _ in range(3):
        steps.let.release()
    assert next(ahead) == 1
    steps.await_begin(2)
    thread.submit(lambda: None).result()
    assert steps.begun == [1, 2]
    assert [next(ahead), next(ahead)] == [2, 3]
    thread.submit(lambda: None).result()
    assert steps.ended, "its end is not waited for"
    assert len(steps.by) == 1
    assert threading.current_thread().name not in steps.by


def test_a_cancelled_trial_ends_at_its_next_step_and_saves_nothing(thread: Executor) -> None:
    steps = Steps()
    ahead = at_its_second(steps, thread)
    ahead.cancel()
    ahead.cancel()
    assert steps.ended
    assert not steps.saved
    assert steps.begun == [1, 2]


class Weights:
    """What a trial has in memory."""


def test_nothing_of_a_cancelled_trial_stays_in_memory(thread: Executor) -> None:
    held: list[weakref.ref[Weights]] = []

    def run(stop: Callable[[], bool]) -> Iterator[int]:
        weights = Weights()
        held.append(weakref.ref(weights))
        yield 1
        while not stop():
            time.sleep(0.01)

    ahead = LookAhead(thread, run, lambda: False)
    assert next(ahead) == 1
    gc.disable()  # it comes late in a process of few and large objects
    try:
        ahead.cancel()
        thread.submit(lambda: None).result()
        assert held[0]() is None
    finally:
        gc.enable()
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_trial_that_stops_saves_before_it_ends(thread: Executor) -> None:
    steps, asked = Steps(), threading.Event()
    ahead = at_its_second(steps, thread, asked.is_set)
    asked.set()
    ahead.finish()
    assert steps.ended
    assert steps.saved


def test_an_event_that_does_not_come_in_time_is_returned_when_it_comes(thread: Executor) -> None:
    steps = Steps()
    ahead = at_its_second(steps, thread)
    assert ahead.next_within(0.01) is None
    steps.let.release()
    assert ahead.next_within(20) == 2
    steps.let.release()
    assert next(ahead) == 3


def test_an_error_of_a_trial_is_raised_in_place_of_its_event(thread: Executor) -> None:
    def run(_: Callable[[], bool]) -> Iterator[int]:
        yield 1
        raise ValueError("of no use")

    ahead = LookAhead(thread, run, lambda: False)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="of no use"):
        next(ahead)
    ahead.finish()
