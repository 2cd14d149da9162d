"""Who drives, and how a driver ends: a clock that is set, another container, sleep, lost terminals, full disks."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.lease import GRACE_PERIOD_S
from orchestrator.study.trial import TrialState
from tests.integration.processes import (
    SPTUNE,
    Driver,
    launch_here,
    outcome,
    read_until,
    runs_in_mlflow,
    sptune_here,
    start_sptune,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts need root")
SPEC: dict[str, Any] = {
    "name": "slow",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [0.05],
    "fixed": {"epochs": 5000, "warmup_epochs": 0},
    "space": {"lr": {"type": "float", "low": 0.005, "high": 0.05, "log": True}},
    "search": {"trials": 2, "max_concurrent": 2, "startup_trials": 1, "seed": 0, "pruner": {"type": "none"}},
    "final": {"seeds": [42]},
    "resources": {"cpus": 1},
}

# A library that adds seconds to the wall clock of a process, as SQLite, Python and all others in it read it.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static time_t step(void) { return atol(getenv("CLOCK_STEP_S")); }
int clock_gettime(clockid_t clock, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += step();
  return code;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
  int code = real(now, zone);
  now->tv_sec += step();
  return code;
}
time_t time(time_t *now) {
  struct timespec spec;
  clock_gettime(CLOCK_REALTIME, &spec);
  if (now) *now = spec.tv_sec;
  return spec.tv_sec;
}
"""


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "slow.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


@pytest.fixture(scope="class")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="class")
def driver(home: Path, store: Path) -> Iterator[Driver]:
    """A driver that would work for hours."""
    with start_sptune("launch", written(home), "--inline", home=home) as driver:
        read_until(driver, 0)
        # It need not come far, and leaves the cores to the tests.
        for thread in psutil.Process(driver.pid).threads():
            os.setpriority(os.PRIO_PROCESS, thread.id, 19)
        yield driver
        driver.kill()


def together(commands: Mapping[str, str], env: Mapping[str, str] | None = None) -> dict[str, tuple[int, str]]:
    """Run shell commands at once, and return the exit status and the output of each."""
    running = {
        name: subprocess.Popen(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(env or {})},
        )
        for name, command in commands.items()
    }  # fmt: skip
    return {name: (process.wait(120), process.communicate()[0]) for name, process in running.items()}


def assert_refused(ends: Mapping[str, tuple[int, str]], driver: Driver) -> None:
    for name, (code, output) in ends.items():
        assert (code, f"slow is driven by process {driver.pid} on" in output) == (2, True), (name, output)
    assert driver.poll() is None


class TestAtWork:
    """Beside a driver that is at work."""

    @needs_root
    @pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the clock")
    def test_a_clock_that_is_set_frees_no_lease(self, driver: Driver, home: Path, tmp_path: Path) -> None:
        (tmp_path / "clock.c").write_text(CLOCK)
        library = tmp_path / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)

        commands = {}
        for step_s in (-3600, -1, 1, 3600):
            # The kernel's time of its own start moves as well, and with it the start of each process by the clock.
            stat = tmp_path / f"stat{step_s}"
            lines = Path("/proc/stat").read_text().splitlines(keepends=True)
            stat.write_text(
                "".join(f"btime {int(x.split()[1]) + step_s}\n" if x.startswith("btime") else x for x in lines)
            )
            rm = f"LD_PRELOAD={library} CLOCK_STEP_S={step_s} {SPTUNE} rm slow --yes --home {home}"
            commands[str(step_s)] = f"unshare -m bash -c 'mount --bind {stat} /proc/stat && {rm}'"
        assert_refused(together(commands), driver)

    @needs_root
    def test_a_launch_in_another_container_does_not_take_the_lease(self, driver: Driver, home: Path) -> None:
        resume = f"{SPTUNE} resume slow --inline --home {home}"
        commands = {
            "a container": f"unshare --pid --fork --mount-proc {resume}",
            "a namespace whose /proc is another's": f"unshare --pid --fork {resume}",
            "a clock of its own since the start": f"unshare --time --boottime 100000 --fork {resume}",
        }
        assert_refused(together(commands), driver)

    def test_a_suspended_driver_keeps_its_lease_and_goes_on(self, driver: Driver, home: Path) -> None:
        driver.send_signal(signal.SIGSTOP)
        time.sleep(GRACE_PERIOD_S + 5)
        commands = {
            "resume": f"{SPTUNE} resume slow --inline --home {home}",
            "rm": f"{SPTUNE} rm slow --yes --home {home}",
        }
        ends = together(commands)
        driver.send_signal(signal.SIGCONT)
        assert_refused(ends, driver)
        assert all(f"(suspended; `kill -CONT {driver.pid}` continues it)" in output for _, output in ends.values())

        shown = sptune_here("status", "slow", home=home)
        assert f"driven by process {driver.pid} on" in shown
        assert "suspended" not in shown
        assert driver.poll() is None


def test_a_killed_driver_is_told_as_dead_with_the_way_on(tmp_path: Path, store: Path) -> None:
    with start_sptune("launch", written(tmp_path), "--inline", home=tmp_path) as driver:
        read_until(driver, 0)
        driver.kill()
    shown = sptune_here("status", "slow", home=tmp_path)
    assert f"no driver is running it: process {driver.pid} on " in shown
    assert "is dead, its last heartbeat was " in shown
    assert f"Run `sptune resume slow --home {tmp_path}` to continue" in shown


def test_ctrl_c_at_a_locked_database_and_a_lost_terminal_lose_nothing(tmp_path: Path, store: Path) -> None:
    spec = written(tmp_path, fixed={"epochs": 60, "warmup_epochs": 0})

    # Another program has locked the database when Ctrl-C comes.
    with start_sptune("launch", spec, home=tmp_path) as driver:
        read_until(driver, 0)
        _wait_for_epochs(tmp_path)
        other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(3)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(120) == 130
        other.close()
        output = driver.stdout.read() if driver.stdout is not None else ""
    assert "the study database cannot be written: (sqlite3.OperationalError) database is locked" in output
    assert f"Run `sptune resume slow --home {tmp_path}` to continue" in output
    assert "Traceback" not in output

    # The terminal is lost: its processes get SIGHUP, those of Ray as well, and nothing can be printed any more.
    with _in_terminal("resume", "slow", "--home", str(tmp_path)) as (process, hang_up):
        _wait_for_epochs(tmp_path)
        hang_up()
        assert process.wait(180) == 130
    status = sptune_here("status", "slow", home=tmp_path)
    assert "no driver is running it; stopped by SIGHUP" in status
    states = [entry[5] for entry in outcome(tmp_path, "slow")]
    assert TrialState.RUNNING not in states
    assert TrialState.FAILED not in states

    # Each trial comes to its end, and is logged once.
    launch_here(spec, tmp_path)
    found = outcome(tmp_path, "slow")
    assert [(entry[5], len(entry[8])) for entry in found] == [(TrialState.COMPLETE, 60)] * 3  # type: ignore[arg-type]
    assert len(runs_in_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "slow")) == 3


@contextlib.contextmanager
def _in_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Start the command as the first process of a terminal. The second value is a function that loses the terminal."""
    ours, theirs = pty.openpty()
    is_lost = threading.Event()

    def read() -> None:
        # A terminal that nobody reads would block the command.
        while not is_lost.is_set():
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 65536)
        os.close(ours)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def hang_up() -> None:
        is_lost.set()
        reader.join()

    command = ["setsid", "--ctty", SPTUNE, *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield process, hang_up
    finally:
        process.kill()
        process.wait()
        hang_up()


def _wait_for_epochs(home: Path) -> None:
    """Wait until a driver works on the sweep and has stored an epoch since."""
    database = StudyDatabase(f"sqlite:///{home / 'studies.db'}")
    deadline = time.monotonic() + 240
    try:
        while not database.lease("slow").holders():
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        database.close()
    before = _num_epochs(home)
    while _num_epochs(home) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _num_epochs(home: Path) -> int:
    with sqlite3.connect(home / "studies.db") as database:
        (number,) = database.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchone()
    return int(number)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@needs_root
def test_ctrl_c_at_a_full_disk_is_heard(small_disk: Path, tmp_path: Path, store: Path) -> None:
    with start_sptune("launch", written(tmp_path), "--inline", home=small_disk / "home") as driver:
        read_until(driver, 0)
        while not [*small_disk.glob("home/sweeps/slow/trials/*/checkpoint.pt")]:
            time.sleep(0.1)
        with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 1024)

        output = ""
        assert driver.stdout is not None
        for line in driver.stdout:
            output += line
            if "trying again" in line:
                break
        driver.send_signal(signal.SIGINT)
        output += driver.communicate(timeout=120)[0]
    assert driver.returncode == 130
    assert "No space left" in output or "disk is full" in output
    assert f"Run `sptune resume slow --home {small_disk / 'home'}` to continue" in output


SHUT_DOWN = """
import gc, sys, threading
import ray._private.worker as worker
from orchestrator.drivers.ray.cluster import connected

class Node:
    pass

class Watched:
    # Collects garbage in another thread where Ray has let go of Python and of its own state.
    def __init__(self, real):
        self.__dict__["real"] = real
    def __getattr__(self, name):
        return getattr(self.__dict__["real"], name)
    def shutdown_driver(self):
        self.real.shutdown_driver()
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()

with connected(None):
    import ray
    node = Node()
    node.itself, node.reference = node, ray.put(1)
    del node
    worker.global_worker.core_worker = Watched(worker.global_worker.core_worker)
print("ended")
"""


def test_ray_does_not_end_a_driver_whose_garbage_is_collected_while_it_shuts_down() -> None:
    done = subprocess.run([sys.executable, "-c", SHUT_DOWN], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
