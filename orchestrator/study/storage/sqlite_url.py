"""URLs of SQLite files for SQLAlchemy, and for Optuna and MLflow, which each change a URL before SQLAlchemy sees it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

PLAIN = re.compile(r"sqlite:///(/[^?#%{}\x00-\x1f\x7f\ud800-\udfff]+)")
"""A URL that is the path itself. Every library reads it as it is."""


def sqlite_url(file: Path, **options: str) -> str:
    """Return the URL of an SQLite file. `sqlite_file` returns the file again, whatever its name is.

    Args:
        file: an absolute path.
        options: of SQLite's own URIs, such as ``mode="ro"``.
    """
    url = f"sqlite:///{file}"
    if not options and PLAIN.fullmatch(url):
        return url

    # SQLAlchemy ends a path at `?`, and Optuna fills in what stands in braces. So the path becomes a URI, with such
    # characters encoded. MLflow would create a folder of this name, if the driver were not named.
    from sqlalchemy import URL

    name = URL.create("sqlite+pysqlite", database=file.as_uri(), query={**options, "uri": "true"})
    return name.render_as_string(hide_password=False)


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for any other URL, and for one that names no file or has options."""
    plain = PLAIN.fullmatch(url)
    if plain is not None:
        return Path(plain[1])
    if not url.startswith("sqlite"):
        return None

    # Imported here: it takes a quarter of a second, and few commands need it.
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        return None

    name = parsed.database or ":memory:"
    if "uri" in parsed.query and name.startswith("file:"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(name).path)))
    if parsed.host or parsed.query or name == ":memory:":
        return None
    return Path(name)
