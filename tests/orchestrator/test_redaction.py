"""Secrets of addresses are hidden, whatever characters they have, and addresses without secrets stay as they are."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy.engine import make_url

from orchestrator.drivers.trial_runner import _AttemptLog
from orchestrator.errors import ServiceError, SpecError, UserError
from orchestrator.redaction import redact
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Failure, FailureCause
from orchestrator.tracking.mlflow_runs import MlflowRuns
from orchestrator.tracking.mlflow_tracker import MlflowTracker

AWKWARD_CHARACTERS = "/@:%?#&=;+'\"\\[]$!~,()"
SCHEMES = ("postgresql+psycopg", "postgresql", "https", "http", "s3")
HOSTS = ("db", "db:5432", "127.0.0.1:1", "[::1]:5432")
PATHS = ("", "/", "/sptune", "/sptune?application_name=x")


def awkward_passwords() -> list[str]:
    """Passwords with each awkward character at its start, inside and at its end, and random mixtures."""
    passwords = [
        f"{before}{character}{after}"
        for character in AWKWARD_CHARACTERS
        for before, after in (("", "kept5ecret"), ("kept5", "ecret"), ("kept5ecret", ""))
    ]
    draw = random.Random(0)
    letters = AWKWARD_CHARACTERS + "abc123"
    return passwords + ["5" + "".join(draw.choices(letters, k=12)) + "5" for _ in range(300)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_part_of_a_password_is_left_in_an_address(scheme: str) -> None:
    for password, host, path in itertools.product(awkward_passwords(), HOSTS, PATHS):
        expected = f"{scheme}://ada:***@{host}{path}"
        assert redact(f"{scheme}://ada:{password}@{host}{path}") == expected, password
        assert redact(expected) == expected, "redacting twice changes nothing"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_part_of_a_password_is_left_in_a_text_that_quotes_an_address(scheme: str) -> None:
    for password, host, path in itertools.product(awkward_passwords(), HOSTS, PATHS):
        text = "connection to {} failed; see {}."
        address = f"{scheme}://ada:{password}@{host}{path}"
        hidden = f"{scheme}://ada:***@{host}{path}"
        assert redact(text.format(address, "http://127.0.0.1:5000")) == text.format(hidden, "http://127.0.0.1:5000")
        assert redact(text.format(address, address)) == text.format(hidden, hidden)


def test_what_the_clients_take_for_a_password_is_hidden() -> None:
    for password in awkward_passwords():
        address = f"postgresql+psycopg://ada:{password}@db/sptune"
        try:
            taken = make_url(address).password
        except ValueError:
            continue  # SQLAlchemy refuses it, because what follows the first @ is no port
        if taken:  # a password that begins with @ is empty for SQLAlchemy
            assert taken not in redact(address).removeprefix("postgresql+psycopg://ada:").removesuffix("@db/sptune")
        assert make_url(redact(address)).password == "***"

    for password in [*awkward_passwords(), "with space", "ü"]:
        encoded = quote(password, safe="")
        hidden = urlsplit(redact(f"https://ada:{encoded}@mlflow:5000/base"))
        assert (hidden.username, hidden.password, hidden.hostname, hidden.port) == ("ada", "***", "mlflow", 5000)


def test_a_password_with_a_space_is_hidden_in_an_address() -> None:
    assert redact("postgresql+psycopg://ada:hun ter2@db/x") == "postgresql+psycopg://ada:***@db/x"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://ada@db:5432/sptune",
        "postgresql+psycopg://ada@[::1]:5432/sptune?sslmode=require",
        "postgresql+psycopg:///sptune?host=/run/postgresql&user=ada",
        "sqlite:////home/ada/a:b@c/studies.db",
        "sqlite:///studies.db",
        "http://127.0.0.1:5000",
        "http://[::1]:5000/base",
        "http://ada:@mlflow:5000",
        "https://mlflow.example.org/a@b",
        "s3://bucket/folder@2/a:b@c?region=eu-west-1&endpoint_override=127.0.0.1:9000",
        "/home/ada/sptune-home",
        "",
    ],
)
def test_an_address_without_a_secret_is_unchanged(address: str) -> None:
    assert redact(address) == address
    assert redact(f"see {address} for more") == f"see {address} for more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ada@db/x?password=a;b'c&sslmode=require", "postgresql://ada@db/x?password=***&sslmode=require"),
        ("host=db password='hun ter2' user=ada", "host=db password=*** user=ada"),
        ("http://u:p@one,http://v:q@two", "http://u:***@two"),
        ("from http://u:p@one,http://v:q@two", "from http://u:***@two"),
        ("from http://u:p@one, http://v:q@two", "from http://u:***@one, http://v:***@two"),
    ],
)
def test_secrets_among_options_and_in_lists_are_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize("password", ["hun/ter2", "hun@ter2", "hun:ter2", "hun?ter2", "hun%2Fter2", "hun ter2"])
def test_a_spec_with_a_password_is_refused_without_repeating_it(raw_spec: dict[str, object], password: str) -> None:
    address = f"postgresql+psycopg://u:{password}@127.0.0.1:1/db"
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec | {"cluster": {"studies": address}}, "a test")
    assert "postgresql+psycopg://u:***@127.0.0.1:1/db holds a secret" in str(refused.value)
    assert "hun" not in str(refused.value)
    assert "ter2" not in str(refused.value)


ADDRESS = "http://bob:hun/ter2@mlflow:5000/x"


def test_an_error_holds_no_secret_however_it_was_made() -> None:
    assert str(UserError(f"cannot reach {ADDRESS}.")) == "cannot reach http://bob:***@mlflow:5000/x."
    refused = SpecError("a test", [f"mlflow {ADDRESS}: away", "tasks: none"])
    assert "ter2" not in str(refused) + str(refused.problems)
    away = ServiceError(ADDRESS, away=True)
    assert (str(away), away.away) == ("http://bob:***@mlflow:5000/x", True)


def test_a_failure_is_stored_without_secrets_and_without_what_a_database_refuses() -> None:
    failure = Failure(cause=FailureCause.ERROR, error=f"OSError: {ADDRESS}\n\tcaf\udce9 \x00 \x1b[2J")
    assert failure.error == "OSError: http://bob:***@mlflow:5000/x\n\tcaf\\udce9 \\x00 \\x1b[2J"


def test_what_mlflow_lacks_is_told_without_its_password() -> None:
    class Away(MlflowRuns):
        def open(self) -> None:
            raise OSError(f"API request to {ADDRESS} failed")

    tracker = MlflowTracker(Away("", "demo", "", None, ""), patience_s=0.0)
    tracker._enqueue("work", tracker._runs.open)
    assert tracker.close() == 1
    assert tracker.problem == "refuses: API request to http://bob:***@mlflow:5000/x failed"


def test_the_log_of_a_trial_holds_no_secret(tmp_path: Path) -> None:
    log = _AttemptLog("cpu")
    log.add(f"OSError: {ADDRESS}\nmore \x1b[2J")
    log.close()
    log.write(str(tmp_path))
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert text.endswith("OSError: http://bob:***@mlflow:5000/x\nmore \\x1b[2J\n")
