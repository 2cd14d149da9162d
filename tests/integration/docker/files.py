"""What is in docker/: read from the files themselves, for the tests to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
BIN = ROOT / ".venv" / "bin"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each on one line: keyword and what follows."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def run_lines(containing: str) -> list[str]:
    """The commands of the Dockerfile's RUN instructions that contain a word, without options of RUN."""
    commands = [re.sub(r"^(--\S+ )+", "", rest) for keyword, rest in instructions() if keyword == "RUN"]
    return [command for command in commands if containing in command]


def documents(name: str) -> list[Any]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all((DOCKER / name).read_text()))


def shell(script: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of shell as it stands in a file, with this environment's programs first."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def need(program: str, package: str) -> str:
    """The path of a program, or the test is skipped for the lack of it."""
    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if found is None:
        pytest.skip(f"there is no {program} here (Debian's package {package})")
    return found


def stand_ins(folder: Path, programs: dict[str, str]) -> dict[str, str]:
    """An environment where these programs are what a script calls, each a piece of shell; $CALLS is theirs to write."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}


def calls(env: dict[str, str]) -> list[str]:
    """What the stand-ins wrote into $CALLS."""
    file = Path(env["CALLS"])
    return file.read_text().splitlines() if file.exists() else []


def await_true(what: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 500) -> None:
    """Wait for it, and no longer than a process lives."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.2)
