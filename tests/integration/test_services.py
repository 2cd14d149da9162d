"""The servers that other tests use: they refuse what real ones refuse, keep what real ones keep, and leave nothing.

That a Ray node has an environment and folders of its own, dies alone and leaves nothing is seen in `test_cluster.py`.
"""

from __future__ import annotations

import urllib.request
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.services import MlflowServer, Postgres, S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def fail_in_the_middle(postgres: Postgres) -> None:
    """What a test does that fails: it uses the server, stops and starts it."""
    with postgres:
        postgres.create("kept")
        with postgres.connect("kept") as connection:
            connection.execute("CREATE TABLE numbers AS SELECT 42 AS number")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(postgres.url("kept").replace("+psycopg", ""), password="wrong")
        postgres.stop()
        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            postgres.connect("kept")
        postgres.start()
        with postgres.connect("kept") as connection:
            assert connection.execute("SELECT number FROM numbers").fetchone() == (42,)
        raise ZeroDivisionError


def test_postgres_asks_for_its_password_keeps_what_was_committed_and_leaves_nothing() -> None:
    if reason := Postgres.why_not():
        pytest.skip(reason)
    # One of its own, which no other server is connected to while it is stopped.
    postgres = Postgres()
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle(postgres)
    assert not postgres.processes()
    assert not postgres.folder.exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, "InvalidAccessKeyId"),
        ({}, None),
    ],
)
def test_s3_looks_at_keys(s3: S3Server, change: dict[str, str], code: str | None) -> None:
    assert refusal(s3, {**s3.env, **change}) == code


def test_s3_looks_at_permissions(s3: S3Server) -> None:
    reader = {**s3.env, **s3.user("reader", "s3:GetObject", "s3:ListBucket")}
    assert refusal(s3, reader) == "AccessDenied"


def refusal(s3: S3Server, env: dict[str, str]) -> str | None:
    """What a write with these AWS_ variables is refused with."""
    client = s3.client(**env)
    try:
        client.put_object(Bucket=s3.bucket, Key="a", Body=b"1")
    except client.exceptions.ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def test_s3_hangs_while_it_is_paused_and_forgets_nothing(s3: S3Server) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="kept", Body=b"1")
    s3.pause()
    try:
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(f"{s3.url}/moto-api/", timeout=1)
    finally:
        s3.resume()
    assert s3.client().get_object(Bucket=s3.bucket, Key="kept")["Body"].read() == b"1"


def test_mlflow_asks_for_its_password_and_survives_a_kill(
    mlflow: MlflowServer, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in mlflow.env.items():
        monkeypatch.setenv(name, value)
    before = {entry["Key"] for entry in s3.client().list_objects_v2(Bucket=s3.bucket).get("Contents", [])}
    run = MlflowClient().create_run(MlflowClient().create_experiment("kept")).info.run_id
    MlflowClient().log_text(run, "hello", "greeting.txt")
    after = {entry["Key"] for entry in s3.client().list_objects_v2(Bucket=s3.bucket)["Contents"]}
    [new] = after - before
    assert new.startswith("mlflow_") and Path(new).name == "greeting.txt"
    mlflow.kill()
    mlflow.start()
    assert MlflowClient().get_run(run).info.run_id == run
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(MlflowException, match="401"):
        MlflowClient().get_run(run)
