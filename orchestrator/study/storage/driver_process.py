"""Facts that tell the process of a driver from all others, and what this machine knows about that process.

The wall clock is not among them, because it can be set. Linux counts the start of a process in ticks since the machine
started, and gives each start of the machine an id.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from orchestrator.study.storage.stored_names import DRIVER_ATTRS

HOST = DRIVER_ATTRS["host"]
PID = DRIVER_ATTRS["pid"]
BORN = DRIVER_ATTRS["born"]
BOOT = DRIVER_ATTRS["boot"]
NAMESPACES = DRIVER_ATTRS["namespaces"]
START_TICKS = DRIVER_ATTRS["start_ticks"]

PROC = Path("/proc")


class ProcessState(enum.Enum):
    """What this machine knows about the process of a driver."""

    GONE = "gone"
    """It ran here and has ended: no process has its number and its start."""
    SUSPENDED = "suspended"
    """It is here and stopped by a signal, such as Ctrl-Z sends. It can be continued."""
    PRESENT = "present"
    UNKNOWN = "unknown"
    """It is out of sight: on another machine or in another container, or an older version wrote too few facts."""


def describe_this_process() -> dict[str, Any]:
    """Return the facts about this process that `state_of` needs.

    Without Linux's /proc only the host, the number and the start by the clock are known.
    """
    facts: dict[str, Any] = {
        HOST: socket.gethostname(),
        PID: os.getpid(),
        # Read by version 0.1.0 alone: it moves when the clock is set.
        BORN: psutil.Process().create_time(),
    }
    surroundings = _surroundings()
    if surroundings is not None:
        _, start_ticks = _read_stat(os.getpid())
        facts |= surroundings | {START_TICKS: start_ticks}
    return facts


def state_of(facts: Mapping[str, Any]) -> ProcessState:
    """Return what this machine knows about the process that wrote the facts."""
    surroundings = _surroundings()
    if surroundings is None or any(facts.get(name) != value for name, value in surroundings.items()):
        return ProcessState.UNKNOWN

    try:
        # Signal 0 is not sent. It finds processes of other users even where /proc hides them.
        os.kill(facts[PID], 0)
    except ProcessLookupError:
        return ProcessState.GONE
    except PermissionError:
        pass

    try:
        state, start_ticks = _read_stat(facts[PID])
    except OSError:
        return ProcessState.UNKNOWN

    # A number is reused after some time. A zombie has ended, and its parent has not looked yet.
    if start_ticks != facts[START_TICKS] or state in "ZX":
        return ProcessState.GONE
    return ProcessState.SUSPENDED if state in "Tt" else ProcessState.PRESENT


def _surroundings() -> dict[str, Any] | None:
    """Return in what a process number and a start mean something; None if this process cannot tell."""
    try:
        # In a new namespace whose /proc is still the old one, numbers of processes mean others.
        if int(str((PROC / "self").readlink())) != os.getpid():
            return None

        # Starts are counted in the time namespace, which old kernels do not have.
        links = [PROC / "self/ns" / name for name in ("pid", "time")]
        return {
            HOST: socket.gethostname(),
            BOOT: (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
            NAMESPACES: [str(link.readlink()) for link in links if link.is_symlink()],
        }
    except (OSError, ValueError):
        return None


def _read_stat(pid: int) -> tuple[str, int]:
    """Return the state of a process as a letter, and its start in clock ticks since the machine started."""
    # The second field is the name in parentheses, which may hold spaces and parentheses.
    fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return fields[0], int(fields[19])
