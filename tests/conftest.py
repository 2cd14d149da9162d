"""What all tests share: a cache of the session instead of the user's, and servers that are started once for all tests.

A test that uses a server works in a database, a bucket's folder or an experiment of its own.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import TypeVar

import pytest

from tests.services import MlflowServer, Postgres, S3Server, Service

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich would keep to it whatever a test says later

# Signals as in a terminal: `nohup` ignores SIGHUP, and a shell's background job SIGINT. Processes inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The garbage collector walks the libraries again and again while they are imported, and finds nothing.
gc.disable()

LONG_FILES = ("test_capacity.py", "test_compiled_blocks.py", "test_loop.py")
"""Files that take minutes and would come late by their names. `make test-slow` gives each file to one process."""

AnyService = TypeVar("AnyService", bound=Service)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


def pytest_collection_finish() -> None:
    """Collect garbage of tests only: what was imported before them stays until the end."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the end of the process free what was imported: some libraries complain of what stays."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SPTUNE_CACHE")
    os.environ["SPTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SPTUNE_CACHE")
    if before is not None:
        os.environ["SPTUNE_CACHE"] = before


def at_work(service: AnyService) -> Iterator[AnyService]:
    """The service while it runs; afterwards no process and no file of it is left."""
    with service:
        yield service
    assert not service.processes()
    assert not service.folder.exists()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if reason := Postgres.why_not():
        pytest.skip(reason)
    yield from at_work(Postgres())


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    if reason := S3Server.why_not():
        pytest.skip(reason)
    yield from at_work(S3Server())


@pytest.fixture(scope="session")
def mlflow(postgres: Postgres, s3: S3Server) -> Iterator[MlflowServer]:
    if reason := MlflowServer.why_not():
        pytest.skip(reason)
    yield from at_work(MlflowServer(postgres, s3))


@pytest.fixture(scope="session")
def open_mlflow(postgres: Postgres, s3: S3Server) -> Iterator[MlflowServer]:
    """One that asks for no password, and is quicker for it."""
    if reason := MlflowServer.why_not():
        pytest.skip(reason)
    yield from at_work(MlflowServer(postgres, s3, login=False))
