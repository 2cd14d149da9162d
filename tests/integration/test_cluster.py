"""A sweep on servers and nodes as a cluster has them, a node that dies, and what is refused before it starts."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Epoch
from tests.integration.processes import (
    assert_mlflow_has,
    is_at_work,
    launch_here,
    outcome,
    outcome_in_database,
    read_until,
    run_sptune,
    start_sptune,
)
from tests.orchestrator.conftest import Sptune
from tests.services.mlflow_server import MlflowServer
from tests.services.postgres import Postgres
from tests.services.ray_nodes import RayNode, RayNodes
from tests.services.s3 import S3Server
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SPEC: dict[str, Any] = {
    "name": "nodes",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep"],
    "train_sizes": [0.05],
    "fixed": {"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "prompt_length": 4},
    "space": {
        "lr": {"type": "float", "low": 0.01, "high": 0.05},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool"]},
    },
    "search": {"trials": 6, "max_concurrent": 2, "startup_trials": 4, "seed": 1},
    "final": {"seeds": [42]},
}


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


def trials_at_work(node: RayNode) -> list[psutil.Process]:
    """Return the processes of a node that train."""
    return [process for process in node.processes() if is_at_work(process)]


def test_a_sweep_on_real_servers_and_two_nodes_survives_the_death_of_one(
    servers: dict[str, str], mlflow: MlflowServer, postgres: Postgres, s3: S3Server, store: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    home, spec = servers["SPTUNE_HOME"], tmp_path / "nodes.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    launch_here(spec, tmp_path / "alone")
    expected = outcome(tmp_path / "alone", "nodes")
    for file in store.rglob("*.*"):
        key = f"data/{file.relative_to(store)}"
        s3.client().put_object(Bucket=s3.bucket, Key=key, Body=file.read_bytes())
    servers = {**servers, "SPTUNE_DATA": f"s3://{s3.bucket}/data"}

    with RayNodes(0, dashboard=False, **servers) as nodes:
        doomed, staying = nodes.add(1, hidden=None, **servers), nodes.add(1, hidden=None, **servers)
        env = {**servers, **nodes.env, "RAY_ADDRESS": nodes.address}
        examined = run_sptune("doctor", spec, home=home, **env)
        assert examined.returncode == 0, examined.stdout + examined.stderr
        assert "no errors." in examined.stdout
        with start_sptune("launch", spec, home=home, **env) as driver:
            said = read_until(driver, 2)
            # Each node has a trial. The one that stays is held, or the sweep would be over before the new node has one.
            while not (trials_at_work(doomed) and (waiting := trials_at_work(staying))):
                assert driver.poll() is None
                time.sleep(0.02)
            for worker in waiting:
                worker.suspend()
            nodes.kill(doomed)
            assert not doomed.processes()
            again = nodes.add(1, hidden=None, **servers)
            while not [*again.cache.glob("*.u8")]:
                assert driver.poll() is None
                time.sleep(0.1)
            for worker in waiting:
                worker.resume()
            assert driver.stdout is not None
            said += driver.stdout.read()
        assert driver.returncode == 0, said
        assert [*staying.cache.glob("*.u8")], "each node decodes into a folder of its own"
        logs = b"".join(file.read_bytes() for file in nodes.head.folder.rglob("*.log"))
        everything = [nodes.head, doomed, staying, again]
    for node in everything:
        assert not node.processes() and not node.folder.exists(), "a node leaves nothing behind"

    report = run_sptune("report", "nodes", "--format", "csv", home=home, **servers).stdout
    for name, value in (*servers.items(), *nodes.env.items()):
        monkeypatch.setenv(name, value)
    came = outcome_in_database(servers["SPTUNE_STUDIES"], "nodes")
    assert came == expected, "the numbers are those of one machine, whatever died"
    assert_mlflow_has(mlflow.uri, came, "nodes")

    # What is secret stands nowhere.
    with postgres.connect("sptune") as connection:
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        rows = "".join(str(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in tables)
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket)
    objects = [entry["Key"] for page in pages for entry in page["Contents"]]
    texts = [key for key in objects if key.endswith((".json", ".txt"))]
    kept = b"".join(s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read() for key in texts)
    secrets = [
        env[name] for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN")
    ]
    for secret in secrets:
        assert secret not in said + rows + report + examined.stdout
        assert secret.encode() not in kept + logs


def test_a_bucket_that_is_away_for_a_while_costs_a_trial_nothing_but_time(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client itself tries for some three seconds here, for forty otherwise.
    monkeypatch.setattr("trainer.storage.s3.SILENT_S", 1.0)
    monkeypatch.setattr("trainer.storage.s3.RETRIES", 2)
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

    class BackAtTheFirstRetry(logging.Handler):
        """Ends the outage once the trial has noticed it, however slow this machine is."""

        retries = 0

        def emit(self, record: logging.LogRecord) -> None:
            if "trying again in 1 s" in record.getMessage():
                self.retries += 1
                s3.resume()

    def away(epoch: int) -> None:
        if epoch == 2:
            s3.pause()

    handler = BackAtTheFirstRetry()
    logging.getLogger("trainer").addHandler(handler)
    try:
        # With an option that no other test has, the bucket is opened anew, with the patience above.
        interrupted = losses(f"s3://{s3.bucket}/away?region=eu-north-1", away)
    finally:
        logging.getLogger("trainer").removeHandler(handler)
        s3.resume()
    assert handler.retries, "it was away for longer than the client tries"
    assert interrupted == losses(str(tmp_path))


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is another one on the second node of `nodes`, where that can be."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def nodes(hidden: Path) -> Iterator[RayNodes]:
    """Two nodes."""
    with RayNodes() as nodes:
        nodes.add(1, hidden=None if RayNodes.why_not_hidden() else hidden)
        yield nodes


def test_sqlite_on_several_nodes_is_refused_with_the_way_out(nodes: RayNodes, tmp_path: Path) -> None:
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    launched = run_sptune("launch", "demo", home=tmp_path / "home", **env)
    assert launched.returncode == 2
    assert "the checks found 2 errors, so nothing was started:" in launched.stderr
    assert "studies.db is SQLite, a file of one machine, but the cluster has 2 nodes" in launched.stderr
    assert "Set SPTUNE_STUDIES or `cluster.studies` to postgresql+psycopg://USER@HOST/DATABASE." in launched.stderr
    assert "Set MLFLOW_TRACKING_URI or `cluster.mlflow` to a server: http://HOST:PORT." in launched.stderr
    assert "Traceback" not in launched.stderr


def test_a_folder_of_one_machine_is_refused_with_the_name_of_the_node_that_lacks_it(
    nodes: RayNodes, hidden: Path
) -> None:
    if reason := RayNodes.why_not_hidden():
        pytest.skip(reason)
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    launched = run_sptune("launch", "demo", home=hidden, **env)
    assert launched.returncode == 2
    assert (
        f"home: {hidden} is a local folder of that machine: it does not contain the file that the driver wrote"
        in launched.stderr
    )
    assert "Choose a folder that all nodes share, or a bucket: --home s3://BUCKET/FOLDER." in launched.stderr


def test_a_cluster_that_wants_another_token_is_one_sentence(nodes: RayNodes, tmp_path: Path) -> None:
    env = {**nodes.env, "RAY_AUTH_TOKEN": "0" * 64}
    refused = run_sptune("launch", "demo", "--address", nodes.address, home=tmp_path, **env)
    assert refused.returncode == 2, refused.stderr
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr


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


Refused = tuple[subprocess.CompletedProcess[str], float]


@pytest.fixture(scope="module")
def refusals(
    servers: dict[str, str], postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Refused]:
    """A launch with each wrong setting, and how long it took: four at the same time, as they wait more than they do."""
    url = postgres.url("").rstrip("/")

    def launch(wrong: dict[str, str]) -> Refused:
        env = {**servers, **{name: value.replace("{url}", url) for name, value in wrong.items()}}
        started = time.monotonic()
        launched = run_sptune("launch", "demo", "--inline", home=env.pop("SPTUNE_HOME"), **env)
        return launched, time.monotonic() - started

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(WRONG, pool.map(launch, [wrong for wrong, _ in WRONG.values()]), strict=True))


@pytest.mark.parametrize("what", WRONG)
def test_what_refuses_or_is_away_is_one_sentence_with_the_way_out(
    what: str, refusals: dict[str, Refused], servers: dict[str, str]
) -> None:
    _, sentence = WRONG[what]
    launched, seconds = refusals[what]
    assert launched.returncode == 2, launched.stdout
    assert sentence in launched.stderr
    assert len(launched.stderr.strip().splitlines()) <= 2, "one sentence"
    for secret in ("secret-", servers["PGPASSWORD"], servers["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in launched.stderr + launched.stdout
    assert seconds < 40


def test_a_cluster_that_is_not_there_is_one_sentence(sptune: Sptune, tmp_path: Path) -> None:
    code, _, complaint = sptune("launch", "demo", "--address", "127.0.0.1:1", "--home", tmp_path)
    assert (code, complaint.count("\n")) == (2, 1)
    assert "error: no Ray cluster at 127.0.0.1:1:" in complaint
    _, _, complaint = sptune("launch", "demo", "--address", "ray://127.0.0.1:10001", "--home", tmp_path)
    assert "ray://127.0.0.1:10001: a driver runs on a node of its cluster, not through Ray Client." in complaint
