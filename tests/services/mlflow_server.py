"""A throw-away MLflow server, which asks for a password or not."""

from __future__ import annotations

import importlib.util
import secrets
import sys

from tests.services.postgres import Postgres
from tests.services.s3 import S3Server
from tests.services.service import HOST, Service, free_port, ready


class MlflowServer(Service):
    """MLflow with its runs and its users in PostgreSQL and its artifacts, through the server, in a bucket.

    Args:
        login: whether it asks for a password, which it hashes at every request, for a tenth of a second.
    """

    def __init__(self, postgres: Postgres, s3: S3Server, *, login: bool = True) -> None:
        super().__init__()
        self._login = login
        name = f"mlflow_{secrets.token_hex(4)}"
        self._port = free_port()
        self._runs = postgres.create(name)
        self._users = postgres.create(f"{name}_users")
        self._artifacts = f"s3://{s3.bucket}/{name}"
        self.uri = f"http://{HOST}:{self._port}"
        self.env = {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(12),
        }
        self._server_env = {
            **postgres.env,
            **s3.env,
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": self.env["MLFLOW_TRACKING_USERNAME"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.env["MLFLOW_TRACKING_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            # Without its job runner, which is seven more processes.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    @classmethod
    def why_not(cls) -> str | None:
        """Why there can be none here, or None."""
        if importlib.util.find_spec("flask_wtf") is None:
            return "MLflow has no login here (mlflow[auth])"
        return Postgres.why_not() or S3Server.why_not()

    def start(self) -> None:
        """Start it on the data that it has, and wait until it answers."""
        (self.folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {self._users}\n"
        )
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST]
        command += ["--app-name", "basic-auth"] if self._login else []
        command += ["--port", str(self._port), "--workers", "1", "--backend-store-uri", self._runs]
        server = self._open(*command, "--artifacts-destination", self._artifacts, env=self._server_env)
        self._await(server, lambda: ready(f"{self.uri}/health"))
