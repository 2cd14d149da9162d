"""Whatever dies, and however often: in the end each trial was run once, with the results of an undisturbed sweep."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Failure, FailureCause
from tests.integration.processes import assert_mlflow_agrees, outcome, sptune, started, workers_of
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SPEC: dict[str, Any] = {
    "name": "crash",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep", "linear"],
    "train_sizes": [0.3],
    "fixed": {"epochs": 8, "warmup_epochs": 1},
    "space": {
        # One of the values diverges at once: a failing trial belongs to the picture.
        "lr": {"type": "choice", "values": [0.01, 0.02, 0.03, 0.05, 1e30]},
        "prompt_length": {"type": "choice", "values": [2, 4, 8]},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "max_pool"]},
    },
    "search": {"trials": 10, "max_concurrent": 2, "startup_trials": 4, "seed": 1,
               "pruner": {"type": "asha", "min_epochs": 2, "reduction": 2}},
    "final": {"seeds": [42, 44]},
}  # fmt: skip
LIGHT: dict[str, Any] = {
    **SPEC, "train_sizes": [0.2], "search": {**SPEC["search"], "trials": 8}, "final": {"seeds": [42]},
}  # fmt: skip
"""Enough for a single misfortune."""


def written(spec: dict[str, Any], folder: Path) -> Path:
    path = folder / "crash.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def undisturbed(spec: Path, home: Path) -> list[tuple[object, ...]]:
    """What a sweep comes to in one process without Ray."""
    done = sptune("launch", spec, "--inline", home=home)
    assert done.returncode == 0, done.stderr
    return outcome(home, "crash")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    return written(LIGHT, tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="module")
def expected(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    return undisturbed(spec, tmp_path_factory.mktemp("undisturbed"))


def database(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def wait_for(driver: subprocess.Popen[str], trials: int) -> None:
    """Read what a launch prints until so many trials are finished."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if (found := re.search(r"(\d+) of \d+ trials finished", line)) and int(found[1]) >= trials:
            return
    raise AssertionError("the launch ended before")


def kill(driver: subprocess.Popen[str], what: str) -> None:
    """`kill -9` of a worker, of the driver, or of both."""
    workers = workers_of(driver.pid)
    if what != "driver" and workers:
        workers[0].kill()
    if what != "worker":
        driver.kill()
        driver.wait()


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, store: Path) -> None:
    spec, home = written(SPEC, tmp_path), tmp_path / "home"
    chance, kills, done = random.Random(5), 0, False
    while not done:
        with started("launch", spec, home=home) as driver:
            assert driver.stdout is not None
            driver.stdout.readline()  # from here on it is at work
            while kills < 20 and driver.poll() is None:
                time.sleep(chance.uniform(0, 10))
                kill(driver, chance.choice(["worker", "driver", "both"]))
                kills += 1
            driver.stdout.read()
        done = driver.returncode == 0
    assert outcome(home, "crash") == undisturbed(spec, tmp_path / "undisturbed")
    assert_mlflow_agrees(database(home), home, "crash")
    assert kills == 20, "the sweep was over too soon to be disturbed"


class Server:
    """A real MLflow server process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database(self._folder)]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self._port)]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.5)
        raise AssertionError("the MLflow server does not start")

    def kill(self) -> None:
        """`kill -9` of it and its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_an_mlflow_server_that_is_away_for_a_while_has_every_epoch_in_the_end(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    try:
        with started("launch", spec, home=tmp_path, MLFLOW_TRACKING_URI=server.uri) as driver:
            wait_for(driver, 3)
            server.kill()
            wait_for(driver, 10)
            server.start()
            assert driver.stdout is not None
            rest = driver.stdout.read()
        assert driver.returncode == 0, rest
        assert "MLflow did not answer" not in rest
        assert outcome(tmp_path, "crash") == expected
        assert_mlflow_agrees(server.uri, tmp_path, "crash")
    finally:
        server.kill()


def test_databases_that_are_locked_for_a_while_have_every_epoch_in_the_end(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    with started("launch", spec, home=tmp_path) as driver:
        for finished, name in ((3, "mlflow.db"), (8, "studies.db")):
            wait_for(driver, finished)
            other = sqlite3.connect(tmp_path / name, timeout=60, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(12)
            other.execute("COMMIT")
            other.close()
        assert driver.stdout is not None
        rest = driver.stdout.read()
    assert driver.returncode == 0, rest
    assert outcome(tmp_path, "crash") == expected
    assert_mlflow_agrees(database(tmp_path), tmp_path, "crash")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Write until there is no space."""
    with file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(65536))


def test_a_disk_that_is_full_for_a_while_loses_no_epoch(
    spec: Path, expected: list[tuple[object, ...]], small_disk: Path
) -> None:
    home = small_disk / "home"
    with started("launch", spec, home=home) as driver:
        wait_for(driver, 3)
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "filler")
        time.sleep(12)
        (small_disk / "filler").unlink()
        assert driver.stdout is not None
        rest = driver.stdout.read()
    assert driver.returncode == 0, rest
    assert outcome(home, "crash") == expected
    assert_mlflow_agrees(database(home), home, "crash")


def test_a_trial_that_waits_for_a_full_disk_goes_when_it_is_told_to(store: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(small_disk / "filler")
    params = {"task": "demo/digits", "method": "linear", "backbone": SPEC["backbones"][0], "train_size": 0.1}
    config = TrainConfig.from_params(params)
    home = str(small_disk / "home")
    place = TrialContext(data_root=str(store), trials_folder=home, prototype_cache=home, weights=None, cpus=1, gpus=0)
    [lost] = run_trial(config, place, lambda: True)
    assert isinstance(lost, Failure)
    assert lost.cause is FailureCause.LOST
    assert "asked to stop while storage was away" in lost.error


def test_workers_that_are_told_to_go_or_fall_silent_are_replaced_and_their_trials_go_on(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    patient = tmp_path / "patient.yaml"
    patient.write_text(yaml.safe_dump({**LIGHT, "lost_after_minutes": 0.8}))
    with started("launch", patient, home=tmp_path) as driver:
        wait_for(driver, 2)
        for worker in workers_of(driver.pid):
            worker.terminate()
            worker.wait(timeout=60)  # within the grace time of a pod
        wait_for(driver, 8)
        workers_of(driver.pid)[0].suspend()
        assert driver.stdout is not None
        rest = driver.stdout.read()
    assert driver.returncode == 0, rest
    assert outcome(tmp_path, "crash") == expected
    assert_mlflow_agrees(database(tmp_path), tmp_path, "crash")
