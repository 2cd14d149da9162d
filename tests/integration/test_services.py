"""The servers that other tests use: they refuse what real ones refuse, keep what real ones keep, and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.services import MlflowServer, Postgres, RayNode, RayNodes, S3Server, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WHERE_AM_I = """
import json, os, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
def told(path):
    time.sleep(0.5)
    return [os.environ["SPTUNE_CACHE"], os.environ.get("NAME", ""), os.listdir(path)]

print(json.dumps(sorted(ray.get([told.remote(sys.argv[2]) for _ in range(int(sys.argv[3]))]))))
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if reason := Postgres.why_not():
        pytest.skip(reason)
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    if reason := S3Server.why_not():
        pytest.skip(reason)
    with S3Server() as server:
        yield server


def left(service: Service) -> bool:
    """Whether a server left a process or a file."""
    return bool(service.processes()) or service.folder.exists()


def test_postgres_asks_for_its_password_and_keeps_what_was_committed(postgres: Postgres) -> None:
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


def test_a_failing_test_leaves_no_postgres() -> None:
    if reason := Postgres.why_not():
        pytest.skip(reason)
    with pytest.raises(ZeroDivisionError), Postgres() as server:
        _ = 1 / 0
    assert not left(server)


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
    get = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", get, f"{s3.url}/moto-api/"], check=True, timeout=2)
    s3.resume()
    assert s3.client().get_object(Bucket=s3.bucket, Key="kept")["Body"].read() == b"1"


def test_mlflow_asks_for_its_password_and_survives_a_kill(
    postgres: Postgres, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MlflowServer(postgres, s3) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        run = MlflowClient().create_run(MlflowClient().create_experiment("kept")).info.run_id
        MlflowClient().log_text(run, "hello", "told.txt")
        found = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="mlflow_")["Contents"]
        assert [Path(entry["Key"]).name for entry in found] == ["told.txt"]
        server.kill()
        server.start()
        assert MlflowClient().get_run(run).info.run_id == run
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(MlflowException, match="401"):
            MlflowClient().get_run(run)
    assert not left(server)


def told(nodes: RayNodes, folder: Path, tasks: int, **env: str) -> list[tuple[str, str, list[str]]]:
    """What tasks that run at once say of their node's cache, name and folder."""
    command = [sys.executable, "-c", WHERE_AM_I, nodes.address, str(folder), str(tasks)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ, **nodes.env, **env}
    )
    return [(cache, name, files) for cache, name, files in json.loads(done.stdout.splitlines()[-1])]


def test_ray_nodes_have_environments_of_their_own_and_die_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with RayNodes() as nodes:
        one, two = nodes.add(NAME="one"), nodes.add(NAME="two")
        expected = [(str(node.cache), name, ["file"]) for node, name in ((one, "one"), (two, "two"))]
        assert told(nodes, tmp_path, 2) == sorted(expected)
        with pytest.raises(subprocess.CalledProcessError):
            told(nodes, tmp_path, 2, RAY_AUTH_TOKEN="wrong" * 10)
        nodes.kill(one)
        assert not one.processes()
        started = time.monotonic()
        assert told(nodes, tmp_path, 1) == [expected[1]]
        assert time.monotonic() - started < 60
        everything: list[RayNode] = [nodes.head, one, two]
    assert not any(left(node) for node in everything)


def test_a_folder_can_be_hidden_from_a_node(tmp_path: Path) -> None:
    if reason := RayNodes.why_not_hidden():
        pytest.skip(reason)
    (tmp_path / "file").touch()
    with RayNodes() as nodes:
        node = nodes.add(hidden=tmp_path)
        assert told(nodes, tmp_path, 1) == [(str(node.cache), "", [])]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
