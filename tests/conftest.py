"""What all tests share: decoded images go to a folder of the session, not to the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich would keep to it whatever a test says later


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SPTUNE_CACHE")
    os.environ["SPTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SPTUNE_CACHE")
    if before is not None:
        os.environ["SPTUNE_CACHE"] = before
