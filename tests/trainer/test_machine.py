"""Cores and memory: what a process may use counts, and not what the machine has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.machine import Limit, core_limit, memory_limit, process_limit, usable_memory
from trainer.model.device_memory import memory_gb

PRINT = "from trainer.machine import core_limit, memory_limit; print(core_limit().amount, memory_limit().amount)"


def tree(root: Path, files: dict[str, str]) -> Path:
    """A machine's `proc` and `sys` with these files."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


V1 = "4:cpu,cpuacct:/job\n3:memory:/job\n2:pids:/job\n0::/job"
V1_CPU = "sys/fs/cgroup/cpu/job"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"proc/self/cgroup": "0::/"}, 4),
        ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/step/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/step/cpu.max": "200000 100000"}, 2),
        # The outer group has the smaller quota.
        ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/cpu.max": "100000 50000"}, 2),
        # A container whose own group is the outermost that it sees, under a path of the host.
        ({"proc/self/cgroup": "0::/docker/0a1b", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        # A part of a core carries no worker, and less than one core is one.
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "900000 100000"}, 4),
        ({"proc/self/cgroup": V1, f"{V1_CPU}/cpu.cfs_quota_us": "-1", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, 4),
        ({"proc/self/cgroup": V1, f"{V1_CPU}/cpu.cfs_quota_us": "100000", f"{V1_CPU}/cpu.cfs_period_us": "50000"}, 2),
        # Files that say nothing.
        ({"proc/self/cgroup": "nonsense\n\n::", "sys/fs/cgroup/cpu.max": ""}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 0"}, 4),
    ],
)
def test_the_quota_of_any_control_group_around_the_process_limits_its_cores(
    files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    assert core_limit(tree(tmp_path, files)).amount == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": "1000"}, 1000),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": "1000"}, 1000),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": "max"}, None),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000"}, 2000),
        # Version 1 writes a number that no machine has for no limit.
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_memory_of_a_control_group_is_the_memory_there_is(
    files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    assert memory_limit(tree(tmp_path, files)).amount == (limit or memory_limit(tmp_path / "none").amount)


def test_the_memory_of_a_cpu_is_what_the_process_may_use() -> None:
    assert memory_gb("cpu")[1] == usable_memory() / 1e9


def test_a_limit_is_named_by_what_sets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert core_limit(tmp_path) == Limit(4, "")

    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert core_limit(tmp_path) == Limit(3, "SLURM_CPUS_ON_NODE")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert core_limit(tmp_path) == Limit(2, "SLURM_CPUS_PER_TASK")

    # A variable cannot give more than there is, and one without a number says nothing.
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert core_limit(tmp_path) == Limit(4, "")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2(x4)")
    assert core_limit(tmp_path) == Limit(3, "SLURM_CPUS_ON_NODE")

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert core_limit(tmp_path) == Limit(1, "CPU affinity")

    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/pids.max": "100"}
    assert process_limit(tree(tmp_path, files)) == Limit(100, "pids.max of the control group")


def printed(**options: object) -> list[int]:
    """Cores and bytes that a process of its own may use."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        capture_output=True,
        text=True,
        check=True,
        **options,  # type: ignore[call-overload]
    )
    return [int(word) for word in done.stdout.split()]


def test_a_process_that_may_use_one_core_counts_one() -> None:
    if sys.platform != "linux":
        pytest.skip("this system has no CPU affinity")
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {PRINT}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "1"


@pytest.fixture
def group() -> Iterator[dict[str, Path]]:
    """A real control group: its folder of each controller."""
    root = Path("/sys/fs/cgroup")
    version_2 = (root / "cgroup.controllers").exists()
    folders = {name: (root if version_2 else root / name) / f"sptune-test-{os.getpid()}" for name in ("cpu", "memory")}
    try:
        for folder in dict.fromkeys(folders.values()):
            folder.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield folders
    for folder in dict.fromkeys(folders.values()):
        with contextlib.suppress(OSError):
            folder.rmdir()


def test_a_process_in_a_real_control_group_sees_its_limits(group: dict[str, Path]) -> None:
    version_2 = (group["cpu"] / "cpu.max").exists()
    try:
        if version_2:
            (group["cpu"] / "cpu.max").write_text("100000 100000")
            (group["memory"] / "memory.max").write_text("1073741824")
        else:
            (group["cpu"] / "cpu.cfs_quota_us").write_text("100000")
            (group["memory"] / "memory.limit_in_bytes").write_text("1073741824")
    except OSError as error:
        pytest.skip(f"limits cannot be set here: {error}")

    def enter() -> None:
        for folder in group.values():
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    assert printed(preexec_fn=enter) == [1, 1 << 30]
