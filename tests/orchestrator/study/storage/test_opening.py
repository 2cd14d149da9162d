"""Databases are created once, however many processes open them first; and reading them writes nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.opening import NothingStored, creation_lock
from orchestrator.study.storage.sqlite_url import sqlite_url

COLLEAGUE = 45_679
"""A user id that owns nothing here."""

forking = multiprocessing.get_context("fork")


def in_processes(count: int, work: Callable[[], object], user: int | None = None) -> list[object]:
    """Run the same in several processes at the same time, and return what each returned or raised."""
    barrier = forking.Barrier(count)
    answers: Any = forking.SimpleQueue()

    def run() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        barrier.wait()
        try:
            answers.put(work())
        except Exception as error:
            answers.put(repr(error))

    processes = [forking.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    collected = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return collected


def names(url: str) -> list[str]:
    database = StudyDatabase(url, read_only=True)
    try:
        return sorted(database.sweeps())
    finally:
        database.close()


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that was closed, with one sweep."""
    file = tmp_path_factory.mktemp("template") / "studies.db"
    database = StudyDatabase(sqlite_url(file))
    database.save_sweep("small", {"name": "small"})
    database.close()
    return file


@pytest.fixture
def folder(template: Path) -> Iterator[Path]:
    """A folder with a closed database, which other users can read. pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory(suffix="home?") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(template, folder / "studies.db")
        yield folder


def test_processes_that_open_a_new_database_at_the_same_time_all_succeed(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "new" / "studies.db")
    assert in_processes(6, lambda: StudyDatabase(url).close()) == [None] * 6
    assert names(url) == []


def test_one_process_at_a_time_has_the_creation_lock(tmp_path: Path) -> None:
    inside = tmp_path / "inside"

    def work() -> bool:
        with creation_lock(sqlite_url(tmp_path / "any.db")):
            was_alone = not inside.exists()
            inside.touch()
            time.sleep(0.02)
            inside.unlink()
            return was_alone

    assert in_processes(5, work) == [True] * 5
    assert [*tmp_path.iterdir()] == [], "no file is left over"


def test_reading_a_closed_database_leaves_every_file_as_it_was(folder: Path) -> None:
    before = stored(folder)
    assert names(sqlite_url(folder / "studies.db")) == ["small"]
    assert stored(folder) == before


def test_reading_beside_a_driver_sees_what_it_wrote_last(folder: Path) -> None:
    url = sqlite_url(folder / "studies.db")
    driver = StudyDatabase(url)
    for number in range(3):
        driver.save_sweep(f"next{number}", {"name": f"next{number}"})
        assert f"next{number}" in names(url)
    driver.close()
    assert set(stored(folder)) == {"studies.db"}, "the driver has left everything in the database"


def killed_driver(folder: Path) -> None:
    """Leave a database as a driver does that was killed: its last sweep is in the log only."""
    url = sqlite_url(folder / "studies.db")

    def work() -> None:
        StudyDatabase(url).save_sweep("last", {"name": "last"})
        os._exit(9)

    process = forking.Process(target=work)
    process.start()
    process.join()
    assert (folder / "studies.db-wal").stat().st_size > 0


@pytest.mark.parametrize("lost", ["", "-shm"])
def test_what_a_killed_driver_wrote_last_is_read_and_every_file_stays(folder: Path, lost: str) -> None:
    killed_driver(folder)
    if lost:
        (folder / f"studies.db{lost}").unlink()
    before = stored(folder)
    assert names(sqlite_url(folder / "studies.db")) == ["last", "small"]

    # The `-shm` is SQLite's index of the log. Whoever may write brings it up to date.
    after = stored(folder)
    assert after.keys() == before.keys()
    assert {name: after[name] for name in after if not name.endswith("-shm")} == {
        name: before[name] for name in before if not name.endswith("-shm")
    }


def test_a_reader_does_not_keep_a_driver_of_the_same_process_from_writing(folder: Path) -> None:
    # Another process has made the `-shm`, and this one opens it for the first time by reading.
    killed_driver(folder)
    url = sqlite_url(folder / "studies.db")
    reader = StudyDatabase(url, read_only=True)
    assert [*reader.sweeps()] == ["small", "last"]

    with contextlib.closing(StudyDatabase(url)) as driver:
        driver.save_sweep("written", {"name": "written"})
    assert [*reader.sweeps()] == ["small", "last", "written"]
    reader.close()


def test_a_reader_cannot_write(folder: Path) -> None:
    database = StudyDatabase(sqlite_url(folder / "studies.db"), read_only=True)
    with pytest.raises(Exception, match=r"commit|readonly"):
        database.save_halt_reason("small", "why")
    database.close()


def test_a_database_that_does_not_exist_or_is_empty_holds_nothing_and_is_not_created(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    for create in (lambda: None, file.touch, lambda: sqlite3.connect(file).execute("CREATE TABLE x (y)").close()):
        create()
        before = stored(tmp_path)
        with pytest.raises(NothingStored):
            StudyDatabase(sqlite_url(file), read_only=True)
        assert stored(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("state", ["closed", "driven", "killed", "killed, without -shm"])
def test_a_colleague_with_the_right_to_read_alone_can_read(folder: Path, state: str) -> None:
    url = sqlite_url(folder / "studies.db")
    driver = None
    if state == "driven":
        driver = StudyDatabase(url)
        driver.save_sweep("last", {"name": "last"})
    if state.startswith("killed"):
        killed_driver(folder)
    if state == "killed, without -shm":
        (folder / "studies.db-shm").unlink()

    before = set(stored(folder))
    expected = ["small"] if state == "closed" else ["last", "small"]
    assert in_processes(1, lambda: names(url), user=COLLEAGUE) == [expected]
    assert set(stored(folder)) == before
    (answer,) = in_processes(1, lambda: StudyDatabase(url).save_sweep("mine", {}), user=COLLEAGUE)
    assert "Error(" in str(answer), "whoever may not write is told so"
    if driver is not None:
        driver.close()
