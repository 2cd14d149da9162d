"""The options of a Ray of our own: what this process may use, a folder that fits, a token, and no foreign folder."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray._private import worker
from ray.job_config import JobConfig

from orchestrator.drivers.ray import own_ray
from orchestrator.drivers.ray.cluster import connected
from orchestrator.drivers.ray.own_ray import PlainPath, deaf_processes, kill_at_shutdown, own_ray_options
from orchestrator.errors import ClusterError
from trainer.machine import usable_cores


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what a test makes of it is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_ray_adds_no_folder_of_the_driver_to_the_path_of_workers() -> None:
    # Ray asks this method, and adds the script's folder and the working directory if it says no.
    assert not JobConfig()._runtime_env_has_working_dir()
    assert PlainPath()._runtime_env_has_working_dir()
    assert inspect.getsource(worker.connect).count("not job_config._runtime_env_has_working_dir()") == 2


def test_ray_has_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with own_ray_options() as options:
        assert options["num_cpus"] == usable_cores()

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    with own_ray_options() as options:
        assert options["num_cpus"] == 1
        assert options["address"] == "local"


def test_ray_has_a_token_of_its_own_unless_the_user_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with own_ray_options():
        token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    # Ray reads it once a process, so the next Ray has the same.
    with own_ray_options():
        assert os.environ["RAY_AUTH_TOKEN"] == token

    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with own_ray_options():
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"

    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of a file")
    with own_ray_options():
        assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("home", ["/dev/null", None])
def test_a_home_that_cannot_be_used_is_no_reason_to_fail(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    if home is None:
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("HOME", home)
    with own_ray_options():
        assert os.environ["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_for_temporary_files_is_replaced_until_ray_has_ended(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with own_ray_options() as options:
        assert "_temp_dir" not in options, "Ray's own choice is good"

    monkeypatch.setenv(variable, str(tmp_path / ("x" * 60)))
    with own_ray_options() as options:
        folder = Path(options["_temp_dir"])
        assert folder.stat().st_mode & 0o077 == 0, "nobody else reads the logs or uses the sockets"
        assert len(str(folder)) <= 43
    assert not folder.exists()
    assert [*tmp_path.iterdir()] == []


def test_without_any_folder_the_sentence_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    monkeypatch.setattr(own_ray, "short_folder", lambda: None)
    with pytest.raises(ClusterError, match="Ray cannot start: its folder /dev/null/ray cannot be written") as raised:
        connected(None).__enter__()
    assert "Set RAY_TMPDIR (now RAY_TMPDIR counts) to a short folder on a local disk" in str(raised.value)


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**options: object) -> None:
        # What Ray raises on a machine that is too busy. It is a plain Exception.
        raise Exception("The current node timed out during startup.\nMore lines.")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", too_late)
    with pytest.raises(ClusterError) as raised, connected(None):
        pass
    assert str(raised.value) == (
        "Ray cannot start on this machine: The current node timed out during startup. `sptune doctor` looks for the "
        "reason; `--inline` runs the sweep without Ray."
    )


def test_processes_of_ray_do_not_hear_the_signals_of_the_driver_and_are_killed_with_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deaf_processes():
        # A raylet and its agent.
        raylet = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert raylet.stdout is not None
    agent = psutil.Process(int(raylet.stdout.readline()))
    for process in (raylet.pid, agent.pid):
        status = Path(f"/proc/{process}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert all(blocked & 1 << (number - 1) for number in (signal.SIGTERM, signal.SIGHUP)), status
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def kill_all_processes(check_alive: bool, allow_graceful: bool) -> None:
        assert not allow_graceful, "SIGTERM is not heard"
        raylet.kill()
        raylet.wait()

    started: dict[str, list[Any]] = {"raylet": [SimpleNamespace(process=raylet)]}
    node = SimpleNamespace(all_processes=started, kill_all_processes=kill_all_processes)
    monkeypatch.setattr(worker, "_global_node", node)
    kill_at_shutdown()
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    raylet.stdout.close()
    agent.wait(10)
