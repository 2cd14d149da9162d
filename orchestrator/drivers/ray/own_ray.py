"""Options of a Ray that sptune starts for itself: its cores, its folder, its token, and the path of its workers."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.job_config import JobConfig

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
