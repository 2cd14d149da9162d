"""MLflow of homes that are moved and copied, servers whose answers get lost, and the page behind a proxy."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from orchestrator.tracking.mlflow_locations import local_path
from tests.integration.processes import SPTUNE, launch_here, outcome, run_sptune, runs_in_mlflow, sptune_here
from tests.services.service import free_port, ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEC: dict[str, Any] = {
    "name": "whole",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "fixed": {"epochs": 1, "warmup_epochs": 0, "batch_size": 64},
    "space": {"lr": {"type": "float", "low": 0.005, "high": 0.05, "log": True}},
    "search": {"trials": 1, "sampler": "random", "pruner": {"type": "none"}, "max_concurrent": 1},
    "final": {"seeds": [42]},
    "resources": {"cpus": 1},
}


def launch(home: Path, trials: int = 1, **env: str) -> None:
    spec = home.parent / f"{trials}.yaml"
    spec.write_text(yaml.safe_dump(SPEC | {"search": SPEC["search"] | {"trials": trials}}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        printed = launch_here(spec, home)
    assert "MLflow lacks" not in printed
    assert "View run" not in printed and "🏃" not in printed, "MLflow's own lines stay out of the progress"


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished sweep, for tests to copy."""
    home = tmp_path_factory.mktemp("finished") / "home"
    launch(home)
    return home


def assert_is_whole(home: Path) -> None:
    """MLflow of a home has every trial, and all artifacts inside this home."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    trials = {trial_id for _, _, _, trial_id, *_ in outcome(home, "whole")}
    assert runs_in_mlflow(uri, "whole").keys() == trials
    client = MlflowClient(tracking_uri=uri)
    for run in all_runs(client):
        assert Path(local_path(run.info.artifact_uri)).is_relative_to(home)
        assert client.list_artifacts(run.info.run_id), "and they are there"


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("whole")
    assert experiment is not None
    return [*client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)]


def test_a_home_that_is_moved_and_then_copied_continues_in_both_places(finished: Path, tmp_path: Path) -> None:
    first, moved, copied = tmp_path / "first", tmp_path / "a new place", tmp_path / "copy"
    shutil.copytree(finished, first)
    first.rename(moved)
    launch(moved, trials=2)
    assert not first.exists(), "nothing is written to the old place"
    assert_is_whole(moved)

    shutil.copytree(moved, copied)
    launch(copied, trials=3)
    launch(moved, trials=4)
    assert_is_whole(copied)
    assert_is_whole(moved)

    sptune_here("rm", "whole", "--yes", home=copied)
    assert_is_whole(moved)


class Deaf(BaseHTTPRequestHandler):
    """A proxy that loses the first answer to each request that creates something."""

    protocol_version = "HTTP/1.1"
    target = 0
    seen: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        skipped = ("host", "connection")
        headers = {name: text for name, text in self.headers.items() if name.lower() not in skipped}
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()

        path = self.path.partition("?")[0]
        if path.endswith("/create"):
            self.seen[path] += 1
            # A run is the only thing that a launch creates several of: every second answer is lost.
            if self.seen[path] == 1 or (path.endswith("/runs/create") and self.seen[path] % 2):
                self.close_connection = True
                return

        self.send_response(answer.status)
        for name, text in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward


@contextmanager
def served(*command: str, port: int, **env: str) -> Iterator[psutil.Process]:
    """A server of MLflow while it answers."""
    environment = {**os.environ, **env}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready_before = threading.Event()
        for _ in range(1200):
            if ready(f"http://127.0.0.1:{port}/health"):
                break
            assert server.poll() is None, "the server has ended"
            ready_before.wait(0.1)
        yield psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


def test_a_server_whose_answers_are_lost_gets_one_run_a_trial_and_one_version_a_model(
    store: Path, tmp_path: Path
) -> None:
    port, proxy_port = free_port(), free_port()
    database = f"sqlite:///{tmp_path / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "artifacts")]
    handler = type("Handler", (Deaf,), {"target": port, "seen": Counter()})
    # Without its job runner, which is seven more processes.
    quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with served(*command, port=port, **quick), ThreadingHTTPServer(("127.0.0.1", proxy_port), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{proxy_port}"
        launch(tmp_path / "home", MLFLOW_TRACKING_URI=uri)
        done = run_sptune("register", "whole", home=tmp_path / "home", MLFLOW_TRACKING_URI=uri)
        proxy.shutdown()
    assert done.returncode == 0, done.stderr
    client = MlflowClient(tracking_uri=database)
    assert [run.info.status for run in all_runs(client)] == ["FINISHED"] * 3, "a study, its trial, its final trial"
    (model,) = client.search_registered_models()
    assert [version.version for version in client.search_model_versions(f"name = '{model.name}'")] in (["1"], [1])


def test_the_page_answers_to_the_host_name_of_a_proxy_that_was_allowed(finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    port = free_port()

    def status(host: str) -> int:
        # The page searches with POST, which a foreign origin may not.
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 5}',
            headers={"Host": host, "Origin": f"https://{host}", "Content-Type": "application/json"},
        )
        try:
            return int(urllib.request.urlopen(request, timeout=60).status)
        except urllib.error.HTTPError as error:
            return error.code

    command = [
        SPTUNE,
        "ui",
        "--home",
        str(home),
        "--port",
        str(port),
        "--allowed-hosts",
        "https://hub.example.org/user/a",
    ]
    with served(*command, port=port) as server:
        hosts = ("hub.example.org", f"localhost:{port}", "other.example.org")
        assert [status(host) for host in hosts] == [200, 200, 403]
        taken = run_sptune("ui", "--port", str(port), home=home)
        below = [" ".join(process.cmdline()) for process in server.children(recursive=True)]
    assert below and not [command for command in below if "mlflow.server.jobs" in command], "it runs no jobs"
    assert (taken.returncode, "Traceback" in taken.stderr) == (2, False)
    assert f"port {port} is taken" in taken.stderr
