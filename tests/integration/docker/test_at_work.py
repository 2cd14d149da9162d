"""Clusters of docker/ at work: the command lines of the files as they stand there, in namespaces for containers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config

from tests.integration.docker.containers import Container, Network, why_not
from tests.integration.docker.files import DOCKER, documents
from tests.integration.docker.test_compose import secret_file, services
from tests.integration.docker.test_kuberay import PRE_STOP
from tests.integration.processes import launch_here, sptune_here
from tests.services.postgres import Postgres

__all__ = ["secret_file"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPEC: dict[str, Any] = {
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep"],
    "train_sizes": [0.05],
    "fixed": {"epochs": 4, "warmup_epochs": 1, "prompt_length": 4, "batch_size": 16},
    "space": {
        "lr": {"type": "float", "low": 0.01, "high": 0.05},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "max_pool"]},
    },
    "search": {"trials": 5, "max_concurrent": 2, "startup_trials": 2, "seed": 1},
    "final": {"seeds": [42]},
}
MACHINES_IN_MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("composed").experiment_id])
print(json.dumps(sorted({run.data.tags["host"] for run in runs if "trial_id" in run.data.tags})))
"""
STAND_INS = {"s3": ["moto_server", "--host=0.0.0.0", "--port=9000"]}
"""For what is not to be had here: SeaweedFS."""
LAUNCHER = documents("ray-cluster.yaml")[0]
TYPED = re.findall(r"^#   ray exec docker/ray-cluster.yaml '(.+)'$", (DOCKER / "ray-cluster.yaml").read_text(), re.M)
"""The commands that a user has the head run."""


@pytest.fixture(scope="module")
def rendered(secret_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The services, with a folder of specs that has the one above."""
    if reason := why_not() or Postgres.why_not():
        pytest.skip(reason)
    specs = tmp_path_factory.mktemp("specs")
    (specs / "composed.yaml").write_text(json.dumps({"name": "composed", **SPEC}))
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
def network(rendered: dict[str, Any]) -> Iterator[Network]:
    """The servers of docker/compose.yaml, in the order of their `depends_on`, each once what it waits for is well."""
    with Network(rendered) as network:
        start_postgres(network.container("postgres"))
        store = network.container("s3")
        store.open(*STAND_INS["s3"])
        store.await_success("wget", "--quiet", "--output-document=-", "http://s3:9000/moto-api/")
        buckets = network.container("buckets")
        for _ in range(2):  # it finds what it made
            succeed(buckets, *buckets.command())
        network.container("mlflow").start()
        network.container("ray-head").start()
        network.container("ray-head").await_health()
        network.container("worker").start()
        network.container("worker").await_health()
        network.container("mlflow").await_health()
        yield network


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of the sweep on one machine, without any of it."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "spec.yaml").write_text(json.dumps({"name": "alone", **SPEC}))
    launch_here(folder / "spec.yaml", folder / "home")
    return sptune_here("report", "alone", "--format", "csv", home=folder / "home")


def test_a_sweep_whose_worker_has_to_go_comes_to_what_it_comes_to_on_one_machine(network: Network, alone: str) -> None:
    """The worker goes as a pod of docker/kuberay.yaml does, and another comes."""
    driver, worker = network.container("sptune"), network.container("worker")
    launch = driver.open(*driver.command("launch", "composed.yaml"))
    await_words(launch, driver, r"[1-9] of 6 trials finished")
    trial = re.findall(r"'(\^ray::\w+)'", PRE_STOP[2])[0]
    assert worker.run_among("pgrep", "--full", trial).returncode == 0, "no trial goes by this name"
    gone = worker.run_among(*PRE_STOP)
    assert gone.returncode == 0, gone.stderr
    worker.terminate()
    other = network.add("other-worker", worker.service)
    other.start()
    await_words(launch, driver, "6 of 6 trials finished")
    assert launch.wait(timeout=60) == 0, driver.log
    assert succeed(driver, *driver.command("report", "composed", "--format", "csv")) == alone
    # Trials ran on the workers alone, and MLflow has them, behind its password.
    machines = succeed(driver, "python", "-c", MACHINES_IN_MLFLOW)
    assert json.loads(machines) == ["other-worker", "worker"]
    refused = driver.run("wget", "--output-document=-", "http://mlflow:5000/api/2.0/mlflow/experiments/search")
    assert refused.returncode != 0 and "401" in refused.stderr


def await_words(process: subprocess.Popen[bytes], container: Container, words: str) -> None:
    """Wait until a process has printed them; a slow machine takes minutes to its first trial."""
    for _ in range(2000):
        if re.search(words, container.log):
            return
        assert process.poll() in (None, 0), container.log
        time.sleep(0.2)
    raise AssertionError(f"{words!r} does not come:\n{container.log}")


def test_the_doctor_finds_the_cluster_well(network: Network) -> None:
    driver = network.container("sptune")
    said = succeed(driver, *driver.command("doctor"))
    assert "other-worker" in said


def test_mlflow_s_server_runs_no_jobs(network: Network) -> None:
    commands = [" ".join(process.cmdline()) for process in network.container("mlflow").processes()]
    assert any("mlflow" in command for command in commands)
    assert not [command for command in commands if "mlflow.server.jobs" in command]


def test_whoever_has_not_the_token_is_not_let_in(network: Network) -> None:
    stranger = network.container("ray-head")
    stranger.env["RAY_AUTH_TOKEN"] = "0" * 48
    refused = stranger.run("ray", "job", "list", "--address=http://ray-head:8265")
    assert refused.returncode != 0 and "token" in refused.stderr


def machine(network: Network, name: str, **environment: str) -> Container:
    """A machine as Ray's launcher leaves it: the image with the options of the file, and the files that it brings."""
    options = dict(re.findall(r"^--env=(\w+)=(\w+)$", "\n".join(LAUNCHER["docker"]["run_options"]), flags=re.MULTILINE))
    keys = network.container("worker").service["environment"]
    role = {key: value for key, value in keys.items() if key.startswith("AWS_")}
    container = network.add(name, {"build": {}, "environment": {**options, **role, **environment}})
    container.open("sleep", "infinity")
    home = Path(container.env["HOME"])
    [token_folder] = LAUNCHER["file_mounts"]
    (home / token_folder.removeprefix("~/")).mkdir()
    (home / token_folder.removeprefix("~/") / "auth_token").write_text("5" * 64)
    return container


def test_the_clusters_of_rays_launcher_run_a_sweep_by_the_commands_of_the_file(network: Network, alone: str) -> None:
    head = machine(network, "launched-head")
    home = Path(head.env["HOME"])
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(prepare_config(LAUNCHER)))
    (home / "my_spec.yaml").write_text(json.dumps({"name": "launched", **SPEC}))
    settings = {**network.container("sptune").service["environment"], "SPTUNE_HOME": "s3://sptune/launched"}
    for name in ("HEAD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        settings.pop(name)
    (home / "driver.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    for command in LAUNCHER["head_start_ray_commands"]:
        assert (done := head.run_among("bash", "-c", command)).returncode == 0, done.stderr
    worker = machine(network, "launched-worker", RAY_HEAD_IP=network.addresses["launched-head"])
    for command in LAUNCHER["worker_start_ray_commands"]:
        assert (done := worker.run_among("bash", "-c", command)).returncode == 0, done.stderr
    submit, follow = TYPED
    assert (done := head.run_among("bash", "-c", submit)).returncode == 0, done.stderr
    followed = head.run_among("bash", "-c", follow)
    assert "6 of 6 trials finished" in followed.stdout, followed.stdout + followed.stderr
    read = "set -a; . ~/driver.env; exec sptune report launched --format csv"
    assert head.run_among("bash", "-c", read).stdout == alone
