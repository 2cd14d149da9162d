"""Cores and memory that this process may use. Both can be less than what the machine has."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SLURM_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""Variables with the cores of a Slurm job. Some clusters set them and do not enforce them. The first that is set
counts."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount that this process may use, and what limits it."""

    amount: int
    reason: str
    """What limits it, such as `CPU affinity`; empty if nothing does."""


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    return core_limit().amount


def usable_memory() -> int:
    """Return the bytes of memory that this process may use."""
    return memory_limit().amount


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, by NVIDIA's tool. It is empty without the tool.

    For first values of a spec: torch may still be unable to use one.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []

    names = [line.strip() for line in told.stdout.splitlines() if line.strip()]
    # The tool does not know which of them this process may see.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len([part for part in visible.split(",") if part.strip()])]


def core_limit(root: Path = Path("/")) -> Limit:
    """Return the cores that this process may use: affinity, the quota of its control groups, and Slurm limit them.

    Args:
        root: folder that holds `proc` and `sys`, for tests.
    """
    limits = [Limit(os.cpu_count() or 1, "")]
    # taskset, a cpuset and most Slurm clusters set the affinity. macOS has none.
    if hasattr(os, "sched_getaffinity"):
        limits.append(Limit(len(os.sched_getaffinity(0)), "CPU affinity"))

    for quota in _cpu_quotas(root):
        # A part of a core does not carry a worker.
        limits.append(Limit(max(1, int(quota)), "CPU quota of the control group"))

    variable = next((name for name in SLURM_VARIABLES if os.environ.get(name, "").isdecimal()), None)
    if variable is not None:
        limits.append(Limit(max(1, int(os.environ[variable])), variable))

    # The first of equals wins, so a limit that takes nothing away is not named.
    return min(limits, key=lambda limit: limit.amount)


def memory_limit(root: Path = Path("/")) -> Limit:
    """Return the bytes of memory that this process may use, which its control groups limit. `root` as above."""
    limits = [Limit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "")]
    for folder, version in _control_groups("memory", root):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        # Version 2 writes `max` for no limit, version 1 a number that no machine has.
        number = _read(folder / name)
        if number.isdecimal():
            limits.append(Limit(int(number), "memory limit of the control group"))
    return min(limits, key=lambda limit: limit.amount)


def process_limit(root: Path = Path("/")) -> Limit | None:
    """Return how many processes and threads this user or this container may have; None if nothing limits them."""
    limits = []
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    # The superuser is exempt from this one.
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        limits.append(Limit(soft, "ulimit -u"))

    for folder, _ in _control_groups("pids", root):
        number = _read(folder / "pids.max")
        if number.isdecimal():
            limits.append(Limit(int(number), "pids.max of the control group"))
    return min(limits, key=lambda limit: limit.amount, default=None)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the quota of CPU time of each control group that has one, in cores."""
    for folder, version in _control_groups("cpu", root):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")

        # `max` in version 2 and -1 in version 1 stand for no quota.
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)


def _control_groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups that may limit a resource, with the version of each.

    A limit of an outer group holds for the inner ones. A container may see its group as the outermost one, whatever
    path the kernel names, so that one is always among them.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        # A line is `number:controllers:path`. Version 2 has the number 0 and names no controllers.
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
            version = 2
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
            version = 1
        else:
            continue

        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                yield folder, version


def _read(file: Path) -> str:
    """Return the text of a file of the kernel; an empty text if there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
