"""Conditions of this machine that stop a sweep, slow it down, or change what it may use. Nothing is written."""

from __future__ import annotations

import base64
import hashlib
import locale
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from orchestrator.doctor.checks import THIS_MACHINE, Finding, Verdict
from orchestrator.environment.home import Home
from orchestrator.environment.process import LOOPBACK, PROXY_VARIABLES, home_problem, proxy_variable, variable_set
from orchestrator.environment.temporary import (
    default_ray_folder,
    problem_of_folder,
    short_folder,
    variable_of_folder,
)
from orchestrator.redaction import redact
from trainer.machine import core_limit, memory_limit, process_limit
from trainer.plain_text import counted

MIN_OPEN_FILES = 1024
MIN_PROCESSES = 1024
"""Threads count as processes. Ray starts about 20 processes with 20 threads each, and as many for each worker."""
MIN_SHARED_BYTES = 250_000_000
"""Ray's object store, with some room."""
MIN_MEMORY_GB = 4.0

Condition = Callable[[Home], Iterator[Finding]]


def check_machine(home: Home) -> list[Finding]:
    """Return what was found of each condition that holds on this machine, and its cores and memory."""
    return [finding for condition in CONDITIONS for finding in condition(home)]


def _found(subject: str, detail: str, verdict: Verdict = "ok", remedy: str = "") -> Finding:
    return Finding(where=THIS_MACHINE, subject=subject, detail=detail, verdict=verdict, remedy=remedy)


def _cores(home: Home) -> Iterator[Finding]:
    limit = core_limit()
    detail = f"{limit.amount} of {os.cpu_count() or 1}"
    yield _found("cores", f"{detail}, by {limit.reason}" if limit.reason else detail)


def _memory(home: Home) -> Iterator[Finding]:
    limit = memory_limit()
    detail = f"{limit.amount / 1e9:.1f} GB" + (f", by the {limit.reason}" if limit.reason else "")
    if limit.amount / 1e9 < MIN_MEMORY_GB:
        remedy = f"Ray and one worker need about {MIN_MEMORY_GB:g} GB. Raise the limit, or launch with --inline."
        yield _found("memory", detail, "warning", remedy)
    else:
        yield _found("memory", detail)


def _temporary_folder(home: Home) -> Iterator[Finding]:
    folder = default_ray_folder()
    problem = problem_of_folder(folder)
    if problem is None:
        return

    variable = variable_of_folder()
    detail = f"{folder} {problem}"
    other = short_folder()
    if other is None:
        yield _found(
            variable, detail, "error", "Set RAY_TMPDIR to a short folder on a local disk, such as /scratch/me."
        )
    else:
        remedy = f"Ray's sockets go to a folder in {other} instead; RAY_TMPDIR names another."
        yield _found(variable, detail, "warning", remedy)


def _user_folder(home: Home) -> Iterator[Finding]:
    problem = home_problem()
    if problem is not None:
        remedy = "Caches go to a folder for temporary files. Set SPTUNE_CACHE and HF_HOME to folders that stay."
        yield _found("HOME", f"cannot be written: {problem}", "warning", remedy)


def _proxies(home: Home) -> Iterator[Finding]:
    variables = [spelling for name in PROXY_VARIABLES if (spelling := variable_set(name))]
    if not variables:
        return

    names = ", ".join(f"{name} is {redact(os.environ[name])}" for name in variables)
    server = proxy_variable(home.mlflow_uri)
    if server is not None:
        detail = f"{names}, and requests to MLflow at {redact(home.mlflow_uri)} go through it"
        yield _found("proxy", detail, "warning", "If MLflow is in your own network, add its host to no_proxy.")
    else:
        yield _found("proxy", f"{names}; not used for {', '.join(LOOPBACK)} and what no_proxy names")


def _text(home: Home) -> Iterator[Finding]:
    encodings = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    others = sorted(name for name in encodings if name.lower().replace("-", "") != "utf8")
    if others:
        detail = f"the locale has the encoding {' and '.join(others)}, and names of files may be in UTF-8"
        yield _found("LANG", detail, "warning", "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1.")


def _open_files(home: Home) -> Iterator[Finding]:
    # The command has raised the soft limit to the hard one.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES:
        remedy = (
            f"Raise the hard limit (`ulimit -Hn`, nofile in limits.conf, `docker run --ulimit`) to {MIN_OPEN_FILES}."
        )
        yield _found("open files", f"at most {limit}, and Ray opens hundreds", "warning", remedy)


def _processes(home: Home) -> Iterator[Finding]:
    limit = process_limit()
    if limit is not None and limit.amount < MIN_PROCESSES:
        remedy = f"Raise the limit (`ulimit -u`, `docker run --pids-limit`) to {MIN_PROCESSES}."
        yield _found("processes", f"at most {limit.amount}, by {limit.reason}", "warning", remedy)


def _shared_memory(home: Home) -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not sys.platform.startswith("linux"):
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        detail = "is missing or cannot be written"
    elif shutil.disk_usage(folder).free < MIN_SHARED_BYTES:
        detail = f"has {shutil.disk_usage(folder).free / 1e6:.0f} MB free"
    else:
        return
    remedy = "Ray keeps its objects on disk instead, which is slower. In a container, start it with --shm-size=1g."
    yield _found("/dev/shm", detail, "warning", remedy)


def _installation(home: Home) -> Iterator[Finding]:
    """Compare the files of this package with what was installed: another distribution may have replaced some."""
    try:
        files = distribution("sptune").files or []
    except PackageNotFoundError:
        return

    changed = []
    for file in files:
        if file.hash is None or file.suffix != ".py":
            continue
        path = Path(str(file.locate()))
        content = path.read_bytes() if path.is_file() else b""
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).decode().rstrip("=")
        if digest != file.hash.value:
            changed.append(str(path))
    if changed:
        detail = f"{changed[0]} is not the file that sptune installed ({counted(len(changed), 'such file')})"
        remedy = "Another distribution has the same names. Install sptune into an environment of its own."
        yield _found("installation", detail, "error", remedy)


CONDITIONS: tuple[Condition, ...] = (
    _cores,
    _memory,
    _temporary_folder,
    _user_folder,
    _proxies,
    _text,
    _open_files,
    _processes,
    _shared_memory,
    _installation,
)
"""What `sptune doctor` looks at, in the order of its table."""
