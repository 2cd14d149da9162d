"""Locations: in the home by default; an option, the environment or a spec's `cluster` can change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.environment.home import NETWORK_FILE_SYSTEMS, home_at, network_kind
from orchestrator.errors import HomeError
from orchestrator.spec.resources import Cluster

NAMES = ("SPTUNE_HOME", "SPTUNE_DATA", "SPTUNE_STUDIES", "MLFLOW_TRACKING_URI")
DATABASE = "postgresql+psycopg://ada@db/sptune"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_by_default_everything_is_in_the_home(tmp_path: Path) -> None:
    home = home_at(str(tmp_path))
    assert home.root == str(tmp_path)
    assert home.data_root == str(tmp_path / "data")
    assert home.database_url == f"sqlite:///{tmp_path / 'studies.db'}"
    assert home.database_file == tmp_path / "studies.db"
    assert home.mlflow_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert home.mlflow_artifacts == (tmp_path / "mlartifacts").as_uri()
    assert home.trials_folder("demo").startswith(str(tmp_path))
    assert [*home.problems()] == []


def test_the_environment_changes_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_DATA", "/elsewhere/tasks")
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    home = home_at(str(tmp_path))
    assert (home.data_root, home.database_url) == ("/elsewhere/tasks", DATABASE)
    assert home.mlflow_uri == "http://127.0.0.1:5000"
    assert home.mlflow_artifacts is None, "a server chooses the folder for artifacts itself"
    assert (home.database_file, home.mlflow_file) == (None, None)


def test_an_option_overrides_the_environment_which_overrides_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(home="s3://spec/home", studies=DATABASE, mlflow="http://spec:5000", data="/spec/data")
    assert home_at(None, cluster).root == "s3://spec/home"
    assert home_at(None, cluster).data_root == "/spec/data"
    monkeypatch.setenv("SPTUNE_HOME", "s3://environment/home")
    monkeypatch.setenv("SPTUNE_DATA", "/environment/data")
    assert home_at(None, cluster).root == "s3://environment/home"
    assert home_at(None, cluster).data_root == "/environment/data"
    assert home_at("s3://option/home", cluster).root == "s3://option/home"
    assert home_at("s3://option/home", cluster).database_url == DATABASE


@pytest.mark.parametrize("text", ["{}", "{}/", "file://{}"])
def test_a_folder_can_be_written_in_several_ways(text: str, tmp_path: Path) -> None:
    assert home_at(text.format(tmp_path)).root == str(tmp_path)


def test_a_home_in_a_bucket_needs_a_database_and_an_mlflow_server() -> None:
    assert [*home_at("s3://bucket/home").problems()] == [
        "home s3://bucket/home can hold files only, and the study database needs a server: set SPTUNE_STUDIES or "
        "`cluster.studies` to postgresql+psycopg://USER@HOST/DATABASE.",
        "home s3://bucket/home can hold files only, and MLflow needs a server: set MLFLOW_TRACKING_URI or "
        "`cluster.mlflow` to http://HOST:PORT.",
    ]
    cluster = Cluster(studies=DATABASE, mlflow="http://mlflow:5000")
    assert [*home_at("s3://bucket/home", cluster).problems()] == []


@pytest.mark.parametrize("url", ["mysql://ada@db/sptune", "postgresql://ada@db/sptune", "studies.db"])
def test_a_study_database_is_sqlite_or_postgresql(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_STUDIES", url)
    assert [*home_at(str(tmp_path)).problems()] == [
        f"studies {url}: must be postgresql+psycopg://USER@HOST/DATABASE or sqlite:////FILE."
    ]


def test_a_key_in_an_address_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    problem = next(home_at("s3://AKIA:lovelace@bucket/home").problems())
    assert "lovelace" not in problem
    assert problem.endswith("put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


MOUNTS = {"/": "ext4", "/home": "nfs4", "/home/ada/scratch": "xfs", "/data": "lustre", "/mnt/bucket": "fuse.s3fs"}


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/studies.db", None),
        ("/home/ada/studies.db", "nfs4"),
        ("/home/ada/scratch/x/studies.db", None),
        ("/homes/studies.db", None),
        ("/data/not/there/yet/studies.db", "lustre"),
        ("/mnt/bucket/studies.db", "fuse.s3fs"),
    ],
)
def test_the_innermost_mount_point_decides_the_file_system(file: str, kind: str | None) -> None:
    assert network_kind(Path(file), MOUNTS) == kind


def test_databases_on_a_network_file_system_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [_mount("/", "ext4"), _mount(str(tmp_path), "nfs4")])
    assert [*home_at(str(tmp_path)).problems()] == [
        f"the study database {tmp_path}/studies.db is an SQLite file on nfs4, a network file system, whose locks "
        "cannot protect it: set SPTUNE_STUDIES to postgresql+psycopg://USER@HOST/DATABASE, or choose a home on a local "
        "disk.",
        f"MLflow's database {tmp_path}/mlflow.db is an SQLite file on nfs4, a network file system, whose locks "
        "cannot protect it: set MLFLOW_TRACKING_URI to a server, or choose a home on a local disk.",
    ]
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert [*home_at(str(tmp_path)).problems()] == [], "files may be on a network file system"


def test_no_local_file_system_is_listed_as_a_network_one() -> None:
    assert not NETWORK_FILE_SYSTEMS & {"ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "apfs", "fuse", "9p"}


def test_a_home_that_cannot_be_written_is_refused_before_and_during_its_creation(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = home_at(str(tmp_path / "file"))
    sentence = (
        f"home {tmp_path}/file cannot be written: {tmp_path}/file is a file. Choose another with --home or SPTUNE_HOME."
    )
    assert sentence in [*home.problems()]
    with pytest.raises(HomeError, match="cannot be written"):
        home.create()


def _mount(mountpoint: str, fstype: str) -> object:
    return type("Mount", (), {"mountpoint": mountpoint, "fstype": fstype})()
