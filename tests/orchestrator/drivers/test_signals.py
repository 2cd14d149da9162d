"""What signals do to a driver, its terminal and its readers."""

from __future__ import annotations

import gc
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.drivers.signals import deferred, first_signal, interrupt_on_signal, keeping_sigterm, stop_on_signal
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from orchestrator.tracking import mlflow_tracker
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from tests.integration.processes import SPTUNE


@pytest.fixture
def sweep(spec: SweepSpec, tmp_path: Path) -> Sweep:
    return Sweep.resume(spec, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), MemoryTracker())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_after_the_epoch_and_the_second_at_once(sweep: Sweep, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal(sweep):
        os.kill(os.getpid(), number)
        assert sweep.halt is not None
        assert (sweep.halt.reason, sweep.halt.interrupt_running) == (f"stopped by {number.name}", True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_the_first_signal_of_a_launch_is_remembered_until_the_next_one(sweep: Sweep) -> None:
    with interrupt_on_signal(), stop_on_signal(sweep):
        assert first_signal() is None
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert first_signal() is signal.SIGTERM
    with interrupt_on_signal():
        assert first_signal() is None


def test_a_sigterm_while_ray_starts_is_heard_by_the_handler_that_ray_replaces() -> None:
    def init() -> None:
        # As `ray.init` does.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    with interrupt_on_signal():
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), keeping_sigterm():
            init()
        assert signal.getsignal(signal.SIGTERM) is handler

        # Another exit is none of its business.
        with pytest.raises(SystemExit), keeping_sigterm():
            sys.exit(1)
        assert signal.getsignal(signal.SIGTERM) is handler


def test_a_hang_up_that_nohup_ignores_stays_ignored(sweep: Sweep) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_on_signal(), stop_on_signal(sweep):
            os.kill(os.getpid(), signal.SIGHUP)
        assert sweep.halt is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sweep_can_be_driven_by_another_thread_than_the_main_one(sweep: Sweep) -> None:
    failures: list[BaseException] = []

    def drive() -> None:
        try:
            with interrupt_on_signal(), stop_on_signal(sweep):
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    assert failures == []


def test_a_driver_saves_although_its_terminal_is_gone(tmp_path: Path) -> None:
    code = """
import sys, time
from orchestrator.drivers.signals import stop_on_signal
class Sweep:
    halt = reason = None
    def stop(self, reason): self.reason = reason
sweep = Sweep()
with stop_on_signal(sweep):
    print("ready", flush=True)
    while sweep.reason is None:
        time.sleep(0.05)
    print("printed to a terminal that is gone", flush=True)
    print("as well", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(sweep.reason)
"""
    ours, theirs = pty.openpty()
    saved = tmp_path / "saved"
    # The first process of a session gets the terminal that it opens.
    script = f"import os; os.open(os.ttyname(0), os.O_RDWR)\n{code}"
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(saved)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert os.read(ours, 100).strip() == b"ready"
    os.close(ours)
    assert driver.wait(60) == 0
    assert saved.read_text() == "stopped by SIGHUP"


@pytest.mark.parametrize("arguments", [("--help",), ("backbones",)])
def test_a_reader_that_leaves_gets_no_trace(arguments: tuple[str, ...]) -> None:
    with subprocess.Popen([SPTUNE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


class Garbage:
    """It gets a signal while it is deleted."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        # Some steps of Python, in which the handler runs.
        for _ in range(1000):
            time.sleep(0)


def test_a_signal_that_comes_in_a_destructor_is_heard_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    Garbage()
    with pytest.raises(KeyboardInterrupt), interrupt_on_signal(), deferred():
        gc.collect()
    assert capsys.readouterr().err == ""


class Hanging:
    """Stands for MLflow's client, which tries a request again for minutes."""

    def load(self, _: set[str]) -> None:
        time.sleep(60)


def test_a_driver_that_stops_leaves_an_mlflow_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "STUCK_S", 0.5)
    tracker = MlflowTracker(Hanging())  # type: ignore[arg-type]
    tracker.open()
    started = time.monotonic()
    tracker.close(in_haste=True)
    assert time.monotonic() - started < 20


def test_ctrl_c_ends_the_wait_for_an_mlflow_that_hangs() -> None:
    tracker = MlflowTracker(Hanging())  # type: ignore[arg-type]
    tracker.open()
    timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    started = time.monotonic()
    with interrupt_on_signal():
        tracker.close()
    timer.join()
    assert time.monotonic() - started < 20
