"""Locations of artifacts in the MLflow database of a home.

MLflow stores an absolute location with each experiment, run and model. A home can be moved or copied, so its locations
follow from where it is now: whoever opens the database corrects them first. The database of the other copy is another
file and stays as it is.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from orchestrator.environment.home import SQLITE, Home

if TYPE_CHECKING:
    from sqlalchemy import Connection

FOLDER = "mlartifacts"
"""Folder of a home in which its experiments have their artifacts, one folder each."""
SHARED_VIEW = "mlflow.sharedViewState.sptune"
"""Tag of every experiment of ours."""
LOCATION_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow stores locations."""


def owns_mlflow(home: Home) -> bool:
    """Whether MLflow's database is a file of the home itself, which no other home writes to."""
    return home.mlflow_file == Path(home.root) / "mlflow.db"


def stale_locations(home: Home) -> list[str]:
    """Return the artifact folders, as URIs, where the home's MLflow looks although they are not the home's own."""
    # SQLite would create a file that is missing.
    if not owns_mlflow(home) or home.mlflow_file is None or not home.mlflow_file.exists():
        return []
    return _stale_locations(home.mlflow_uri, str(home.mlflow_artifacts))


def correct_locations(home: Home) -> None:
    """Make the MLflow database of a home that was moved or copied name the home's own artifacts."""
    for folder in stale_locations(home):
        move_locations(home.mlflow_uri, folder, str(home.mlflow_artifacts))


def snapshot(home: Home, folder: Path) -> str:
    """Copy the MLflow database of a home that cannot be written, and return the copy's URI.

    The copy names the home's own artifacts.

    Args:
        folder: a folder that the copy is written to.

    Raises:
        sqlite3.Error: if the database cannot be read.
    """
    copy = folder / "mlflow.db"
    source = f"file:{quote(str(home.mlflow_file))}?mode=ro"
    try:
        _copy_database(source, copy)
    except sqlite3.OperationalError:
        # SQLite cannot write its lock files there; then nobody else can be waited for.
        _copy_database(f"{source}&immutable=1", copy)

    uri = f"{SQLITE}{copy}"
    for stale in _stale_locations(uri, str(home.mlflow_artifacts)):
        move_locations(uri, stale, str(home.mlflow_artifacts))
    return uri


def _copy_database(source: str, copy: Path) -> None:
    with closing(sqlite3.connect(source, uri=True)) as original, closing(sqlite3.connect(copy)) as target:
        original.backup(target)


def move_locations(uri: str, old: str, new: str) -> None:
    """Replace a folder by another one in every location that a database of MLflow holds, in one transaction.

    Args:
        uri: the database, as a URL of SQLAlchemy.
        old: URI of the folder. Locations outside it stay.
        new: URI of the folder that replaces it.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        # Databases that other versions of MLflow made have other tables.
        inspector = sqlalchemy.inspect(engine)
        tables = set(inspector.get_table_names())
        existing = [
            (table, column)
            for table, column in LOCATION_COLUMNS
            if table in tables and column in {found["name"] for found in inspector.get_columns(table)}
        ]
        with engine.begin() as connection:
            for table, column in existing:
                statement = (
                    f"UPDATE {table} SET {column} = :new || substr({column}, :start) "
                    f"WHERE substr({column}, 1, :length) = :old OR {column} = :whole"
                )
                values = {"new": new, "start": len(old) + 1, "length": len(old) + 1, "old": f"{old}/", "whole": old}
                connection.execute(sqlalchemy.text(statement), values)
    finally:
        engine.dispose()


def is_inside(location: str, folder: str) -> bool:
    """Whether a location is a folder or lies below it, both given as a path or a URI."""
    if urlsplit(location).scheme not in ("", "file") or urlsplit(folder).scheme not in ("", "file"):
        return location.startswith(f"{folder}/") and "/.." not in location
    return Path(os.path.realpath(local_path(location))).is_relative_to(os.path.realpath(local_path(folder)))


def local_path(location: str) -> str:
    """Return the path of a location that MLflow stored, a path or a `file:` URI, as MLflow reads it."""
    path = urlsplit(location).path if location.startswith("file:") else location
    return unquote(path)


def _stale_locations(uri: str, artifacts: str) -> list[str]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            return _stale_roots(connection, artifacts)
    except OperationalError as error:
        # MLflow has not made its tables yet.
        if "no such table" in str(error):
            return []
        raise
    finally:
        engine.dispose()


def _stale_roots(connection: Connection, artifacts: str) -> list[str]:
    """Return the folders other than `artifacts` that hold experiments of ours."""
    import sqlalchemy

    rows = connection.execute(
        sqlalchemy.text(
            "SELECT name, artifact_location, EXISTS (SELECT 1 FROM experiment_tags WHERE "
            "experiment_tags.experiment_id = experiments.experiment_id AND key = :view) FROM experiments"
        ),
        {"view": SHARED_VIEW},
    )
    roots: list[str] = []
    for name, location, has_view in rows:
        root, _, folder = (location or "").rpartition("/")
        # A person's own experiment in the same database keeps its location.
        is_ours = root.endswith(f"/{FOLDER}") and (has_view or folder == name)
        if is_ours and root != artifacts and root not in roots:
            roots.append(root)
    return roots
