"""Errors of servers become sentences with the way out. The texts are those of real drivers and servers."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from orchestrator.environment.connections import explain_database_error, explain_error, explain_mlflow_error

FAILED = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f'{FAILED}FATAL:  password authentication failed for user "ada"', "refuses these credentials"),
        (f"{FAILED}fe_sendauth: no password supplied", "refuses these credentials"),
        (f'{FAILED}FATAL:  database "nosuch" does not exist', "make it with `createdb nosuch`"),
        (f"{FAILED}Connection refused\n\tIs the server running?", "does not answer"),
        ("connection timeout expired", "does not answer"),
        ("failed to resolve host 'db': Name or service not known", "does not answer"),
        (f"{FAILED}FATAL:  the database system is starting up", "does not answer"),
        ("permission denied for schema public", "grant CREATE on its schema"),
        (f"{FAILED}FATAL:  sorry, too many clients already", "raise max_connections"),
        ("No module named 'psycopg'", "pip install '.[cluster]'"),
        ("database is locked", "is locked by another program"),
        ("strange: postgresql://ada:lovelace@db/x\nand more", "cannot be used: strange: postgresql://ada:***@db/x"),
    ],
)
def test_an_error_of_a_database_is_one_sentence_without_secrets(text: str, sentence: str) -> None:
    reason = explain_database_error(RuntimeError(text))
    assert sentence in reason
    assert "\n" not in reason
    assert "lovelace" not in reason


API = "API request to endpoint /x failed with error code"
AWAY = "API request to http://h:1/x failed with exception HTTPConnectionPool(host='h', port=1): Max retries exceeded"


@pytest.mark.parametrize(
    ("text", "token", "sentence"),
    [
        (f"{API} 401 != 200. Response body: 'You are not'", "", "refuses these credentials"),
        (f"{API} 401 != 200. Response body: ''", "abc", "refuses this token, which may have expired"),
        (f"{API} 403 != 200. Response body: 'Permission denied'", "", "does not permit this user to do that"),
        (f"{API} 403 != 200. Response body: 'Invalid Host header'", "", "start it with --allowed-hosts"),
        (f"{API} 503 != 200", "", "has an internal error (status 503)"),
        (AWAY, "", "does not answer"),
        ("No experiment with id=7 exists", "", "refuses: No experiment with id=7 exists"),
    ],
)
def test_an_error_of_an_mlflow_server_is_one_sentence(
    text: str, token: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    assert sentence in explain_mlflow_error(MlflowException(text))


def test_an_error_that_comes_from_no_server_is_not_explained() -> None:
    assert explain_error(ValueError("ours")) is None
    assert explain_error(OSError(28, "No space left on device")) is None
    assert explain_error(KeyError("ours")) is None
