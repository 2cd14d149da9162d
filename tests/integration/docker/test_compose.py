"""docker/compose.yaml, as docker-compose reads it."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.docker.files import BIN, DOCKER, ROOT, await_true, calls, documents, need, shell, stand_ins

SECRETS = re.findall(r"^([A-Z0-9_]+)=$", (DOCKER / "example.env").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docker/.env, made elsewhere by the command that docker/example.env gives."""
    file = tmp_path_factory.mktemp("secrets") / "cluster.env"
    command = re.search(r"^# +(\(umask .+\))$", (DOCKER / "example.env").read_text(), flags=re.MULTILINE)
    assert command is not None
    done = shell(command[1].replace("> docker/.env", f"> {file}"), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return file


def composed(env_file: Path) -> subprocess.CompletedProcess[str]:
    """What docker-compose makes of the file."""
    command = [need("docker-compose", "docker-compose"), f"--env-file={env_file}", f"--file={DOCKER / 'compose.yaml'}"]
    return subprocess.run([*command, "config"], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"})


def services(env_file: Path) -> dict[str, Any]:
    """The services as they would run."""
    done = composed(env_file)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


def test_the_command_of_the_example_fills_each_secret_with_another_and_nobody_else_may_read_them(
    secret_file: Path,
) -> None:
    values = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", secret_file.read_text(), flags=re.MULTILINE))
    assert [*values] == SECRETS
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values.values())
    assert len({*values.values()}) == len(SECRETS)
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    ignored = subprocess.run(["git", "check-ignore", "docker/.env", "docker/driver.env", "docker/private/auth_token"],
                             cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert len(ignored.stdout.split()) == 3, "git sees none of the files with secrets"


@pytest.mark.parametrize(("missing", "how"), [*((name, "empty") for name in SECRETS), (SECRETS[0], "absent")])
def test_nothing_starts_without_each_of_its_secrets(secret_file: Path, tmp_path: Path, missing: str, how: str) -> None:
    file = tmp_path / "cluster.env"
    instead = f"{missing}=" if how == "empty" else ""
    file.write_text(re.sub(rf"(?m)^{missing}=.*$", instead, secret_file.read_text()))
    done = composed(file)
    assert done.returncode != 0
    assert f"{missing}:?" in done.stderr and "docker/example.env says how to fill it" in done.stderr


def test_a_port_is_open_to_this_machine_alone_unless_asked(secret_file: Path, tmp_path: Path) -> None:
    def published(file: Path) -> list[str]:
        return sorted(port for service in services(file).values() for port in service.get("ports", []))

    assert published(secret_file) == ["127.0.0.1:5000:5000/tcp", "127.0.0.1:8265:8265/tcp"]
    asked = tmp_path / "cluster.env"
    asked.write_text(f"{secret_file.read_text()}\nSPTUNE_BIND=0.0.0.0\nMLFLOW_PORT=5001\n")
    assert published(asked) == ["0.0.0.0:5001:5000/tcp", "0.0.0.0:8265:8265/tcp"]


def test_no_password_is_written_down() -> None:
    [raw] = documents("compose.yaml")
    environments = [service["environment"] for service in raw["services"].values() if "environment" in service]
    secret = {
        name: value
        for environment in environments
        for name, value in environment.items()
        if re.search("PASSWORD|TOKEN|SECRET", name)
    }
    assert {re.sub(r"\$\{(\w+):\?.+\}", r"\1", value) for value in secret.values()} == {*SECRETS}
    addresses = [value for environment in environments for value in environment.values() if "://" in value]
    assert addresses and not [value for value in addresses if re.search(r"//[^/]*:[^/]*@", value)]


def test_each_service_has_the_secrets_that_it_needs_and_no_other(secret_file: Path) -> None:
    values = dict(re.findall(r"^([A-Z0-9_]+)=(\w+)$", secret_file.read_text(), flags=re.MULTILINE))
    held = {
        name: {key for key, value in values.items() if value in service.get("environment", {}).values()}
        for name, service in services(secret_file).items()
    }
    assert held == {
        "postgres": {"POSTGRES_PASSWORD"},
        "s3": {"S3_PASSWORD"},
        "buckets": {"S3_PASSWORD"},
        "mlflow": {"POSTGRES_PASSWORD", "S3_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"},
        "ray-head": {"S3_PASSWORD", "RAY_AUTH_TOKEN"},
        "worker": {"S3_PASSWORD", "RAY_AUTH_TOKEN"},
        "sptune": {"POSTGRES_PASSWORD", "S3_PASSWORD", "MLFLOW_PASSWORD", "RAY_AUTH_TOKEN"},
    }


def test_every_image_is_ours_or_pinned_and_every_server_says_how_it_is(secret_file: Path) -> None:
    for name, service in services(secret_file).items():
        if "build" not in service:
            assert re.search(r":.*\d+[.-]\d+.*@sha256:[0-9a-f]{64}$", service["image"]), f"{name}: which version?"
        once = service["restart"] == "no" if "restart" in service else False
        assert service["healthcheck"]["test"] != ["NONE"] or once, name
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in ("service_healthy", "service_completed_successfully"), (name, other)


def test_of_the_stores_ports_only_the_one_that_asks_for_a_key_is_open_to_other_services(secret_file: Path) -> None:
    store = services(secret_file)["s3"]
    options = dict(re.findall(r"-([\w.]+)=(\S+)", " ".join(store["command"])))
    assert options["ip"] == options["ip.bind"] == "127.0.0.1"
    assert (options["s3.ip.bind"], options["s3.port"]) == ("0.0.0.0", "9000")
    assert options["s3.port.iceberg"] == options["s3.port.lance"] == "0"
    # With a key in its environment it answers nobody without it.
    assert store["environment"]["AWS_SECRET_ACCESS_KEY"] and "ports" not in store


def test_a_worker_has_gpus_unless_there_are_none(secret_file: Path, tmp_path: Path) -> None:
    worker = services(secret_file)["worker"]
    assert worker["runtime"] == "nvidia" and worker["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    without = tmp_path / "cluster.env"
    without.write_text(f"{secret_file.read_text()}\nSPTUNE_RUNTIME=runc\n")
    assert services(without)["worker"]["runtime"] == "runc"


def test_every_variable_of_the_file_stands_in_the_example() -> None:
    used = {*re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text())}
    assert used == {*re.findall(r"^#?([A-Z0-9_]+)=", (DOCKER / "example.env").read_text(), flags=re.MULTILINE)}


def test_what_the_example_calls_a_default_is_one() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", (DOCKER / "compose.yaml").read_text()))
    example = dict(re.findall(r"^#([A-Z0-9_]+)=(.+)$", (DOCKER / "example.env").read_text(), flags=re.MULTILINE))
    for name in ("MLFLOW_PORT", "RAY_DASHBOARD_PORT", "SPTUNE_SHM", "SPTUNE_IMAGE"):
        assert example[name] == defaults[name]


def test_the_databases_of_the_addresses_are_made(secret_file: Path) -> None:
    rendered = services(secret_file)
    everything = yaml.safe_dump(rendered) + (DOCKER / "mlflow.ini").read_text()
    named = {*re.findall(r"postgresql\+psycopg://sptune@postgres:5432/(\w+)", everything)}
    made = {*re.findall(r"CREATE DATABASE (\w+);", (DOCKER / "databases.sql").read_text())}
    assert named == made | {rendered["postgres"]["environment"]["POSTGRES_DB"]}


JOIN = DOCKER / "join.sh"
STAND_INS = {
    "ray": """echo "ray $*" >> "$CALLS"; exit "$RAY_STATUS" """,
    "sptune": """
        echo "sptune $* ${RAY_ADDRESS-nowhere}" >> "$CALLS"
        trap 'echo interrupted >> "$CALLS"; exit 130' INT
        [[ ! $LONG ]] || for _ in {1..100}; do sleep 0.1; done
        exit "$STATUS" """,
}
JOINED = "ray start --address=ray-head:6379 --num-cpus=0 --num-gpus=0"


def join(folder: Path, *arguments: str, **told: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The container's command with stand-ins for `ray` and `sptune`, and the environment of its calls."""
    defaults = {"HEAD": "ray-head:6379", "TMPDIR": str(folder), "RAY_STATUS": "0", "LONG": "", "STATUS": "0"}
    env = {**stand_ins(folder, STAND_INS), **defaults, **told}
    env.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        ["bash", JOIN, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ), env


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([BIN / "shellcheck", JOIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("status", ["0", "1", "2", "3", "130"])
def test_a_driver_joins_ray_and_leaves_it_and_its_status_is_the_containers(tmp_path: Path, status: str) -> None:
    process, env = join(tmp_path, "launch", "a spec.yaml", STATUS=status)
    process.communicate(timeout=60)
    assert process.returncode == int(status)
    assert calls(env) == [JOINED, "sptune launch a spec.yaml auto", "ray stop"]


def test_what_needs_no_ray_does_not_wait_for_it(tmp_path: Path) -> None:
    process, env = join(tmp_path, "status", "demo", STATUS="2")
    process.communicate(timeout=60)
    assert (process.returncode, calls(env)) == (2, ["sptune status demo nowhere"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_container_that_is_stopped_interrupts_the_sweep_once_and_waits_for_it(tmp_path: Path, number: int) -> None:
    process, env = join(tmp_path, "launch", "demo", LONG="yes")
    await_true(lambda: len(calls(env)) == 2, process)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert calls(env) == [JOINED, "sptune launch demo auto", "interrupted", "ray stop"]


def test_ctrl_c_in_a_terminal_interrupts_the_sweep_once(tmp_path: Path) -> None:
    need("script", "bsdutils")
    env = {**stand_ins(tmp_path, STAND_INS), "HEAD": "ray-head:6379", "TMPDIR": str(tmp_path)}
    env |= {"RAY_STATUS": "0", "LONG": "yes", "STATUS": "0"}
    in_a_terminal = ["script", "--quiet", "--return", f"--command=bash {JOIN} launch demo", "/dev/null"]
    with subprocess.Popen(
        in_a_terminal, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        await_true(lambda: len(calls(env)) == 2, process)
        time.sleep(0.3)
        assert process.stdin is not None
        process.stdin.write("\x03")
        process.stdin.flush()
        assert process.wait(timeout=60) == 130
    assert calls(env) == [JOINED, "sptune launch demo auto", "interrupted", "ray stop"]


def test_where_ray_refuses_a_driver_it_is_told_why(tmp_path: Path) -> None:
    process, env = join(tmp_path, "launch", "demo", RAY_STATUS="1")
    process.communicate(timeout=60)
    assert (process.returncode, calls(env)) == (1, [JOINED])
