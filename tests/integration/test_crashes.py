"""Whatever dies, and however often: in the end each trial was run once, with the results of an undisturbed sweep."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Failure, FailureCause
from tests.integration.processes import (
    assert_mlflow_has,
    outcome,
    read_until,
    run_sptune,
    start_sptune,
    workers_of,
)
from tests.services import MlflowServer
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPEC: dict[str, Any] = {
    "name": "crash",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep", "linear"],
    "train_sizes": [0.2],
    "fixed": {"epochs": 6, "warmup_epochs": 1},
    "space": {
        # One of the values diverges at once: a failing trial belongs to the picture.
        "lr": {"type": "choice", "values": [0.01, 0.02, 0.03, 0.05, 1e30]},
        "prompt_length": {"type": "choice", "values": [2, 4, 8]},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "max_pool"]},
    },
    "search": {"trials": 8, "max_concurrent": 2, "startup_trials": 4, "seed": 1,
               "pruner": {"type": "asha", "min_epochs": 2, "reduction": 2}},
    "final": {"seeds": [42]},
}  # fmt: skip
NUM_TRIALS = 18


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "crash.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    return written(tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="module")
def expected(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """What the sweep comes to in one process without Ray."""
    home = tmp_path_factory.mktemp("undisturbed")
    done = run_sptune("launch", spec, "--inline", home=home)
    assert done.returncode == 0, done.stderr
    found = outcome(home, "crash")
    assert len(found) == NUM_TRIALS
    assert {entry[5].value for entry in found} == {"complete", "pruned", "failed"}  # type: ignore[attr-defined]
    return found


def database(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def rest_of(driver: subprocess.Popen[str]) -> str:
    """What a launch prints until it ends."""
    assert driver.stdout is not None
    return driver.stdout.read()


def kill(driver: subprocess.Popen[str], victim: str) -> None:
    """`kill -9` of a worker, of the driver, or of both."""
    workers = workers_of(driver.pid)
    if victim != "driver" and workers:
        workers[0].kill()
    if victim != "worker":
        driver.kill()
        driver.wait()


# That a death after any epoch changes nothing is tested without processes (test_sweep.py, test_replay.py, and for the
# bits of a trial test_loop.py). Here each kind of death comes at some moment of a second that follows a finished trial,
# and while Ray and its workers start.
DEATHS = [(0, "driver"), (0, "both"), (2, "worker"), (5, "driver"), (8, "worker"), (10, "both"), (13, "worker")]


def test_kills_at_random_moments_change_nothing(spec: Path, expected: list[tuple[object, ...]], tmp_path: Path) -> None:
    chance = random.Random(5)
    deaths = iter(DEATHS)
    ended = False
    while not ended:
        with start_sptune("launch", spec, home=tmp_path) as driver:
            for num_finished, victim in deaths:
                read_until(driver, num_finished)
                time.sleep(chance.uniform(0, 4))
                kill(driver, victim)
                if victim != "worker":
                    break
            rest = rest_of(driver)
        ended = driver.returncode == 0
        assert ended or driver.returncode == -9, rest
    assert next(deaths, None) is None, "the sweep was over too soon to be disturbed"
    assert outcome(tmp_path, "crash") == expected
    assert_mlflow_has(database(tmp_path), expected, "crash")


def test_servers_and_workers_that_go_for_a_while_or_fall_silent_cost_no_epoch(
    expected: list[tuple[object, ...]], store: Path, open_mlflow: MlflowServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    patient = written(tmp_path, lost_after_minutes=0.5)
    with start_sptune("launch", patient, home=tmp_path, **open_mlflow.env) as driver:
        read_until(driver, 2)
        open_mlflow.kill()

        # Workers that are told to go leave within the grace time of a pod.
        read_until(driver, 4)
        for worker in workers_of(driver.pid):
            worker.terminate()
            worker.wait(timeout=60)
        read_until(driver, 8)
        open_mlflow.start()

        read_until(driver, 11)
        workers_of(driver.pid)[0].suspend()
        rest = rest_of(driver)
    assert driver.returncode == 0, rest
    assert "MLflow did not answer" not in rest
    assert outcome(tmp_path, "crash") == expected
    for name, value in open_mlflow.env.items():
        monkeypatch.setenv(name, value)
    assert_mlflow_has(open_mlflow.uri, expected, "crash")


@contextmanager
def mounted(folder: Path) -> Iterator[str | None]:
    """A disk of 60 MB at a folder, while in it; or why there can be none here."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield f"a small disk needs the right to mount one: {done.stderr.strip()}"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until there is no space."""
    with file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(65536))


def lock(file: Path, seconds: float) -> None:
    """Keep everyone else from writing to a database, for longer than MLflow's own five seconds of patience."""
    other = sqlite3.connect(file, timeout=60, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    other.execute("COMMIT")
    other.close()


def test_databases_that_are_locked_and_a_disk_that_is_full_for_a_while_cost_no_epoch(
    spec: Path, expected: list[tuple[object, ...]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    home = disk / "home"
    with mounted(disk) as why_not, start_sptune("launch", spec, home=home) as driver:
        read_until(driver, 3)
        lock(home / "mlflow.db", seconds=8)
        read_until(driver, 6)
        lock(home / "studies.db", seconds=8)
        read_until(driver, 9)
        if why_not is None:
            with pytest.raises(OSError, match="No space left"):
                fill(disk / "filler")
            time.sleep(5)
            (disk / "filler").unlink()
        rest = rest_of(driver)
        assert driver.wait() == 0, rest
        assert outcome(home, "crash") == expected
        assert_mlflow_has(database(home), expected, "crash")
    if why_not is not None:
        pytest.skip(f"all but the full disk was seen: {why_not}")


def test_a_trial_that_waits_for_a_full_disk_goes_when_it_is_told_to(store: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk) as why_not:
        if why_not is not None:
            pytest.skip(why_not)
        with pytest.raises(OSError, match="No space left"):
            fill(disk / "filler")
        params = {"task": "demo/digits", "method": "linear", "backbone": SPEC["backbones"][0], "train_size": 0.1}
        home = str(disk / "home")
        context = TrialContext(
            data_root=str(store), trials_folder=home, prototype_cache=home, weights=None, cpus=1, gpus=0
        )
        [lost] = run_trial(TrainConfig.from_params(params), context, lambda: True)
        assert isinstance(lost, Failure)
        assert lost.cause is FailureCause.LOST
        assert "asked to stop while storage was away" in lost.error
