"""A throw-away PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.services.service import HOST, Service, free_port


class Postgres(Service):
    """A PostgreSQL cluster that asks for a password."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.env = {"PGPASSWORD": secrets.token_urlsafe(12)}
        # initdb and the server refuse root.
        self._user = "postgres" if os.geteuid() == 0 else None

    @classmethod
    def why_not(cls) -> str | None:
        """Why there can be none here, or None."""
        if cls._programs() is None:
            return "there is no PostgreSQL here (Debian's package postgresql)"
        return None

    @staticmethod
    def _programs() -> Path | None:
        versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
        if versions:
            return max(versions, key=lambda path: int(path.parent.name))
        return Path(found).parent if (found := shutil.which("initdb")) else None

    def url(self, database: str) -> str:
        """Its address for SQLAlchemy; the password is in `env`."""
        return f"postgresql+psycopg://sptune@{HOST}:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; its `url`."""
        with self.connect() as connection:
            connection.autocommit = True
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg connection."""
        import psycopg

        return psycopg.connect(
            host=HOST, port=self.port, user="sptune", password=self.env["PGPASSWORD"], dbname=database
        )

    def start(self) -> None:
        """Start it on the data that it has, and wait until it answers."""
        programs = self._programs()
        assert programs is not None, self.why_not()
        data = self.folder / "data"
        if not data.exists():
            (password := self.folder / "password").write_text(self.env["PGPASSWORD"])
            if self._user is not None:
                for path in (self.folder, password):
                    shutil.chown(path, self._user)
            how = ["--auth=scram-sha-256", "--username=sptune", f"--pwfile={password}", "--encoding=UTF8", "--locale=C"]
            self._run(str(programs / "initdb"), "--no-sync", *how, str(data), user=self._user)
            password.unlink()
        options = {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options |= {"fsync": "off", "dynamic_shared_memory_type": "mmap"}  # the latter: in files of its folder
        settings = [f"--{name}={value}" for name, value in options.items()]
        self._server = self._open(str(programs / "postgres"), "-D", str(data), *settings, user=self._user)
        self._await(self._server, self._answers)

    def _answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it at once, connections and all; what was committed is there after `start`."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(timeout=60)

    def close(self) -> None:
        """Let it give back its shared memory before the rest."""
        if hasattr(self, "_server") and self._server.poll() is None:
            self.resume()
            self._server.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout=30)
        self.kill()
        if (left := self.folder / "data/postmaster.pid").exists():  # it was killed, and its shared memory outlives it
            subprocess.run(["ipcrm", "-m", left.read_text().splitlines()[6].split()[1]], check=False)
        super().close()
