"""A study database on a server: created once, however many drivers start at once, and read with SELECT alone."""

from __future__ import annotations

import pytest

from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.opening import NothingStored
from tests.orchestrator.study.storage.test_opening import in_processes, names
from tests.services import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_processes_that_open_a_new_database_of_a_server_at_the_same_time_all_succeed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in postgres.env.items():
        monkeypatch.setenv(name, text)
    url = postgres.create("first_opened_at_once")
    assert in_processes(6, lambda: StudyDatabase(url).close()) == [None] * 6
    assert names(url) == []


def test_a_role_that_may_select_alone_can_read_a_database_server(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in postgres.env.items():
        monkeypatch.setenv(name, text)
    url = postgres.create("read_alone")
    with pytest.raises(NothingStored):
        StudyDatabase(url, read_only=True)

    database = StudyDatabase(url)
    database.save_sweep("small", {"name": "small"})
    database.close()
    with postgres.connect("read_alone") as connection:
        connection.execute(f"CREATE ROLE colleague LOGIN PASSWORD '{postgres.env['PGPASSWORD']}'")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO colleague")
    assert names(url.replace("//sptune@", "//colleague@")) == ["small"]
