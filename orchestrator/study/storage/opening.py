"""Opens a study database: for writing, one process at a time, and for reading, without writing anything.

Several drivers may start in a new home at the same time. Optuna asks for each table whether it exists and then creates
it, so a process that opens a database for writing holds a lock until all tables are there. MLflow creates its own
tables in the same manner.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage

from orchestrator.study.storage.backoff import PatientConnection
from orchestrator.study.storage.sqlite_url import sqlite_file, sqlite_url

CREATION_LOCK = 7_788_623
"""Number of the lock in PostgreSQL. Every version of sptune must use the same."""
LAST_TABLE = "alembic_version"
"""The table that Optuna fills last when it creates a database."""
TRIES = 3
"""Attempts to open an SQLite file for reading, while a driver that starts or ends adds and removes files beside it."""


class NothingStored(Exception):
    """The database does not exist, or has no tables yet."""


@contextlib.contextmanager
def creation_lock(url: str) -> Iterator[None]:
    """Keep other processes from creating tables in the database at `url` at the same time.

    It protects an SQLite file on this machine and a PostgreSQL database. Others are not locked.
    """
    file = sqlite_file(url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The folder is locked, so no file is left over. It must not be the database itself: closing that would end the
        # locks that SQLite holds on it in this process.
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            # Some file systems know no locks. A race is then possible, but rare.
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    elif url.startswith("postgresql+psycopg:"):
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 10})
        # It lasts until the end of the transaction, also through a pooler such as PgBouncer.
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CREATION_LOCK})
            yield

    else:
        yield


def open_for_writing(url: str) -> RDBStorage:
    """Open a database, and create it if it is missing."""
    file = sqlite_file(url)
    with creation_lock(url):
        if file is not None:
            _use_write_ahead_log(url)
        storage = _storage(url)

    if url.startswith("sqlite"):
        sqlalchemy.event.listen(storage.engine, "connect", _sync_less)
        # Connections that are already open do not have the setting yet.
        storage.engine.dispose()
    return storage


def open_for_reading(url: str, stack: contextlib.ExitStack) -> RDBStorage:
    """Open a database without the permission to write. No file is created or changed.

    Args:
        stack: closed after the database. It deletes a copy, if one was needed.

    Raises:
        NothingStored: if there is no database, or no table in it yet.
    """
    file = sqlite_file(url)
    if file is None:
        is_whole = _is_whole(url)
    elif _exists(file):
        url, is_whole = _find_readable(file, stack)
    else:
        is_whole = False

    if not is_whole:
        raise NothingStored
    return _storage(url, read_only=True)


def _find_readable(file: Path, stack: contextlib.ExitStack) -> tuple[str, bool]:
    """Return a URL by which an SQLite file can be read with the right to read alone, and whether it is whole.

    In WAL mode, SQLite reads two more files, `-wal` and `-shm`, and creates them if they are missing.
    """
    for _ in range(TRIES):
        url = _url_beside_a_driver(file)
        if url is None:
            break
        # An error here means that a driver has started or ended in between.
        with contextlib.suppress(sqlalchemy.exc.OperationalError):
            return url, _is_whole(url)

    # What is in `-wal` is not in the database yet, and only a process that may write can put it there.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sptune-")))
    for suffix in ("", "-wal", "-journal"):
        if _exists(_beside(file, suffix)):
            shutil.copyfile(_beside(file, suffix), folder / f"copy.db{suffix}")
    url = sqlite_url(folder / "copy.db")
    return url, _is_whole(url)


def _url_beside_a_driver(file: Path) -> str | None:
    """Return the URL that fits the files that are there now; None if SQLite must create one."""
    has_wal = _exists(_beside(file, "-wal"))
    if (has_wal and _exists(_beside(file, "-shm"))) or _exists(_beside(file, "-journal")):
        # A driver is at work, or was killed. All connections of a process share the `-shm` as the first has opened it.
        # So a reader that may write opens it for both: a driver of this process could otherwise not write.
        is_writable = os.access(_beside(file, "-shm"), os.W_OK)
        return sqlite_url(file, mode="ro", **({} if is_writable else {"readonly_shm": "1"}))
    if not has_wal or _beside(file, "-wal").stat().st_size == 0:
        # No driver has it open, and the last one left everything in the database.
        return sqlite_url(file, mode="ro", immutable="1")
    return None


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _exists(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return False
    return True


def _is_whole(url: str) -> bool:
    """Return whether all tables have been created."""
    engine = _engine(url, read_only=True)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table(LAST_TABLE):
                return False
            return connection.execute(sqlalchemy.text(f"SELECT version_num FROM {LAST_TABLE}")).first() is not None
    finally:
        engine.dispose()


def _engine_options(url: str, *, read_only: bool) -> dict[str, Any]:
    is_sqlite = url.startswith("sqlite")
    # The tracker's thread writes too: wait for the other connection instead of failing.
    patience: dict[str, Any] = {"timeout": 0.1, "factory": PatientConnection}
    options: dict[str, Any] = {"connect_args": patience if is_sqlite else {"connect_timeout": 10}}

    # A server may have closed an idle connection: test each one before it is used.
    options["pool_pre_ping"] = not is_sqlite
    if read_only and not is_sqlite:
        options["execution_options"] = {"postgresql_readonly": True}
    return options


def _engine(url: str, *, read_only: bool = False) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, **_engine_options(url, read_only=read_only))


def _storage(url: str, *, read_only: bool = False) -> RDBStorage:
    return RDBStorage(
        # Optuna takes the URL for a template.
        url.replace("{", "{{").replace("}", "}}"),
        engine_kwargs=_engine_options(url, read_only=read_only),
        skip_table_creation=read_only,
    )


def _use_write_ahead_log(url: str) -> None:
    """Set SQLite's WAL mode, which the file keeps.

    Call it before the tables are created: later it needs a moment in which no other process uses the database.
    """
    engine = _engine(url)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
    engine.dispose()


def _sync_less(connection: Any, _: object) -> None:
    """Let a commit in WAL mode cost 0.2 ms instead of 20 ms.

    A killed process loses nothing. A power cut may lose the last epochs, which are then restored from the trials'
    checkpoints.
    """
    connection.execute("PRAGMA synchronous=NORMAL")
