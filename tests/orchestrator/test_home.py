"""Everything lies in the home unless the environment says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.home import home_at


def test_everything_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPTUNE_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    home = home_at(str(tmp_path))
    assert home.data_root == str(tmp_path / "data")
    assert home.mlflow_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert home.mlflow_artifacts == (tmp_path / "mlartifacts").as_uri()
    assert home.trials("demo").startswith(str(tmp_path))


def test_the_environment_names_another_task_store_and_another_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPTUNE_DATA", "/elsewhere/tasks")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    home = home_at(str(tmp_path))
    assert (home.data_root, home.mlflow_uri) == ("/elsewhere/tasks", "http://127.0.0.1:5000")
    assert home.mlflow_artifacts is None, "a server decides itself where artifacts lie"
