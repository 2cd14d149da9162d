"""What a machine knows about the process that wrote a lease: awkward facts, and the real processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from orchestrator.study.storage import driver_process
from orchestrator.study.storage.driver_process import ProcessState, describe_this_process, state_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the facts come from Linux's /proc")


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process of this machine with an awkward name, and the facts that it wrote about itself."""
    code = """
import json, time
from orchestrator.study.storage.driver_process import describe_this_process
open("/proc/self/comm", "w").write("a) Z 1 (b")
print(json.dumps(describe_this_process()), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, ProcessState.PRESENT),
        # Only the wall clock moved: btime of /proc/stat, and with it the start by the clock.
        ({"born": 0.0}, ProcessState.PRESENT),
        ({"born": 2.0**40}, ProcessState.PRESENT),
        # The number was reused.
        ({"start_ticks": 1}, ProcessState.GONE),
        ({"pid": 2**22 + 1}, ProcessState.GONE),
        # Numbers and starts mean others there.
        ({"host": "elsewhere", "pid": 2**22 + 1}, ProcessState.UNKNOWN),
        ({"boot": "another", "pid": 2**22 + 1}, ProcessState.UNKNOWN),
        ({"namespaces": ["pid:[1]", "time:[1]"], "pid": 2**22 + 1}, ProcessState.UNKNOWN),
        ({"boot": None, "namespaces": None, "start_ticks": None, "pid": 2**22 + 1}, ProcessState.UNKNOWN),
    ],
)
def test_a_process_is_known_by_what_the_clock_cannot_move(changes: dict[str, Any], state: ProcessState) -> None:
    assert state_of(describe_this_process() | changes) is state


def test_facts_of_version_0_1_0_tell_nothing_about_the_process() -> None:
    written = {"host": os.uname().nodename, "pid": os.getpid(), "born": psutil.Process().create_time(), "since": "2026"}
    assert state_of(written) is ProcessState.UNKNOWN
    assert written.keys() - {"since"} <= describe_this_process().keys(), "and that version finds what it reads"


def test_a_process_is_suspended_continued_and_gone_at_once(other: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, facts = other
    assert state_of(facts) is ProcessState.PRESENT
    for number, state in ((signal.SIGSTOP, ProcessState.SUSPENDED), (signal.SIGCONT, ProcessState.PRESENT)):
        process.send_signal(number)
        # The kernel may take a moment.
        while state_of(facts) is not state:
            pass

    # A zombie still, because nobody has waited for it.
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert state_of(facts) is ProcessState.GONE
    process.wait()
    assert state_of(facts) is ProcessState.GONE


def test_a_foreign_proc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    # As after `unshare --pid` without a new /proc: the number in it is not this process's own.
    (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    facts = describe_this_process()
    monkeypatch.setattr(driver_process, "PROC", tmp_path)
    assert state_of(facts) is ProcessState.UNKNOWN
    assert "start_ticks" not in describe_this_process()
