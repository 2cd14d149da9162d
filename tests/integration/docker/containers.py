"""Services of docker/compose.yaml where there is no Docker: each has a network address, a name and its own processes.

They run what the file says, under the names and on the ports that it says. Only paths inside containers differ: those
of volumes, homes and /tmp are in a folder of the container's.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psutil

from tests.integration.docker.files import BIN, instructions
from tests.services.service import MARK, Service

APART = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
cd "$3"
shift 3
exec "$@"
"""


def why_not() -> str | None:
    """Why this machine cannot have such containers, or None."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "namespaces are made by root, with ip of iproute2"
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--fork",
            "ip",
            "link",
            "add",
            "name",
            "sw0",
            "type",
            "bridge",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


class Network:
    """What docker-compose makes for a file: a network, on which each service has its name, and volumes."""

    def __init__(self, services: dict[str, Any]) -> None:
        self._prefix = f"sptune-{secrets.token_hex(3)}"
        self.addresses = {name: f"10.9.8.{place}" for place, name in enumerate(services, start=1)}
        self.services = dict(services)
        self.folder = Path(tempfile.mkdtemp(prefix="sptune-"))
        self._namespaces: list[str] = []
        self._containers: dict[str, Container] = {}

    def __enter__(self) -> Self:
        self._switch = self._namespace("switch")
        self._ip("-n", self._switch, "link", "add", "name", "sw0", "type", "bridge")
        self._ip("-n", self._switch, "link", "set", "sw0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for container in reversed(self._containers.values()):
            container.close()
        for namespace in reversed(self._namespaces):
            self._ip("netns", "del", namespace)
        shutil.rmtree(self.folder)

    def add(self, name: str, service: dict[str, Any]) -> Container:
        """The container of a service that is not in the file."""
        self.services[name] = service
        self.addresses[name] = f"10.9.8.{len(self.services)}"
        return self.container(name)

    def container(self, name: str) -> Container:
        """A service's container; at first it is not started."""
        if name not in self._containers:
            self._containers[name] = self._made(name)
        return self._containers[name]

    def _made(self, name: str) -> Container:
        namespace = self._namespace(name)
        port = f"port{self.addresses[name].rpartition('.')[2]}"
        pair = ["name", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch]
        self._ip("-n", namespace, "link", "add", *pair)
        self._ip("-n", self._switch, "link", "set", port, "master", "sw0", "up")
        self._ip("-n", namespace, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            self._ip("-n", namespace, "link", "set", link, "up")
        hosts = {"localhost": "127.0.0.1", **self.addresses}
        lines = "".join(f"{address} {host}\n" for host, address in hosts.items())
        return Container(name, self.services[name], namespace, lines, self.folder)

    def _namespace(self, name: str) -> str:
        self._ip("netns", "add", f"{self._prefix}-{name}")
        self._namespaces.append(f"{self._prefix}-{name}")
        return self._namespaces[-1]

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Container(Service):
    """One service."""

    def __init__(self, name: str, service: dict[str, Any], namespace: str, hosts: str, volumes: Path) -> None:
        super().__init__()
        self.name, self.service, self._namespace = name, service, namespace
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "log").touch()
        self._places = {"/home/sptune": self.folder / "home", "/var/cache/sptune": self.folder / "cache"}
        self._places["/tmp"] = self.folder / "tmp"
        for volume in service.get("volumes", []):
            source, target, _ = volume.split(":")
            self._places[target] = Path(source) if source.startswith("/") else volumes / source
            if not source.startswith("/"):
                self._places[target].mkdir(exist_ok=True)
        for folder in ("home", "tmp", "cache"):
            (self.folder / folder).mkdir()
        self._working_dir = self.inside(service.get("working_dir", "/home/sptune"))
        image = dict(re.findall(r"(\w+)=(\S+)", dict(instructions())["ENV"]))  # of the last stage
        environment = {**image, **service.get("environment", {})} if "build" in service else service["environment"]
        self.env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            MARK: self._mark,
            **{key: self.inside(str(value)) for key, value in environment.items()},
        }

    def inside(self, text: str) -> str:
        """A path, or words with one, as they are in this container."""
        targets = "|".join(sorted(map(re.escape, self._places), key=len, reverse=True))
        return re.sub(targets, lambda found: str(self._places[found[0]]), text).replace("$$", "$")

    def files(self, folder: str) -> list[Path]:
        """The files that volumes put into one of the container's folders."""
        return [place for target, place in self._places.items() if target.startswith(f"{folder}/")]

    def command(self, *arguments: str) -> list[str]:
        """The service's command line, or with these arguments for its own; to be run on this machine."""
        words = [*self.service.get("entrypoint", []), *(arguments or self.service["command"])]
        return [self.inside(word) for word in words]

    def start(self) -> None:
        """Start the service's command."""
        self.open(*self.command())

    def open(self, *command: str, user: str | None = None) -> subprocess.Popen[bytes]:
        """Start a process in the container, apart from its others."""
        return self._open(*self._apart(), *self._as(user), *command)

    def run(self, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a process in the container, apart from its others, to its end."""
        return self._ran([*self._apart(), *self._as(user), *command])

    def run_among(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a process among those of the service's command, as `docker exec` does."""
        return self._ran(["nsenter", f"--target={self._first().pid}", "--all", *self._as(None), *command])

    def terminate(self) -> None:
        """Ask the service's command to end, and wait until it has."""
        self._first().terminate()
        self._children[0].wait(timeout=60)

    def _first(self) -> psutil.Process:
        """The service's command."""
        while not (found := psutil.Process(self._children[0].pid).children()):
            time.sleep(0.1)
        return found[0]

    def _ran(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._working_dir,
            env={**os.environ, MARK: self._mark},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def await_health(self) -> None:
        """Wait until the service's own check says that it is well."""
        program, *test = self.service["healthcheck"]["test"]
        assert program == "CMD"
        self.await_success(*map(self.inside, test))

    def await_success(self, *command: str) -> None:
        """Wait until a command in the container succeeds."""
        for _ in range(120):
            if (done := self.run(*command)).returncode == 0:
                return
            if any(child.poll() is not None for child in self._children):
                break
            time.sleep(0.5)
        raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr}\n{self.log}")

    def _apart(self) -> list[str]:
        namespaces = ["--mount", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child", "--propagation=private"]
        return [
            *("ip", "netns", "exec", self._namespace, "unshare", *namespaces),
            *("bash", "-c", APART, "bash", self.name, str(self.folder / "hosts"), str(self._working_dir)),
        ]

    def _as(self, user: str | None) -> list[str]:
        who = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return [*who, "env", "--ignore-environment", *(f"{key}={value}" for key, value in self.env.items())]
