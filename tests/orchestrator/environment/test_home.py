"""Where everything is: in the home, unless an option, the environment or a spec's `cluster` says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.environment.home import NETWORK_FILE_SYSTEMS, home_at, network_kind
from orchestrator.errors import HomeError
from orchestrator.spec.resources import Cluster

NAMES = ("SPTUNE_HOME", "SPTUNE_DATA", "SPTUNE_STUDIES", "MLFLOW_TRACKING_URI")
DATABASE = "postgresql+psycopg://ada@db/sptune"


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_everything_lies_in_the_home(tmp_path: Path) -> None:
    home = home_at(str(tmp_path))
    assert home.root == str(tmp_path)
    assert home.data_root == str(tmp_path / "data")
    assert home.database_url == f"sqlite:///{tmp_path / 'studies.db'}"
    assert home.database_file == tmp_path / "studies.db"
    assert home.mlflow_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert home.mlflow_artifacts == (tmp_path / "mlartifacts").as_uri()
    assert home.trials_folder("demo").startswith(str(tmp_path))
    assert [*home.problems()] == []


def test_the_environment_names_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_DATA", "/elsewhere/tasks")
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    home = home_at(str(tmp_path))
    assert (home.data_root, home.database_url) == ("/elsewhere/tasks", DATABASE)
    assert home.mlflow_uri == "http://127.0.0.1:5000"
    assert home.mlflow_artifacts is None, "a server decides itself where artifacts lie"
    assert (home.database_file, home.mlflow_file) == (None, None)


def test_an_option_comes_before_the_environment_and_that_before_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_folder_is_named_in_several_ways(text: str, tmp_path: Path) -> None:
    assert home_at(text.format(tmp_path)).root == str(tmp_path)


def test_a_bucket_holds_files_and_needs_a_database_and_a_server_beside_it() -> None:
    assert [*home_at("s3://bucket/home").problems()] == [
        "home s3://bucket/home holds files only, and the record needs a database: set SPTUNE_STUDIES or "
        "`cluster.studies` to postgresql+psycopg://USER@HOST/DATABASE.",
        "home s3://bucket/home holds files only, and MLflow needs a server: set MLFLOW_TRACKING_URI or "
        "`cluster.mlflow` to http://HOST:PORT.",
    ]
    cluster = Cluster(studies=DATABASE, mlflow="http://mlflow:5000")
    assert [*home_at("s3://bucket/home", cluster).problems()] == []


@pytest.mark.parametrize("url", ["mysql://ada@db/sptune", "postgresql://ada@db/sptune", "studies.db"])
def test_a_record_is_in_sqlite_or_postgresql(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_STUDIES", url)
    assert [*home_at(str(tmp_path)).problems()] == [
        f"studies {url}: must be postgresql+psycopg://USER@HOST/DATABASE or sqlite:////FILE."
    ]


def test_a_key_in_an_address_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    (told,) = [*home_at("s3://AKIA:lovelace@bucket/home").problems()][:1]
    assert "lovelace" not in told
    assert told.endswith("put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


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
def test_the_innermost_mount_says_what_a_file_is_on(file: str, kind: str | None) -> None:
    assert network_kind(Path(file), MOUNTS) == kind


def test_databases_on_a_network_file_system_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [_mount("/", "ext4"), _mount(str(tmp_path), "nfs4")])
    assert [*home_at(str(tmp_path)).problems()] == [
        f"the record {tmp_path}/studies.db is SQLite on nfs4, a network file system, whose locks do not keep it whole: "
        "set SPTUNE_STUDIES to postgresql+psycopg://USER@HOST/DATABASE, or choose a home on a local disk.",
        f"MLflow's database {tmp_path}/mlflow.db is SQLite on nfs4, a network file system, whose locks do not keep it "
        "whole: set MLFLOW_TRACKING_URI to a server, or choose a home on a local disk.",
    ]
    monkeypatch.setenv("SPTUNE_STUDIES", DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert [*home_at(str(tmp_path)).problems()] == [], "files alone are welcome there"


def test_the_known_network_file_systems_are_none_of_a_local_disk() -> None:
    assert not NETWORK_FILE_SYSTEMS & {"ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "apfs", "fuse", "9p"}


def test_a_home_that_cannot_be_written_is_told_before_and_when_it_is_made(tmp_path: Path) -> None:
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
