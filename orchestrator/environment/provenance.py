"""Provenance of a result: versions of packages, the commit of the code, the lock file, the machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

from orchestrator.environment.mps import has_mps

ROOT = Path(__file__).parents[2]
PACKAGES = ("sptune", "torch", "timm", "torchvision", "ray", "optuna", "mlflow")
"""Packages whose version can change a number."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@functools.cache
def code() -> str:
    """Return a hash of this package's own source files, wherever they are installed."""
    digest = hashlib.sha256()
    for package in ("orchestrator", "trainer"):
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def software() -> dict[str, str]:
    """Return the versions, the hash of the lock file and the commit, as far as they exist.

    Lock file and commit exist in a checkout only. The commit ends with `+` if tracked files differ from it.
    """
    provenance = {"software": " ".join(f"{name} {number}" for name, number in versions().items())}

    lock = ROOT / "requirements.lock"
    if lock.is_file():
        provenance["lock"] = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]

    # An installed package may lie below a checkout of somebody else, whose commit would say nothing.
    if (ROOT / ".git").exists():
        commit = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "-uno")
        if commit is not None:
            provenance["commit"] = commit + ("+" if changes else "")

    return provenance


def machine(device: str, *, has_gpu: bool) -> dict[str, str]:
    """Return the name of this host and the kind of device that a trial ran on; with a GPU, which one, and MPS."""
    facts = {"host": socket.gethostname(), "device": device}
    if has_gpu:
        # Ray shows each worker its own GPU, by the host's number.
        number = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
        facts["gpu"] = f"GPU {number} of {facts['host']}"
        facts["mps"] = "yes" if _has_mps() else "no"
    return facts


@functools.cache
def _has_mps() -> bool:
    """Whether MPS runs on this machine, asked once: CUDA asks when a process begins to use a GPU, and never again."""
    return has_mps()


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        # Git is missing, or refuses a checkout of another user. The versions must do then.
        return None
    return process.stdout.strip()
