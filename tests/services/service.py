"""Processes that belong together: known by a mark in their environment, so that all are found, whoever started them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

HOST = "127.0.0.1"
MARK = "SPTUNE_TEST_SERVICE"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def ready(url: str) -> bool:
    """Whether an HTTP server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Service:
    """Processes that belong together, and a folder of theirs."""

    env: dict[str, str]
    """What a process needs in its environment to use this server."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="sptune-"))
        self.env = {}
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def close(self) -> None:
        """End its processes and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def processes(self) -> list[psutil.Process]:
        """All its processes that live."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    # PostgreSQL's own children write their title over their environment.
                    found |= {process, *process.children(recursive=True)}
        return [process for process in found if _lives(process)]

    def kill(self) -> None:
        """`kill -9` of all of it, until nothing is left."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=5)
        while self._children:
            self._children.pop().wait()

    def pause(self) -> None:
        """Let it hang: connections are taken, nothing is answered."""
        for process in self.processes():
            process.suspend()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        for process in self.processes():
            process.resume()

    @property
    def log(self) -> str:
        """All it printed."""
        return (self.folder / "log").read_text(errors="replace")

    def _open(
        self, *command: str, user: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {}), MARK: self._mark},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                start_new_session=True,
            )
        self._children.append(process)
        return process

    def _run(self, *command: str, user: str | None = None, env: dict[str, str] | None = None) -> None:
        if self._open(*command, user=user, env=env).wait(timeout=120) != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{self.log}")

    def _await(self, process: subprocess.Popen[bytes], answers: Callable[[], bool]) -> None:
        for _ in range(1200):
            if process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} ended at its start:\n{self.log}")
            if answers():
                return
            time.sleep(0.1)
        raise RuntimeError(f"{type(self).__name__} does not answer:\n{self.log}")
