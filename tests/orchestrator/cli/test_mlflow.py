"""`ui` and `sync` as a person calls them. What `sync` does to runs is in `tracking/test_projection.py`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.cli.mlflow import _host_names, _print_addresses, _server_command
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import UserError
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.tracking.mlflow_page import with_first_choices
from tests.orchestrator.conftest import Sptune


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home_at(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, []),
        ("", []),
        ("hub.example.org", ["hub.example.org"]),
        ("https://hub.example.org/user/anna/, LOCAL.test:8000", ["hub.example.org", "local.test"]),
        ("10.0.0.7", ["10.0.0.7"]),
    ],
)
def test_hosts_may_be_written_as_names_or_as_addresses(text: str | None, names: list[str]) -> None:
    assert _host_names(text) == names


def test_a_host_without_a_name_is_refused() -> None:
    with pytest.raises(UserError, match="write host names, such as"):
        _host_names("https://")


def test_the_page_may_be_opened_and_searched_through_an_allowed_host_and_locally(home: Home) -> None:
    command = _server_command(home, home.mlflow_uri, 5000, ["hub.example.org"])
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    origins = command[command.index("--cors-allowed-origins") + 1].split(",")
    assert {"localhost:*", "127.0.0.1:*", "hub.example.org", "hub.example.org:*"} <= {*hosts}
    assert {"https://hub.example.org", "http://hub.example.org:*"} <= {*origins}
    assert "*" not in (*hosts, *origins)
    plain = _server_command(home, home.mlflow_uri, 5000, [])
    assert "--allowed-hosts" not in plain, "MLflow's own rules stay"
    assert plain[plain.index("--artifacts-destination") + 1] == f"{Path(home.root).as_uri()}/mlartifacts"


def test_the_server_is_the_one_whose_page_has_our_choices_or_says_why_not(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = _server_command(home, home.mlflow_uri, 5000, [])
    assert command[command.index("--app-name") + 1] == "sptune", "an entry point of this package: install it again"
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    assert "--app-name" not in _server_command(home, home.mlflow_uri, 5000, []), "MLflow would refuse to start"
    assert "Install sptune again" in caplog.text


def test_a_page_without_a_place_for_our_choices_is_served_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert with_first_choices(b"<html><head><title>").startswith(b"<html><head><script>")
    assert with_first_choices(b"<html><HEAD lang=en>") == b"<html><HEAD lang=en>"
    assert "another page" in caplog.text


def test_a_port_that_is_taken_is_told_in_one_sentence(home: Home, sptune: Sptune) -> None:
    (Path(home.root) / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, complaint = sptune("ui", "--home", home.root, "--port", str(port))
    assert (code, complaint.count("\n")) == (2, 1)
    assert f"port {port} is taken" in complaint and "--port" in complaint


def test_a_hub_is_told_where_the_page_is_and_which_option_it_needs(
    home: Home, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/anna/")
    _print_addresses(home, mlflow_uri, 5000, has_hosts=False)
    said = capsys.readouterr().out
    assert "/user/anna/proxy/5000/" in said and "--allowed-hosts HOST" in said
    _print_addresses(home, mlflow_uri, 5000, has_hosts=True)
    assert "--allowed-hosts" not in capsys.readouterr().out


def test_sync_names_what_is_missing_and_leaves_a_sweep_to_its_driver(
    home: Home, spec: SweepSpec, sptune: Sptune
) -> None:
    code, _, complaint = sptune("sync", "--home", home.root)
    assert (code, "holds no sweep; start one with `sptune launch demo`" in complaint) == (2, True)
    database = StudyDatabase(home.database_url)
    database.save_sweep(spec.name, spec.model_dump(mode="json"))
    lease = database.lease(spec.name)
    lease.acquire(spec.name)
    code, said, _ = sptune("sync", "--home", home.root)
    assert (code, f"{spec.name}: left to its driver." in said) == (0, True)
    code, _, complaint = sptune("sync", spec.name, "--home", home.root)
    assert (code, "is driven by process" in complaint) == (2, True)
    lease.release()
    code, said, _ = sptune("sync", "--home", home.root)
    assert (code, said) == (0, f"{spec.name}: MLflow has everything.\n"), "a sweep without trials needs no MLflow"
