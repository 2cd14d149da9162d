"""What a result was made with: versions, the code's commit, the lock, the machine."""

from __future__ import annotations

import functools
import hashlib
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("sptune", "torch", "timm", "torchvision", "ray", "optuna", "mlflow")


def versions() -> dict[str, str]:
    """Python's and of each package that decides what a number is."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@functools.cache
def code() -> str:
    """Hash of this package's own files, wherever they are installed."""
    digest = hashlib.sha256()
    for package in ("orchestrator", "trainer"):
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def software() -> dict[str, str]:
    """Versions, and where this is a checkout its commit (with + where files differ from it) and its lock's hash."""
    told = {"software": " ".join(f"{name} {number}" for name, number in versions().items())}
    if (lock := ROOT / "requirements.lock").is_file():
        told["lock"] = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    if (ROOT / ".git").exists():
        commit, changed = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "-uno")
        if commit is not None:
            told["commit"] = commit + ("+" if changed else "")
    return told


def machine(device: str) -> dict[str, str]:
    """The name of this host, and of the device that a trial ran on."""
    return {"host": socket.gethostname(), "device": device}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or a checkout of somebody else's: the versions say what they can
    return done.stdout.strip()
