"""The cluster of docker/compose.yaml at work: its command lines as they stand there, in namespaces for containers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.containers import Container, Network, why_not
from tests.docker.test_compose import secret_file, services
from tests.orchestrator.processes import sptune
from tests.services.postgres import Postgres

__all__ = ["secret_file"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPEC: dict[str, Any] = {
    "name": "composed",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep"],
    "train_sizes": [0.2],
    "fixed": {"epochs": 3, "warmup_epochs": 1, "prompt_length": 4},
    "space": {
        "lr": {"type": "choice", "values": [0.01, 0.02, 0.05]},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "max_pool"]},
    },
    "search": {"trials": 4, "max_concurrent": 2, "startup_trials": 2, "seed": 1},
    "final": {"seeds": [42]},
}
HOSTS_IN_MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("composed").experiment_id])
print(json.dumps(sorted({run.data.tags["host"] for run in runs if "trial_id" in run.data.tags})))
"""
NOT_OURS = {"s3": ["moto_server", "--host=0.0.0.0", "--port=9000"]}
"""MinIO is not to be had here; what stands in for it."""


@pytest.fixture(scope="module")
def rendered(secret_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The services, with a folder of specs that has the one above."""
    if reason := why_not() or Postgres.why_not():
        pytest.skip(reason)
    specs = tmp_path_factory.mktemp("specs")
    (specs / "composed.yaml").write_text(json.dumps(SPEC))
    secret_file.write_text(f"{secret_file.read_text()}SPTUNE_RUNTIME=runc\nSPTUNE_SPECS={specs}\n")
    return services(secret_file)


def start_postgres(container: Container) -> None:
    """What the entry point of PostgreSQL's image does with its environment and its folder of files."""
    env, data, password = container.env, container.folder / "data", container.folder / "password"
    env["PATH"] = f"{max(Path('/usr/lib/postgresql').glob('*/bin'))}:{env['PATH']}"
    password.write_text(env["POSTGRES_PASSWORD"])
    data.mkdir()
    for path in (container.folder, data, password):
        shutil.chown(path, "postgres")
    who = f"--username={env['POSTGRES_USER']}"
    how = ["--no-sync", "--auth=scram-sha-256", f"--pwfile={password}", "--locale=C.UTF-8", who, str(data)]
    succeed(container, "initdb", *how, user="postgres")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    settings = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={data}"]
    container.open("postgres", "-D", str(data), *settings, user="postgres")
    container.await_health()
    env["PGPASSWORD"] = env["POSTGRES_PASSWORD"]
    first = env["POSTGRES_DB"]
    succeed(container, "createdb", "--host=127.0.0.1", who, first)
    for file in container.files("/docker-entrypoint-initdb.d"):
        succeed(container, "psql", "--host=127.0.0.1", who, f"--file={file}", "--set=ON_ERROR_STOP=1", first)


def succeed(container: Container, *command: str, user: str | None = None) -> str:
    """What a command in a container prints."""
    done = container.run(*command, user=user)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{container.log}"
    return done.stdout


@pytest.fixture(scope="module")
def cluster(rendered: dict[str, Any]) -> Iterator[Network]:
    """All of the servers, in the order of their `depends_on`, each once what it waits for is well."""
    with Network(rendered) as network:
        start_postgres(network.container("postgres"))
        store = network.container("s3")
        store.open(*NOT_OURS["s3"])
        store.await_success("wget", "--quiet", "--output-document=-", "http://s3:9000/moto-api/")
        buckets = network.container("buckets")
        for _ in range(2):  # it finds what it made
            succeed(buckets, *buckets.command())
        mlflow, head = network.container("mlflow"), network.container("ray-head")
        mlflow.start()
        head.start()
        head.await_health()
        worker = network.container("worker")
        worker.start()
        worker.await_health()
        mlflow.await_health()
        yield network


def test_all_servers_of_the_file_are_started_here(rendered: dict[str, Any], cluster: Network) -> None:
    assert {*cluster.started} | {"sptune"} == {*rendered}


def test_a_sweep_comes_to_what_it_comes_to_on_one_machine(cluster: Network, tmp_path: Path) -> None:
    driver = cluster.container("sptune")
    said = succeed(driver, *driver.command("launch", "composed.yaml"))
    assert "5 of 5 trials finished" in said
    spec = tmp_path / "composed.yaml"
    spec.write_text(json.dumps(SPEC))
    alone = sptune("launch", spec, "--inline", home=tmp_path / "home")
    assert alone.returncode == 0, alone.stderr
    csv = ("report", "composed", "--format", "csv")
    assert succeed(driver, *driver.command(*csv)) == sptune(*csv, home=tmp_path / "home").stdout
    # Every trial ran on the worker, and MLflow has them, behind its password.
    machines = succeed(driver, "python", "-c", HOSTS_IN_MLFLOW)
    assert json.loads(machines) == ["worker"]
    refused = driver.run("wget", "--output-document=-", "http://mlflow:5000/api/2.0/mlflow/experiments/search")
    assert refused.returncode != 0 and "401" in refused.stderr


def test_the_doctor_finds_the_cluster_well(cluster: Network) -> None:
    driver = cluster.container("sptune")
    succeed(driver, *driver.command("doctor"))


def test_whoever_has_not_the_token_is_not_let_in(cluster: Network) -> None:
    stranger = cluster.container("sptune")
    stranger.env["RAY_AUTH_TOKEN"] = "0" * 48
    done = stranger.run(*stranger.command("doctor"))
    assert done.returncode == 1
    assert "token" in done.stderr.lower()
