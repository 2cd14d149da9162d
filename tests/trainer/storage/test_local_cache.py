"""The cache folder: where it is for users with and without a home, and what is said if it cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from trainer.storage.local_cache import cache_folder, cache_problem, make_cache_folder, temporary_cache


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPTUNE_CACHE", raising=False)


def test_the_cache_is_in_the_home_of_the_user_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/sptune"
    monkeypatch.setenv("SPTUNE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder("/scratch") == Path("/scratch")
    assert [*tmp_path.iterdir()] == [], "asking creates nothing"


def test_a_user_without_a_home_that_can_be_written_has_a_cache_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(tempfile.gettempdir()) / f"sptune-cache-{os.getuid()}"
    # No folder can be made in a device, not even by root.
    monkeypatch.setenv("HOME", "/dev/null")
    assert cache_folder() == own == temporary_cache()
    assert cache_problem() is None

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    # What Python says about a user number without a name.
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert cache_folder() == own


def test_a_cache_that_cannot_be_made_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file/cache"
    monkeypatch.setenv("SPTUNE_CACHE", str(folder))
    expected = f"the cache {folder} cannot be written: .*. Name a folder on a local disk with SPTUNE_CACHE."

    with pytest.raises(OSError, match=expected):
        make_cache_folder(folder)
    problem = cache_problem()
    assert problem is not None
    assert problem == expected.replace(".*", f"{tmp_path}/file is no folder")

    # One that is there may hold all that is needed.
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path))
    assert cache_problem() is None
