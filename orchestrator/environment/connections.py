"""Connections to the servers of a sweep, and the meaning of their errors.

Each error becomes one sentence with the way out and without a secret.
"""

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
"""Oldest major version that the makers of psycopg and of Optuna test."""
DATABASE_ERRORS: tuple[tuple[str, str], ...] = (
    (
        r"password authentication failed|no password supplied|role \S+ does not exist|authentication",
        f"refuses these credentials; put the right password into {SECRET_VARIABLES['studies']}, "
        "and the user into the address",
    ),
    (r'database "([^"]+)" does not exist', r"has no such database; make it with `createdb \1`"),
    (
        r"refused|timeout|timed out|resolve|translate host|No route|unreachable|No such file or directory|"
        r"server closed|terminating connection|starting up|shutting down|connection is (?:lost|closed)",
        "does not answer; check that it is running and that its address is right",
    ),
    (
        r"readonly database|unable to open database file|Errno 13",
        "cannot be opened; check the permissions of this user for the file and its folder",
    ),
    (r"permission denied|must be owner", "does not allow this user to write; grant CREATE on its schema to the user"),
    (r"too many (?:connections|clients)|remaining connection slots", "has no free connection; raise max_connections"),
    (r"\bSSL\b|certificate", "requires other TLS settings; set PGSSLMODE and PGSSLROOTCERT"),
    (
        r"No module named '?psycopg",
        "needs a driver that is not installed; run `pip install '.[cluster]'` in a checkout of sptune",
    ),
    (r"locked", "is locked by another program; stop that program and try again"),
    (
        r"table schema|version_info",
        "was written by another version of Optuna; upgrade it with `optuna storage upgrade`",
    ),
)
"""Pattern in a database's error, and its meaning. The first match counts."""


def open_database(home: Home) -> StudyDatabase:
    """Open the study database of a home for writing. It is created if it is missing.

    Raises:
        ServiceError: if the database cannot be used, with the reason.
    """
    # Imported here: every command imports this module, and Optuna takes long to import.
    from orchestrator.study.storage.database import StudyDatabase

    try:
        return StudyDatabase(home.database_url)
    except Exception as error:
        # The driver, SQLAlchemy and Optuna each raise errors of their own, with no common class.
        raise _database_error(home, error) from None


def read_database(home: Home) -> StudyDatabase | None:
    """Open the study database of a home for reading; return None if nothing is stored there yet.

    Nothing is created or written, so the right to read is enough.

    Raises:
        ServiceError: if the database cannot be used, with the reason.
    """
    # A home without a database is told apart without importing Optuna.
    file = home.database_file
    try:
        if file is not None:
            file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _database_error(home, error) from None

    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.storage.opening import NothingStored

    try:
        return StudyDatabase(home.database_url, read_only=True)
    except NothingStored:
        return None
    except Exception as error:
        # As in `open_database`.
        raise _database_error(home, error) from None


def describe_database(home: Home) -> str:
    """Open the study database of a home, and return its kind, version and address.

    Raises:
        ServiceError: if the database cannot be used or is too old, with the reason.
    """
    if home.database_file is not None:
        database = read_database(home)
        if database is None:
            return f"SQLite, {home.database_file}, created by the first launch"
        database.close()
        return f"SQLite, {home.database_file}"

    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(home.database_url, connect_args={"connect_timeout": 10})
        with engine.connect() as connection:
            version = str(connection.execute(sqlalchemy.text("SHOW server_version")).scalar_one())
        engine.dispose()
    except Exception as error:
        # The driver and SQLAlchemy each raise errors of their own, with no common class.
        raise _database_error(home, error) from None

    address = redact(home.database_url)
    if int(version.partition(".")[0]) < OLDEST_POSTGRESQL:
        raise ServiceError(
            f"the study database {address} is PostgreSQL {version}; it must be {OLDEST_POSTGRESQL} or later."
        )

    open_database(home).close()
    return f"PostgreSQL {version.partition(' ')[0]} at {address}"


def _database_error(home: Home, error: Exception) -> ServiceError:
    return ServiceError(f"the study database {home.database_name} {explain_database_error(error)}.")


def explain_database_error(error: BaseException) -> str:
    """Return the meaning of a database's error and the way out, as the end of a sentence about the database."""
    text = _root_message(error)
    for pattern, meaning in DATABASE_ERRORS:
        match = re.search(pattern, text, re.IGNORECASE)
        if match is not None:
            return match.expand(meaning) if match.groups() else meaning
    return f"cannot be used: {_first_line(text)}"


def explain_mlflow_error(error: BaseException) -> str:
    """Return the meaning of an MLflow server's error and the way out, as the end of a sentence about the server."""
    text = str(error)
    status_match = re.search(r"error code (\d{3})", text)
    status = status_match[1] if status_match else None

    # The host check answers with status 403 as well, so it comes first.
    if "Invalid Host header" in text:
        reason = "does not accept this host name; start it with --allowed-hosts HOST:PORT"
    elif status == "401" and os.environ.get("MLFLOW_TRACKING_TOKEN"):
        reason = "refuses this token, which may have expired; put a new one into MLFLOW_TRACKING_TOKEN"
    elif status == "401":
        reason = f"refuses these credentials; put the right ones into {SECRET_VARIABLES['mlflow']}"
    elif status == "403":
        reason = "does not permit this user to do that; ask its administrator"
    elif status is not None and status >= "500":
        reason = f"has an internal error (status {status}); see its log"
    elif status is None and re.search(r"(?i)connection|timed? ?out|resolve|Max retries", text):
        reason = "does not answer; check that it is running and that its address is right"
    else:
        reason = f"refuses: {_first_line(text)}"
    return reason


def explain_error(error: BaseException) -> str | None:
    """Return a sentence about an error that comes from a server; None for any other error."""
    for cause in _causes(error):
        if isinstance(cause, StorageError):
            return str(cause)

        # By name, because importing these libraries takes seconds.
        library = type(cause).__module__.partition(".")[0]
        if library in ("sqlalchemy", "psycopg", "sqlite3"):
            return f"the study database {explain_database_error(error)}."
        if library in ("mlflow", "requests"):
            return f"MLflow {explain_mlflow_error(cause)}."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the error that it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _root_message(error: BaseException) -> str:
    """Return the database's own message."""
    causes = list(_causes(error))
    for cause in causes:
        # SQLAlchemy keeps the driver's error in `orig`.
        original = getattr(cause, "orig", None)
        if original is not None:
            return str(original)
    return str(causes[-1])


def _first_line(text: str) -> str:
    lines = text.splitlines() or ["no message"]
    return redact(lines[0].strip().rstrip("."))
