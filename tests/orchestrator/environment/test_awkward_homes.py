"""A home may have any name, be given by any kind of path, be moved, and be read by people who may not write to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.drivers.context import trial_context
from orchestrator.environment.connections import describe_database, open_database, read_database
from orchestrator.environment.home import home_at, weights_at
from orchestrator.environment.lookup import find_sweep
from orchestrator.errors import HomeError, ServiceError
from orchestrator.spec.resources import Cluster
from orchestrator.spec.schema import SweepSpec
from tests.orchestrator.conftest import Sptune
from tests.trainer.storage.test_addresses import AWKWARD


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPTUNE_HOME", "SPTUNE_DATA", "SPTUNE_STUDIES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def record(spec: SweepSpec, root: Path, **cluster: str) -> None:
    """Record a sweep in a home, as its launch does."""
    home = home_at(str(root))
    home.create()
    database = open_database(home)
    database.save_sweep(spec.name, spec.model_dump(mode="json") | {"cluster": cluster})
    database.close()


@pytest.mark.parametrize("name", AWKWARD)
def test_every_part_of_a_home_is_in_its_folder(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    home = home_at(str(root))
    assert [*home.problems()] == [], "no name is a secret"
    assert (home.root, home.data_root) == (str(root), str(root / "data"))
    assert (home.database_file, home.mlflow_file) == (root / "studies.db", root / "mlflow.db")
    assert home.mlflow_artifacts == (root / "mlartifacts").as_uri()


@pytest.mark.parametrize("name", ["what?x=1", "a#b", "{x}"])
def test_a_sweep_is_found_in_the_home_that_it_was_recorded_in(name: str, tmp_path: Path, spec: SweepSpec) -> None:
    record(spec, tmp_path / name)
    home, database, found = find_sweep(str(tmp_path / name), spec.name)
    database.close()
    assert (home.root, found.name) == (str(tmp_path / name), spec.name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_relative_paths_and_tildes_become_absolute_in_every_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: SweepSpec
) -> None:
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)

    cluster = Cluster(home="h", data="~/d", studies="sqlite:///s.db", mlflow="sqlite:///~/m.db", weights="w")
    options = home_at(None, cluster)
    for name, text in (
        ("SPTUNE_HOME", "h"),
        ("SPTUNE_DATA", "~/d"),
        ("SPTUNE_STUDIES", "sqlite:///s.db"),
        ("MLFLOW_TRACKING_URI", "sqlite:///~/m.db"),
    ):
        monkeypatch.setenv(name, text)
    assert home_at() == options, "the environment and a spec are read in the same manner"
    assert home_at("./h/") == options

    assert options.root == str(tmp_path / "h")
    assert options.data_root == str(tmp_path / "user/d")
    assert options.database_file == tmp_path / "s.db"
    assert options.mlflow_file == tmp_path / "user/m.db"
    assert weights_at(None, cluster) == str(tmp_path / "w")
    assert weights_at("~/w", cluster) == str(tmp_path / "user/w")

    # What a worker in another folder is given.
    context = trial_context(spec, options, weights_at("w", cluster), options.trials_folder("small"))
    for path in (context.data_root, context.trials_folder, context.prototype_cache, context.weights):
        assert path is not None and Path(path).is_absolute()


def test_a_path_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, sptune: Sptune) -> None:
    sentence = "~nobody_of_this_name/h: there is no user of this name; write the folder's path in full."
    with pytest.raises(HomeError, match=sentence):
        home_at("~nobody_of_this_name/h")
    for command in (("status", "small"), ("launch", "demo", "--inline"), ("plan", "demo"), ("data", "list")):
        arguments = ("--data",) if command[0] == "data" else ("--home",)
        code, _, complaint = sptune(*command, *arguments, "~nobody_of_this_name/h")
        assert code == 2 and complaint.startswith("error: ") and complaint.strip().endswith(sentence)


def test_an_sqlite_url_with_options_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_STUDIES", "sqlite:////tmp/what?x=1/s.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/what?x=1/m.db")
    problems = [*home_at(str(tmp_path)).problems()]
    assert [problem.partition(": ")[0] for problem in problems] == [
        "studies sqlite:////tmp/what?x=1/s.db",
        "MLflow sqlite:////tmp/what?x=1/m.db",
    ]


def test_a_moved_or_copied_home_is_the_place_of_its_files_whatever_the_recorded_spec_says(
    tmp_path: Path, spec: SweepSpec
) -> None:
    old = tmp_path / "old"
    record(spec, old, home=str(old), studies=f"sqlite:///{old}/studies.db")
    for transfer in (shutil.copytree, shutil.move):
        new = tmp_path / transfer.__name__
        transfer(old, new)
        home, database, _ = find_sweep(str(new), spec.name)
        database.close()
        assert home.trials_folder(spec.name).startswith(f"{new}/"), "`rm` deletes these folders"
        assert home.database_file == new / "studies.db"


def test_a_moved_home_is_found_where_one_stands(
    tmp_path: Path, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(spec, tmp_path / "old", home=str(tmp_path / "old"))
    (tmp_path / "here").mkdir()
    shutil.copytree(tmp_path / "old", tmp_path / "here/sptune-home")
    monkeypatch.chdir(tmp_path / "here")
    home, database, _ = find_sweep(None, spec.name)
    database.close()
    assert home.root == str(tmp_path / "here/sptune-home")


def test_reading_commands_create_and_change_no_file(tmp_path: Path, spec: SweepSpec, sptune: Sptune) -> None:
    root = tmp_path / "home"
    record(spec, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for command in ("status", "report", "failures"):
        code, _, complaint = sptune(command, spec.name, "--home", root)
        assert (command, code, complaint) == (command, 0, "")
    assert sptune("plan", "demo", "--home", root)[0] == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_home_without_a_database_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    home = home_at(str(tmp_path))
    assert read_database(home) is None
    assert describe_database(home).endswith("created by the first launch")

    assert home.database_file is not None
    home.database_file.write_text("no database at all " * 100)
    for use in (read_database, open_database, describe_database):
        with pytest.raises(ServiceError, match=f"^the study database {home.database_file} cannot be used: "):
            use(home)
