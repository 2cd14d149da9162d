"""A throw-away Slurm: a controller and two nodes on this machine, with a login of their own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

from tests.services.service import HOST, MARK, Service, free_port

SETTINGS = """
ClusterName=throwaway
SlurmctldHost={host}({address})
SlurmctldPort={port}
MessageTimeout=60
TCPTimeout=20
SlurmUser={user}
FirstJobId={first}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=one NodeHostname={host} NodeAddr={address} Port={one} CPUs=1
NodeName=two NodeHostname={host} NodeAddr={address} Port={two} CPUs=1
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""
NO_CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={folder}/cgroup\n"
"""Without them slurmd wants to know of some all the same."""


class Slurm(Service):
    """Two nodes of a core each."""

    def __init__(self) -> None:
        super().__init__()
        self.work = self.folder / "work"
        self._jobs: list[int] = []
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf"), MARK: self._mark}

    @classmethod
    def why_not(cls) -> str | None:
        """Why there can be none here, or None."""
        programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
        if missing := [name for name in programs if cls._program(name) is None]:
            return f"there is no {missing[0]} here (Debian's package slurm-wlm)"
        return None if os.geteuid() == 0 else "slurmd is started by root"

    @staticmethod
    def _program(name: str) -> str | None:
        return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

    def start(self) -> None:
        """Start it, and wait until both nodes take jobs."""
        self.folder.chmod(0o755)  # the login sees to it that nobody else could write there
        for name in ("state", "work"):
            (self.folder / name).mkdir()
        (key := self.folder / "key").write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        values = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "address": HOST,
            "user": "root",
            "first": secrets.randbelow(2**20),
            **{name: free_port() for name in ("port", "one", "two")},
        }
        (self.folder / "slurm.conf").write_text(SETTINGS.format(**values))
        (self.folder / "cgroup.conf").write_text(NO_CGROUPS.format(**values))
        options = {"key-file": key, "socket": self.folder / "munge"}
        options |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        munge = [f"--{name}={value}" for name, value in options.items()]
        login = self._daemon("munged", "--foreground", "--force", *munge)
        self._await(login, (self.folder / "munge").exists)
        controller = self._daemon("slurmctld", "-D", "-i")
        for node in ("one", "two"):
            self._daemon("slurmd", "-D", "-N", node)
        self._await(controller, lambda: self.ask("sinfo", "--noheader", "--format=%t %D") == "idle 2")

    def processes(self) -> list[psutil.Process]:
        """Those of a job's steps, too, which write their title over their environment."""
        steps = rf"slurmstepd: \[({'|'.join(map(str, self._jobs))})\."
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if re.match(steps, " ".join(process.info["cmdline"] or []))
        ]
        return [*super().processes(), *(found if self._jobs else [])]

    def close(self) -> None:
        """Cancel what runs, so that it puts itself away, before the rest."""
        for job in self._jobs:
            self.ask("scancel", str(job))
        for _ in range(60):
            if not self.ask("squeue", "--noheader"):
                break
            time.sleep(0.5)
        super().close()

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, cwd=self.work, env={**os.environ, **self.env}, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, **env: str) -> int:
        """The number of a job, by sbatch's options, a script and its arguments."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            cwd=self.work,
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self._jobs.append(int(done.stdout))
        return self._jobs[-1]

    def job(self, number: int) -> dict[str, str]:
        """What Slurm says of a job."""
        told = self.ask("scontrol", "show", "job", str(number), "--oneliner")
        assert told, (self.folder / "slurmctld.log").read_text()
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def _daemon(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        return self._open(str(self._program(program)), *options, env=self.env)
