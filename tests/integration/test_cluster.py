"""A sweep on servers and nodes as a cluster has them, a node that dies, and what is refused before it starts."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Epoch
from tests.integration.processes import assert_mlflow_has, outcome_in_database, run_sptune, start_sptune
from tests.services.mlflow_server import MlflowServer
from tests.services.postgres import Postgres
from tests.services.ray_nodes import RayNodes
from tests.services.s3 import S3Server
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
README, DEMO = ROOT / "README.md", ROOT / "search_spaces/demo.yaml"


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


@pytest.fixture(scope="module")
def mlflow(postgres: Postgres, s3: S3Server) -> Iterator[MlflowServer]:
    if reason := MlflowServer.why_not():
        pytest.skip(reason)
    with MlflowServer(postgres, s3) as server:
        yield server


@pytest.fixture(scope="module")
def servers(postgres: Postgres, s3: S3Server, mlflow: MlflowServer) -> dict[str, str]:
    """The environment in which a sweep finds everything, but for Ray."""
    return {
        "SPTUNE_STUDIES": postgres.create("sptune"),
        "SPTUNE_HOME": f"s3://{s3.bucket}/home",
        **postgres.env,
        **s3.env,
        **mlflow.env,
    }


def read_until(driver: subprocess.Popen[str], trials: int) -> str:
    """What a launch prints until so many of its trials are finished."""
    assert driver.stdout is not None
    said = ""
    for line in driver.stdout:
        said += line
        if (found := re.search(r"(\d+) of \d+ trials finished", line)) and int(found[1]) >= trials:
            return said
    raise AssertionError(f"the launch ended before:\n{said}")


def readme_cells() -> dict[str, list[str]]:
    """Of each method, the cells of the demo's table in the README."""
    rows = re.findall(r"^│ (\w+) +│ [^│]*│([^│]*)│([^│]*)│[^│]*│$", README.read_text(), re.MULTILINE)
    return {method: [cell.strip() for cell in cells] for method, *cells in rows}


def test_the_demos_digits_on_real_servers_and_two_nodes_survives_the_death_of_one(
    servers: dict[str, str], mlflow: MlflowServer, postgres: Postgres, s3: S3Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    home, spec = servers["SPTUNE_HOME"], tmp_path / "digits.yaml"
    spec.write_text(re.sub(r"(?m)^tasks: .*$", "tasks: [demo/digits]", DEMO.read_text()))
    with RayNodes(0, dashboard=False, **servers) as nodes:
        doomed, staying = nodes.add(1, hidden=None, **servers), nodes.add(1, hidden=None, **servers)
        env = {**servers, **nodes.env, "RAY_ADDRESS": nodes.address}
        examined = run_sptune("doctor", spec, home=home, **env)
        assert examined.returncode == 0, examined.stdout + examined.stderr
        assert "no errors." in examined.stdout
        with start_sptune("launch", spec, home=home, **env) as driver:
            said = read_until(driver, 4)
            nodes.kill(doomed)
            said += read_until(driver, 9)
            again = nodes.add(1, hidden=None, **servers)
            assert driver.stdout is not None
            said += driver.stdout.read()
        assert driver.returncode == 0, said
        finished = run_sptune("launch", spec, home=home, **env)
        assert "demo is finished; nothing to run." in finished.stdout, finished.stderr
        report = run_sptune("report", "demo", "--format", "csv", home=home, **env)

        for node in (staying, again):
            assert len([*node.cache.glob("*.u8")]) >= 1, "each node decodes into a folder of its own"
        logs = b"".join(file.read_bytes() for file in nodes.head.folder.rglob("*.log"))

    for name, value in (*servers.items(), *nodes.env.items()):
        monkeypatch.setenv(name, value)
    came = outcome_in_database(servers["SPTUNE_STUDIES"], "demo")
    assert_mlflow_has(mlflow.uri, came, "demo")
    cells = readme_cells()
    assert {*cells} >= {"spt_deep", "vpt_deep", "linear"}
    rows_of_tasks = [row for row in csv.DictReader(io.StringIO(report.stdout)) if row["column"].startswith("demo/")]
    assert len(rows_of_tasks) == 3
    for row in rows_of_tasks:
        shown = f"{float(row['mean']):.1f} ± {float(row['std']):.1f}"
        assert shown in cells[row["method"]], "the numbers are those of one machine, whatever died"

    # What is secret stands nowhere.
    with postgres.connect("sptune") as connection:
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        rows = "".join(str(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in tables)
    objects = s3.client().list_objects_v2(Bucket=s3.bucket)["Contents"]
    texts = [one["Key"] for one in objects if one["Key"].endswith((".json", ".txt"))]
    kept = b"".join(s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read() for key in texts)
    secrets = [
        env[name] for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN")
    ]
    for secret in secrets:
        assert secret not in said + rows + report.stdout + examined.stdout
        assert secret.encode() not in kept + logs


def test_a_bucket_that_is_away_for_a_while_costs_a_trial_nothing_but_time(
    servers: dict[str, str], s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    params = {"task": "demo/digits", "method": "linear", "epochs": 4, "warmup_epochs": 0, "train_size": 0.1}
    config = TrainConfig.from_params({"backbone": "vit_nano_patch4_32.mae", **params})

    def losses(home: str, before: Callable[[int], object] = lambda _: None) -> list[float]:
        place = TrialContext(
            data_root=str(tmp_path / "data"),
            trials_folder=f"{home}/trials",
            prototype_cache=f"{home}/bank",
            weights=None,
            cpus=1,
            gpus=0,
        )
        found = []
        for event in run_trial(config, place):
            assert isinstance(event, Epoch), event
            found.append(event.metrics["train/loss"])
            before(event.epoch)
        return found

    def away(epoch: int) -> None:
        if epoch == 2:
            s3.pause()
            threading.Timer(45, s3.resume).start()  # longer than the client itself tries

    assert losses(f"{servers['SPTUNE_HOME']}/away", away) == losses(str(tmp_path))


def test_sqlite_on_several_nodes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with RayNodes() as nodes:
        nodes.add(1)
        env = {**nodes.env, "RAY_ADDRESS": nodes.address}
        launched = run_sptune("launch", "demo", home=tmp_path / "home", **env)
        assert launched.returncode == 2
        assert "the checks found 2 errors, so nothing was started:" in launched.stderr
        assert "studies.db is SQLite, a file of one machine, but the cluster has 2 nodes" in launched.stderr
        assert "Set SPTUNE_STUDIES or `cluster.studies` to postgresql+psycopg://USER@HOST/DATABASE." in launched.stderr
        assert "Set MLFLOW_TRACKING_URI or `cluster.mlflow` to a server: http://HOST:PORT." in launched.stderr
        assert "Traceback" not in launched.stderr


def test_a_folder_of_one_machine_is_refused_with_the_name_of_the_node_that_lacks_it(tmp_path: Path) -> None:
    if reason := RayNodes.why_not_hidden():
        pytest.skip(reason)
    home = tmp_path / "home"
    home.mkdir()
    with RayNodes() as nodes:
        nodes.add(1, hidden=home)
        env = {**nodes.env, "RAY_ADDRESS": nodes.address}
        launched = run_sptune("launch", "demo", home=home, **env)
    assert launched.returncode == 2
    assert (
        f"home: {home} is a local folder of that machine: it does not contain the file that the driver wrote"
        in launched.stderr
    )
    assert "Choose a folder that all nodes share, or a bucket: --home s3://BUCKET/FOLDER." in launched.stderr


NO_TOKEN = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": "", "MLFLOW_TRACKING_TOKEN": "secret-expired"}
NOBODY = "postgresql+psycopg://sptune@127.0.0.1:1/sptune"
WRONG = {
    "the study database's password": (
        {"PGPASSWORD": "secret-wrong"},
        "refuses these credentials; put the right password into PGPASSWORD",
    ),
    "the study database's address": (
        {"SPTUNE_STUDIES": NOBODY},
        "does not answer; check that it is running",
    ),
    "the study database's name": (
        {"SPTUNE_STUDIES": "{url}/nosuch"},
        "has no such database; make it with `createdb nosuch`",
    ),
    "MLflow's password": (
        {"MLFLOW_TRACKING_PASSWORD": "secret-wrong"},
        "refuses these credentials; put the right ones into MLFLOW_TRACKING_USERNAME",
    ),
    "an MLflow token": (
        NO_TOKEN,
        "refuses this token, which may have expired; put a new one into MLFLOW_TRACKING_TOKEN",
    ),
    "the bucket's key": ({"AWS_SECRET_ACCESS_KEY": "secret-wrong"}, "Check AWS_SECRET_ACCESS_KEY."),
    "the bucket's address": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Check AWS_ENDPOINT_URL"),
    "the bucket": ({"SPTUNE_HOME": "s3://nosuch/home"}, "there is no such bucket"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_refuses_or_is_away_is_one_sentence_with_the_way_out(
    what: str, servers: dict[str, str], postgres: Postgres, tmp_path: Path
) -> None:
    wrong, sentence = WRONG[what]
    url = postgres.url("").rstrip("/")
    env = {**servers, **{name: value.replace("{url}", url) for name, value in wrong.items()}}
    started_at = time.monotonic()
    launched = run_sptune("launch", "demo", "--inline", home=env.pop("SPTUNE_HOME"), **env)
    assert launched.returncode == 2, launched.stdout
    assert sentence in launched.stderr
    assert len(launched.stderr.strip().splitlines()) <= 2, "one sentence"
    for secret in ("secret-", servers["PGPASSWORD"], servers["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in launched.stderr + launched.stdout
    assert time.monotonic() - started_at < 40


def test_a_cluster_that_is_not_there_or_wants_another_token_is_one_sentence(tmp_path: Path) -> None:
    nowhere = run_sptune("launch", "demo", "--address", "127.0.0.1:1", home=tmp_path)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "error: no Ray cluster at 127.0.0.1:1:" in nowhere.stderr
    client = run_sptune("launch", "demo", "--address", "ray://127.0.0.1:10001", home=tmp_path)
    assert "ray://127.0.0.1:10001: a driver runs on a node of its cluster, not through Ray Client." in client.stderr
    with RayNodes() as nodes:
        env = {**nodes.env, "RAY_AUTH_TOKEN": "0" * 64}
        refused = run_sptune("launch", "demo", "--address", nodes.address, home=tmp_path, **env)
        assert refused.returncode == 2, refused.stderr
        assert "RAY_AUTH_TOKEN" in refused.stderr
        assert "Traceback" not in refused.stderr
