"""A sweep on machines as they are: a launch under many bad conditions at once has the results of any other."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.processes import SPTUNE, launch_here, outcome

SPEC: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [100],
    "fixed": {"epochs": 1, "warmup_epochs": 0, "batch_size": 32},
    "space": {"lr": {"type": "float", "low": 0.005, "high": 0.05, "log": True}},
    "search": {"trials": 2, "startup_trials": 1, "max_concurrent": 1, "seed": 0},
    "final": {"seeds": [42]},
}
MODULES = ("trainer", "orchestrator", "search_spaces", "tests", "torch", "ray", "optuna", "yaml", "random")
"""Names of files that people have in their folders: packages of sptune, of libraries and of Python."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    # A comment in UTF-8, which a Latin-1 or ASCII locale cannot read by itself.
    path.write_text(f"# größer × 2\n{yaml.safe_dump(SPEC)}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    home = tmp_path_factory.mktemp("plain")
    launch_here(spec, home)
    return outcome(home, "tiny")


def hostile_environment(folder: Path) -> dict[str, str]:
    """Variables that shells, schedulers and administrators set, each in the worst way."""
    long = folder / ("x" * 80)
    long.mkdir()
    return {
        **os.environ,
        "TMPDIR": str(long),
        # No folder can be made there, not even by root.
        "HOME": "/dev/null",
        "PYTHONPATH": os.pathsep,
        "PYTHONWARNINGS": "error",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
        # What is printed has tests of its own.
        "PYTHONIOENCODING": "utf-8",
        "TERM": "",
        # Nothing listens there: whatever asks it fails.
        **dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY", "grpc_proxy"), "http://127.0.0.1:9"),
        "no_proxy": "",
    }


def hostile_limits() -> None:
    """Allow one core and 256 open files, and hide new files from others. Called in the child."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
    os.umask(0o077)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_launch_on_a_hostile_machine_has_the_results_of_any_other(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the {name}.py of the working directory runs')\n")

    home = tmp_path / "home"
    done = subprocess.run(
        [SPTUNE, "launch", str(spec), "--home", str(home)],
        cwd=folder,
        env=hostile_environment(tmp_path),
        preexec_fn=hostile_limits,  # pytest's process has no threads that hold locks here
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert outcome(home, "tiny") == expected
    assert sorted(path.stem for path in folder.iterdir() if path.name != "__pycache__") == sorted(MODULES)
    # Ray's folder, which the long TMPDIR could not hold, has gone with it.
    assert [*Path("/tmp").glob("ray-*/session_latest")] == []


def why_no_namespace() -> str:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs root, unshare and ip"
    done = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False)
    return "namespaces cannot be made here" if done.returncode else ""


def test_a_user_without_name_and_home_can_launch_without_network_and_shared_memory(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    """As in `docker run --user 12345 --network none` with the 64 MB of shared memory that it has by default."""
    if reason := why_no_namespace():
        pytest.skip(reason)

    home = tmp_path / "home"
    steps = (
        "mount --bind /dev/null /etc/passwd",
        "mount --bind /dev/null /etc/nsswitch.conf",
        "mount -t tmpfs -o size=64m tmpfs /dev/shm",
        "ip link set lo up",
        f"exec {SPTUNE} launch {spec} --home {home}",
    )
    removed = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "SPTUNE_CACHE")
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-e", "-c", "\n".join(steps)],
        env={name: value for name, value in os.environ.items() if name not in removed} | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(home, "tiny") == expected
    # The cache is where a user without a home has it.
    assert [*(tmp_path / "sptune-cache-0").rglob("*.u8")]
