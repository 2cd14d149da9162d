"""The door to an MLflow server as such: whether it answers these credentials, and which version it is."""

from __future__ import annotations

import os

from orchestrator.environment.connections import explain_mlflow_error
from orchestrator.errors import ServiceError
from orchestrator.redaction import redact

MIN_MAJOR_VERSION = 3
"""The major version from which on a server knows all that is asked of it."""


def check_reachable(uri: str) -> str:
    """The version of the server at an address, asked with the credentials of the environment.

    Raises:
        ServiceError: if it does not answer, refuses the credentials, or is too old.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    name = f"MLflow {redact(uri)}"
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        answer = http_request(get_default_host_creds(uri), "/version", "GET")
    except MlflowException as error:
        reason = explain_mlflow_error(error)
        raise ServiceError(f"{name} {reason}.", away=reason.startswith("does not answer")) from None
    version = answer.text.strip() if answer.ok else ""
    if not version[:1].isdecimal() or int(version.partition(".")[0]) < MIN_MAJOR_VERSION:
        raise ServiceError(f"{name} is of version {version or 'unknown'}; it must be {MIN_MAJOR_VERSION}.0 or later.")
    return version
