"""Servers that a sweep needs, and what their errors mean: one sentence each, with the way out and without a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.environment.home import Home
from orchestrator.errors import ServiceError
from orchestrator.redaction import SECRET_VARIABLES, redact
from trainer.storage.files import StorageError

if TYPE_CHECKING:
    from orchestrator.study.storage.database import StudyDatabase

OLDEST_POSTGRESQL = 12
"""The major version from which on psycopg and Optuna's tables are tested by their makers."""
DATABASE_ERRORS: tuple[tuple[str, str], ...] = (
    (
        r"password authentication failed|no password supplied|role \S+ does not exist|authentication",
        f"refuses these credentials; put the right password into {SECRET_VARIABLES['studies']}, "
        "the user into the address",
    ),
    (r'database "([^"]+)" does not exist', r"has no such database; make it with `createdb \1`"),
    (
        r"refused|timeout|timed out|resolve|translate host|No route|unreachable|No such file or directory|"
        r"server closed|terminating connection|starting up|shutting down|connection is (?:lost|closed)",
        "does not answer; see that it is up and that its address is right",
    ),
    (r"permission denied|must be owner", "does not let this user write; grant CREATE on its schema"),
    (r"too many (?:connections|clients)|remaining connection slots", "has no connection left; raise its limit"),
    (r"\bSSL\b|certificate", "wants another kind of connection; see PGSSLMODE and PGSSLROOTCERT"),
    (r"No module named '?psycopg", "needs a driver that is not installed; pip install 'sptune[cluster]'"),
    (r"locked", "is locked by another program"),
    (
        r"table schema|version_info",
        "was written by another version of Optuna; `optuna storage upgrade` brings it along",
    ),
)
"""What is to be seen in a database's error, and what it means."""


def open_database(home: Home) -> StudyDatabase:
    """The record of a home, which must be there or be made.

    Raises:
        ServiceError: if its database cannot be used, with the reason.
    """
    from orchestrator.study.storage.database import StudyDatabase

    try:
        return StudyDatabase(home.database_url)
    except Exception as error:  # of the driver, of SQLAlchemy or of Optuna, each with errors of its own
        raise ServiceError(f"the record {redact(home.database_url)} {explain_database_error(error)}.") from None


def describe_database(home: Home) -> str:
    """What the record's database is, after it was asked for its version and the record opened.

    Raises:
        ServiceError: if it cannot be used or is too old, with the reason.
    """
    if home.database_file is not None:
        return f"SQLite, {home.database_file}"
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(home.database_url, connect_args={"connect_timeout": 10})
        with engine.connect() as connection:
            version = str(connection.execute(sqlalchemy.text("SHOW server_version")).scalar_one())
        engine.dispose()
    except Exception as error:  # of the driver or of SQLAlchemy, each with errors of its own
        raise ServiceError(f"the record {redact(home.database_url)} {explain_database_error(error)}.") from None
    if int(version.partition(".")[0]) < OLDEST_POSTGRESQL:
        raise ServiceError(
            f"the record {redact(home.database_url)} is PostgreSQL {version}; it must be {OLDEST_POSTGRESQL} or later."
        )
    open_database(home).close()
    return f"PostgreSQL {version.partition(' ')[0]} at {redact(home.database_url)}"


def explain_database_error(error: BaseException) -> str:
    """What a database has against it, to be read after its address."""
    text = _root_message(error)
    for pattern, meaning in DATABASE_ERRORS:
        if found := re.search(pattern, text, re.IGNORECASE):
            return found.expand(meaning) if found.groups() else meaning
    return f"cannot be used: {_first_line(text)}"


def explain_mlflow_error(error: BaseException) -> str:
    """What an MLflow server has against it, to be read after its address."""
    text = str(error)
    status = re.search(r"error code (\d{3})", text)
    if "Invalid Host header" in text:
        reason = "does not go by this name; start it with --allowed-hosts HOST:PORT"
    elif status is not None and status[1] == "401":
        token = bool(os.environ.get("MLFLOW_TRACKING_TOKEN"))
        reason = (
            "refuses this token, which may have expired; put a new one into MLFLOW_TRACKING_TOKEN"
            if token
            else f"refuses these credentials; put the right ones into {SECRET_VARIABLES['mlflow']}"
        )
    elif status is not None and status[1] == "403":
        reason = "does not permit this to this user; ask who runs it"
    elif status is not None and status[1] >= "500":
        reason = f"has a trouble of its own (status {status[1]}); see its log"
    elif status is None and re.search(r"(?i)connection|timed? ?out|resolve|Max retries", text):
        reason = "does not answer; see that it is up and that its address is right"
    else:
        reason = f"refuses: {_first_line(text)}"
    return reason


def explain_error(error: BaseException) -> str | None:
    """The sentence for an error that comes from a server; None for one of ours."""
    for one in _causes(error):
        if isinstance(one, StorageError):
            return str(one)
        module = type(one).__module__.partition(".")[0]
        if module in ("sqlalchemy", "psycopg", "sqlite3"):
            return f"the record's database {explain_database_error(error)}."
        if module in ("mlflow", "requests"):
            return f"MLflow {explain_mlflow_error(one)}."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _root_message(error: BaseException) -> str:
    """What the database itself said."""
    for one in _causes(error):
        if (said := getattr(one, "orig", None)) is not None:
            return str(said)
    return str([*_causes(error)][-1])


def _first_line(text: str) -> str:
    return redact((text.splitlines() or ["without a word"])[0].strip().rstrip("."))
