"""Connection to MLflow: its client, which sends each request once, and the meaning of its errors."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from orchestrator.environment.connections import explain_mlflow_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFUSALS = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
)
"""MLflow's codes of errors that do not pass by waiting."""
DAMAGE = r"malformed|not a database|out-of-date database schema|readonly database|Can't locate revision"
"""Pattern of what SQLite and MLflow say about a database file that cannot be used as it is."""


def limit_requests() -> None:
    """Set how long a request may take, and that it is sent once."""
    # A request that creates something may have been done although its answer was lost. MLflow's own retries would
    # create it twice; whoever retries here looks first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    # A driver must notice soon that MLflow is away, in order to end.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def limit_output() -> None:
    """Set that MLflow prints warnings only, not two lines with links for each run that ends."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def connect(uri: str) -> MlflowClient:
    """Return a client of a tracking server or database."""
    limit_requests()
    from mlflow import MlflowClient

    from orchestrator.study.storage.opening import creation_lock

    limit_output()
    # It creates MLflow's tables if they are missing, and several drivers may start in a new home. MLflow has a lock of
    # its own, but in TMPDIR, which may differ between them.
    with creation_lock(uri):
        return MlflowClient(tracking_uri=uri)


def is_missing(error: BaseException) -> bool:
    """Whether MLflow says that there is no such run, experiment or model."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow answered, and will give the same answer until a person changes something."""
    if re.search(DAMAGE, str(error)):
        return True
    code = getattr(error, "error_code", None)
    return code in REFUSALS or re.search(r"error code 4(?!08|29)\d\d", str(error)) is not None


def is_unreachable(error: BaseException) -> bool:
    """Whether a server does not answer at all."""
    return explain_mlflow_error(error).startswith("does not answer")


def explain(error: BaseException) -> str:
    """Return the meaning of an error of MLflow, as the end of a sentence about MLflow and without a secret."""
    text = str(error)
    if re.search(r"malformed|not a database", text):
        return "cannot read its database, which is damaged; move the file away and a new one is written"
    if re.search(r"out-of-date database schema|Can't locate revision", text):
        return "has a database of another version; upgrade it with `mlflow db upgrade`, or install that version"
    return explain_mlflow_error(error)
