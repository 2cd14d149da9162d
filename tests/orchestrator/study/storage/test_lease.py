"""One driver a sweep: of those that come at once, after a crash, or from another machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import sqlalchemy

from orchestrator.errors import LeaseError
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage import lease as lease_module
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.driver_process import ProcessState, describe_this_process, state_of
from orchestrator.study.storage.lease import Lease
from orchestrator.study.trial import TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker


@pytest.fixture
def record(record_url: str, spec: SweepSpec) -> StudyDatabase:
    record = StudyDatabase(record_url)
    record.save_sweep("small", spec.model_dump(mode="json"))
    return record


@pytest.fixture
def held(record: StudyDatabase) -> Iterator[Lease]:
    """A lease that this process holds."""
    lease = record.lease("small")
    lease.acquire("small")
    yield lease
    lease.release()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead driver is noticed after four seconds."""
    for name, seconds in (("HEARTBEAT_S", 1), ("GRACE_PERIOD_S", 4), ("WATCH_S", 2)):
        monkeypatch.setattr(lease_module, name, seconds)


def _silent_for(lease: Lease, seconds: float) -> None:
    """As if the last heartbeat had been so long ago."""
    with lease._storage.engine.begin() as connection:
        beats = sqlalchemy.text("SELECT heartbeat FROM trial_heartbeats WHERE trial_id = :id")
        beat = connection.execute(beats.columns(heartbeat=sqlalchemy.DateTime), {"id": lease._trial_id}).scalar_one()
        earlier = sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = :beat WHERE trial_id = :id").bindparams(
            sqlalchemy.bindparam("beat", type_=sqlalchemy.DateTime)
        )
        connection.execute(earlier, {"beat": beat - timedelta(seconds=seconds), "id": lease._trial_id})


def _end_heartbeats(lease: Lease) -> None:
    """As if the holder had died."""
    lease._ended.set()
    assert lease._thread is not None
    lease._thread.join()


def _pretend(lease: Lease, **holder: Any) -> None:
    """As if the holder were another process."""
    assert lease._trial_id is not None
    for name, value in holder.items():
        lease._storage.set_trial_user_attr(lease._trial_id, name, value)


def test_a_second_driver_is_refused_with_who_drives_and_since_when(record_url: str, held: Lease) -> None:
    (holder,) = held.holders()
    with pytest.raises(LeaseError) as refused:
        StudyDatabase(record_url).lease("small").acquire("small")
    who = f"small is driven by process {os.getpid()} on {socket.gethostname()} since {holder['since']}."
    assert str(refused.value).startswith(who)
    assert "`sptune stop small` stops it" in str(refused.value)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", holder["since"])
    assert len(held.holders()) == 1, "and leaves no trace"


def test_a_lease_that_was_given_back_is_free(record: StudyDatabase) -> None:
    for _ in range(3):
        lease = record.lease("small")
        lease.acquire("small")
        assert len(lease.holders()) == 1
        lease.release()
        assert lease.holders() == []


def test_each_sweep_has_its_own_driver(record: StudyDatabase, spec: SweepSpec, held: Lease) -> None:
    record.save_sweep("other", spec.model_dump(mode="json"))
    other = record.lease("other")
    other.acquire("other")
    assert (len(other.holders()), len(held.holders())) == (1, 1)
    other.release()


def _contend(url: str, ready: Barrier, done: Barrier, wins: Any) -> None:
    record = StudyDatabase(url)
    for number in range(len(wins)):
        lease = record.lease("small")
        ready.wait(60)
        try:
            lease.acquire("small")
        except LeaseError:
            pass
        else:
            with wins.get_lock():
                wins[number] += 1
        done.wait(60)  # the winner holds it until all have tried
        lease.release()
        done.wait(60)


def test_of_drivers_that_come_at_once_exactly_one_wins(record_url: str, record: StudyDatabase) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(2), context.Barrier(2)
    wins = context.Array("i", 12)
    drivers = [context.Process(target=_contend, args=(record_url, ready, done, wins)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert wins[:] == [1] * 12


@contextlib.contextmanager
def driver_elsewhere(record_url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lease, for a minute at most."""
    code = f"""
import time
from orchestrator.study.storage.database import StudyDatabase
StudyDatabase({record_url!r}).lease("small").acquire("small")
print("taken", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "taken\n"
        yield driver


def test_the_lease_of_a_process_that_is_gone_is_free_at_once(record_url: str, record: StudyDatabase) -> None:
    with driver_elsewhere(record_url) as driver:
        ours = record.lease("small")
        with pytest.raises(LeaseError, match=f"driven by process {driver.pid}"):
            ours.acquire("small")
        with pytest.raises(LeaseError, match=f"driven by process {driver.pid}"):
            ours.raise_if_driven("small")
        driver.send_signal(signal.SIGKILL)
        while ours.holders():
            time.sleep(0.01)
        ours.raise_if_driven("small")
        # It may be a zombie still, whose parent has not looked: dead all the same.
        ours.acquire("small")
        assert [holder["pid"] for holder in ours.holders()] == [os.getpid()]
        ours.release()


def test_another_process_with_the_same_number_is_not_the_driver(record_url: str, held: Lease) -> None:
    _pretend(held, start_ticks=held.holders()[0]["start_ticks"] - 100)
    successor = StudyDatabase(record_url).lease("small")
    successor.acquire("small")
    assert [holder["start_ticks"] for holder in successor.holders()] == [describe_this_process()["start_ticks"]]
    successor.release()


# Facts of a driver whose process is out of sight: on another machine, in another container, before the machine started
# again, and as version 0.1.0 wrote them.
OUT_OF_SIGHT: dict[str, dict[str, Any]] = {
    "another machine": {"host": "elsewhere", "pid": 1},
    "another container": {"namespaces": ["pid:[1]"], "pid": 2**22 + 1},
    "the boot before": {"boot": "another", "start_ticks": 1},
    "an older version": {"boot": None, "namespaces": None, "start_ticks": None, "born": 0.0, "pid": 2**22 + 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("facts", OUT_OF_SIGHT.values(), ids=OUT_OF_SIGHT)
@pytest.mark.usefixtures("short")
def test_a_driver_out_of_sight_is_dead_after_its_grace_period_only(
    record_url: str, held: Lease, facts: dict[str, Any]
) -> None:
    _end_heartbeats(held)
    _pretend(held, **facts)
    successor = StudyDatabase(record_url).lease("small")
    with pytest.raises(LeaseError, match=f"process {held.holders()[0]['pid']} on "):
        successor.acquire("small")
    _silent_for(held, 3)
    started = time.monotonic()
    successor.acquire("small")
    assert time.monotonic() - started > lease_module.WATCH_S - 0.1, "it was watched first"
    assert len(successor.holders()) == 1
    successor.release()


@pytest.mark.parametrize("step_s", [-3600, -1, 1, 3600])
@pytest.mark.parametrize("facts", [{}, {"host": "elsewhere", "pid": 1}], ids=["here", "elsewhere"])
@pytest.mark.usefixtures("short")
def test_a_clock_that_is_set_takes_no_lease_from_a_live_driver(
    record_url: str, held: Lease, facts: dict[str, Any], step_s: float
) -> None:
    _pretend(held, **facts)
    _silent_for(held, step_s)
    successor = StudyDatabase(record_url).lease("small")
    with pytest.raises(LeaseError, match="small is driven by process"):
        successor.acquire("small")
    assert len(successor.request_stop()) == 1, "and it can be asked to stop"


@pytest.mark.parametrize("step_s", [-60, *(pytest.param(step_s, marks=pytest.mark.slow) for step_s in (-3600, 3600))])
@pytest.mark.usefixtures("short")
def test_a_clock_that_is_set_does_not_keep_a_dead_driver_alive(record_url: str, held: Lease, step_s: float) -> None:
    _end_heartbeats(held)
    _pretend(held, host="elsewhere", pid=1)
    _silent_for(held, step_s)
    (driver,) = held.drivers()
    assert not driver.is_alive
    assert driver.describe_last_heartbeat() == (
        "the clock was set back since its last heartbeat"
        if step_s < 0
        else f"its last heartbeat was {driver.silent_s:.0f} s ago"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_in_a_copy_of_a_home_the_driver_of_the_original_drives_nothing(record_url: str, held: Lease) -> None:
    # In the copy its heartbeats do not arrive, although its process lives on this machine.
    _end_heartbeats(held)
    _silent_for(held, 60)
    assert state_of(held.drivers()[0].holder) is ProcessState.PRESENT
    successor = StudyDatabase(record_url).lease("small")
    successor.acquire("small")
    successor.release()


@pytest.mark.usefixtures("short")
def test_a_suspended_driver_keeps_its_lease_however_long_it_sleeps(record_url: str, record: StudyDatabase) -> None:
    with driver_elsewhere(record_url) as driver:
        driver.send_signal(signal.SIGSTOP)
        lease = record.lease("small")
        lease._trial_id = lease.drivers()[0].trial_id
        _silent_for(lease, 3600)
        with pytest.raises(LeaseError, match=rf"suspended; `kill -CONT {driver.pid}` continues it"):
            StudyDatabase(record_url).lease("small").acquire("small")
        driver.kill()


@pytest.mark.usefixtures("short")
def test_a_driver_that_died_before_its_first_heartbeat_is_dead(record_url: str, held: Lease) -> None:
    _end_heartbeats(held)
    _pretend(held, host="elsewhere", pid=1)
    with held._storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM trial_heartbeats"))
    (driver,) = held.drivers()
    assert (driver.is_alive, driver.describe_last_heartbeat()) == (False, "it sent no heartbeat")


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_driver_that_lives_keeps_its_lease_for_longer_than_the_grace_period(
    record_url: str, record: StudyDatabase
) -> None:
    lease = record.lease("small")
    lease.acquire("small")
    _pretend(lease, host="elsewhere")
    time.sleep(5)
    with pytest.raises(LeaseError, match="elsewhere"):
        StudyDatabase(record_url).lease("small").acquire("small")
    assert lease.hours() * 3600 == pytest.approx(5, abs=1.9), "and its hours are known meanwhile"
    lease.release()


def test_a_driver_that_was_taken_for_dead_writes_nothing_more(
    record_url: str, record: StudyDatabase, spec: SweepSpec, held: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep.resume(spec, record, MemoryTracker(), lease=held)
    trial = sweep.next_trial()
    assert trial is not None
    _pretend(held, host="elsewhere")
    _end_heartbeats(held)
    _silent_for(held, 60)
    monkeypatch.setattr(lease_module, "WATCH_S", 1)
    successor = StudyDatabase(record_url).lease("small")
    successor.acquire("small")
    # The process slept, and sent no heartbeat since.
    monkeypatch.setattr(held, "_last_heartbeat", held._last_heartbeat - 60)
    for write in (
        lambda: sweep.on_epoch(trial.trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5}),
        sweep.next_trial,
        sweep.tick,
        sweep.close,
    ):
        with pytest.raises(LeaseError, match="this driver lost its lease: it sent no heartbeat for 30 s"):
            write()
    held.release()
    assert len(successor.holders()) == 1, "nor does it give back what is not its own"
    again = Sweep.resume(spec, StudyDatabase(record_url), MemoryTracker(), lease=successor)
    assert again.studies[0].search_table.trials[0].epochs == ()
    assert again.studies[0].search_table.trials[0].state is TrialState.WAITING
    successor.release()


@pytest.mark.usefixtures("short")
def test_a_driver_notices_that_it_is_asked_to_stop(record_url: str, record: StudyDatabase, spec: SweepSpec) -> None:
    lease = record.lease("small")
    lease.acquire("small")
    sweep = Sweep.resume(spec, record, MemoryTracker(), lease=lease)
    assert StudyDatabase(record_url).lease("small").request_stop(), "there is a driver to ask"
    deadline = time.monotonic() + 10
    while sweep.halt is None and time.monotonic() < deadline:
        sweep.tick()
        time.sleep(0.05)
    assert sweep.halt is not None
    assert (sweep.halt.reason, sweep.halt.interrupt_running) == ("stopped, as `sptune stop` requested", True)
    lease.release()
    assert not StudyDatabase(record_url).lease("small").request_stop(), "now there is none"
    assert lease.holders() == []


def test_nobody_can_be_asked_who_is_dead(held: Lease, record_url: str) -> None:
    _pretend(held, start_ticks=0)
    assert not StudyDatabase(record_url).lease("small").request_stop()


def test_a_request_to_stop_ends_with_its_driver(record_url: str, record: StudyDatabase) -> None:
    first = record.lease("small")
    first.acquire("small")
    first.request_stop()
    first.release()
    second = record.lease("small")
    second.acquire("small")
    second._send_heartbeat()
    assert not second.stop_requested
    second.release()


def test_hours_add_up_over_drivers(record_url: str, record: StudyDatabase) -> None:
    assert record.lease("small").hours() == 0
    for _ in range(3):
        lease = record.lease("small")
        lease.acquire("small")
        time.sleep(0.2)
        lease.release()
    hours = StudyDatabase(record_url).lease("small").hours()
    assert 0.6 <= hours * 3600 < 3
