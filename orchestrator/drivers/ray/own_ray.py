"""A Ray that sptune starts for itself: its cores, its folder, its token, the path of its workers, and its processes.

Signals go to more processes than the driver: `timeout` and a terminal signal a process group, systemd and Slurm all
processes of a service or job. Ray's processes must live until the trials have saved, so they never hear these signals.
They end when the driver ends them, and with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.job_config import JobConfig

from orchestrator.drivers.ray.tune_internals import own_node
from orchestrator.environment.temporary import (
    default_ray_folder,
    problem_of_folder,
    short_folder,
    variable_of_folder,
)
from orchestrator.errors import ClusterError
from trainer.machine import usable_cores

OBJECT_STORE_BYTES = 200_000_000
"""Memory for objects that processes pass to each other. Ours pass configs and metrics, which take a few kilobytes."""
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
DRIVERS_SIGNALS = {signal.SIGTERM, signal.SIGHUP}
"""Signals that Ray's processes must not hear. Ray itself keeps SIGINT from them."""


class PlainPath(JobConfig):
    """The configuration of a job whose workers import from where they are installed, and from nowhere else.

    Ray puts the driver's working directory, and the folder of its script, first on the path of all workers. A file
    `trainer.py` or `random.py` there would take the place of a package.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        """Return True, so that Ray adds no folder: it adds none to a job that brings a working directory."""
        return True


@contextmanager
def own_ray_options() -> Iterator[dict[str, Any]]:
    """Yield the options with which `ray.init` starts a Ray on this machine. Call `ray.shutdown` within the context.

    Raises:
        ClusterError: if no folder can hold Ray's sockets, with the variable that names another.
    """
    options: dict[str, Any] = {
        # By default Ray joins any cluster that someone has started on this machine.
        "address": "local",
        "num_cpus": usable_cores(),
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    _set_token()
    with _session_folder() as folder:
        if folder is not None:
            options["_temp_dir"] = folder
        yield options


@contextmanager
def _session_folder() -> Iterator[str | None]:
    """Yield a folder for Ray's sockets and logs; None if Ray's own choice is good. Another is deleted at the end."""
    problem = problem_of_folder(default_ray_folder())
    if problem is None:
        yield None
        return

    parent = short_folder()
    if parent is None:
        raise ClusterError(
            f"Ray cannot start: its folder {default_ray_folder()} {problem}, and /tmp, /var/tmp and /dev/shm are no "
            f"better. Set RAY_TMPDIR (now {variable_of_folder()} counts) to a short folder on a local disk, such as "
            "/scratch/me."
        )

    # Logs may still be written while the folder is deleted.
    with tempfile.TemporaryDirectory(prefix="ray-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def deaf_processes() -> Iterator[None]:
    """Have the processes that start in this context, and theirs, never hear SIGTERM and SIGHUP.

    A worker that must hear SIGTERM unblocks it.
    """
    # Processes inherit the mask of the thread that starts them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, DRIVERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def kill_at_shutdown() -> None:
    """Have the next `ray.shutdown` kill the processes that this process has started for Ray.

    It would send each one SIGTERM, which they do not hear, and wait a second for its end. Those below the raylet would
    look for the raylet for a minute.
    """
    node = own_node()
    if node is None or not node.all_processes:
        return
    kill_started = node.kill_all_processes

    def kill(**options: Any) -> None:
        below = _processes_below(info.process.pid for infos in node.all_processes.values() for info in infos)
        kill_started(**(options | {"allow_graceful": False}))
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()

    node.kill_all_processes = kill


def _processes_below(pids: Iterable[int]) -> list[psutil.Process]:
    below = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            below += psutil.Process(pid).children(recursive=True)
    return below


def _set_token() -> None:
    """Set a random token in the environment, unless the user has one.

    Without it Ray writes a token to the user's home, which on a compute node may be missing or read-only. The token
    stays for the next Ray of this process, because Ray reads it once a process.
    """
    if not any(os.environ.get(name) for name in TOKEN_VARIABLES) and not _has_token_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _has_token_file() -> bool:
    try:
        return os.access(Path.home() / ".ray" / "auth_token", os.R_OK)
    except RuntimeError:
        # The user has no home.
        return False
