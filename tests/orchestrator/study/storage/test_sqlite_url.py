"""The URL of an SQLite file leads SQLAlchemy, Optuna and MLflow to exactly this file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry

from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.sqlite_url import sqlite_file, sqlite_url
from tests.trainer.storage.test_addresses import AWKWARD

LETTERS = "ab/?#%{}=@+&'\"[]() ~:;,!$^`|<>\\äß図é\n\t0123456789"


def test_every_path_comes_back_from_its_url() -> None:
    letters = random.Random(0)
    for _ in range(500):
        name = "".join(letters.choices(LETTERS, k=letters.randint(1, 12)))
        file = Path("/") / f"x{name}" / "studies.db"
        assert sqlite_file(sqlite_url(file)) == file
        assert sqlite_file(sqlite_url(file, mode="ro", immutable="1")) == file


@pytest.mark.parametrize("name", AWKWARD)
def test_sqlalchemy_opens_the_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "some.db"
    file.parent.mkdir()
    engine = sqlalchemy.create_engine(sqlite_url(file))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE here (x INTEGER)"))
    engine.dispose()
    assert [*tmp_path.rglob("*.db")] == [file], "and no other"


@pytest.mark.parametrize("name", ["what?x=1#%41 {x}", "größe"])
def test_optuna_and_mlflow_open_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow would make folders of a URL here, where it looks like a relative path.
    working_directory = tmp_path / "here"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    home = tmp_path / name

    url = sqlite_url(home / "studies.db")
    database = StudyDatabase(url)
    database.save_sweep("small", {"name": "small"})
    database.close()
    reader = StudyDatabase(url, read_only=True)
    assert reader.sweeps()["small"]["name"] == "small"
    reader.close()

    # MLflow opens every database with this function. All of its tables would take seconds.
    engine = create_sqlalchemy_engine_with_retry(sqlite_url(home / "mlflow.db"))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE here (x INTEGER)"))
    engine.dispose()
    assert (home / "mlflow.db").stat().st_size > 0

    assert [*working_directory.iterdir()] == []
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"here", name}


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db", "b.db"),
        ("sqlite:///~/b.db", "~/b.db"),
        ("sqlite+pysqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/what%3Fx.db", "/a/what?x.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:////a/what?x=1/b.db", None),
        ("sqlite://host/b.db", None),
        ("postgresql+psycopg://ada@db/sptune", None),
        ("/a/b.db", None),
        ("", None),
    ],
)
def test_urls_of_people_name_a_file_or_none(url: str, file: str | None) -> None:
    assert sqlite_file(url) == (Path(file) if file else None)
