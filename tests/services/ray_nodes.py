"""A throw-away Ray cluster of several nodes on this machine, each with an environment and folders of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.services.service import HOST, Service, free_port

RAY = str(Path(sys.executable).with_name("ray"))
OBJECT_STORE_BYTES = 100 * 2**20
IN_A_NAMESPACE = """
mount -t tmpfs tmpfs "$1" || exit
shift
exec "$@"
"""


class RayNode(Service):
    """One node: its daemons and its workers."""

    def __init__(self, options: list[str], hidden: Path | None, env: dict[str, str]) -> None:
        super().__init__()
        self._options, self._hidden = options, hidden
        self.cache = self.folder / "cache"
        self.env = {
            "HOME": str(self.folder / "home"),
            "SPTUNE_CACHE": str(self.cache),
            "RAY_TMPDIR": str(self.folder),
            **env,
        }

    def start(self) -> None:
        """Start it, and wait until it belongs to the cluster."""
        Path(self.env["HOME"]).mkdir(exist_ok=True)
        ports = ["dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export"]
        command = [RAY, "start", "--node-ip-address", HOST, "--temp-dir", str(self.folder / "ray")]
        command += [f"--{name}-port={free_port()}" for name in ports]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", *self._options]
        command += ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free
        if self._hidden is not None:
            apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_A_NAMESPACE, "sh"]
            command = [*apart, str(self._hidden), *command]
        self._run(*command, env=self.env)


class RayNodes:
    """A head and further nodes, behind a token; Ray takes this machine's own address where it is told 127.0.0.1."""

    def __init__(self, num_cpus: int = 0, *, dashboard: bool = False, **env: str) -> None:
        self._port, dashboard_port = free_port(), free_port()
        self.address = f"{HOST}:{self._port}"
        self.dashboard = f"http://{HOST}:{dashboard_port}" if dashboard else None
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._nodes: list[RayNode] = []
        self._head = ["--head", f"--port={self._port}", f"--num-cpus={num_cpus}", f"--include-dashboard={dashboard}"]
        self._head += ["--dashboard-host", HOST, f"--dashboard-port={dashboard_port}"]
        self._head_env = env

    @staticmethod
    def why_not_hidden() -> str | None:
        """Why no node can have a folder hidden here, or None."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            return "a folder is hidden from a node by root alone (unshare of util-linux)"
        told = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
        return told.stderr.strip() or None

    def __enter__(self) -> Self:
        self.head = self._started(self._head, None, self._head_env)
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            node.close()

    def add(self, num_cpus: int = 1, *, hidden: Path | None = None, **env: str) -> RayNode:
        """A further node.

        Args:
            hidden: a folder that is another, empty one for this node, as a local folder is on another machine.
            env: what its processes have in their environment beside that of this process.
        """
        return self._started([f"--address={self.address}", f"--num-cpus={num_cpus}"], hidden, env)

    def kill(self, node: RayNode) -> None:
        """`kill -9` of all of a node's processes, its workers too."""
        node.kill()

    def _started(self, options: list[str], hidden: Path | None, env: dict[str, str]) -> RayNode:
        node = RayNode(options, hidden, {**self.env, **env}).__enter__()
        self._nodes.append(node)
        return node
