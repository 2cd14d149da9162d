"""MLflow's server: check that it accepts the credentials, and its version."""

from __future__ import annotations

from orchestrator.environment.connections import explain_mlflow_error
from orchestrator.environment.process import bypass_proxy_for_loopback, proxy_hint
from orchestrator.errors import ServiceError
from orchestrator.redaction import redact
from orchestrator.tracking.mlflow_client import limit_requests

MIN_MAJOR_VERSION = 3
"""Oldest major version of a server that has all the functions that we use."""


def check_reachable(uri: str) -> str:
    """Return the version of a tracking server, asked with the credentials in the environment.

    Raises:
        ServiceError: if the server does not answer, refuses the credentials, or is too old.
    """
    bypass_proxy_for_loopback()
    # MLflow's defaults try for minutes.
    limit_requests()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    server = f"MLflow {redact(uri)}"
    try:
        # A server may tell its version to everybody, so the credentials need a request of their own.
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        response = http_request(get_default_host_creds(uri), "/version", "GET")
    except MlflowException as error:
        reason = explain_mlflow_error(error)
        raise ServiceError(f"{server} {reason}.{proxy_hint(uri)}", away=reason.startswith("does not answer")) from None

    version = response.text.strip() if response.ok else ""
    if not version[:1].isdecimal() or int(version.partition(".")[0]) < MIN_MAJOR_VERSION:
        raise ServiceError(f"{server} has version {version or 'unknown'}; it must be {MIN_MAJOR_VERSION}.0 or later.")
    return version
