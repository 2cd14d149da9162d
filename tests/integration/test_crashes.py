"""Whatever dies, and however often: in the end each trial was run once, with the results of an undisturbed sweep."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.study.trial import Failure, FailureCause, TrialState
from tests.integration.processes import (
    assert_mlflow_has,
    is_at_work,
    launch_here,
    outcome,
    printed_table,
    read_until,
    runs_in_mlflow,
    sptune_here,
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
    "train_sizes": [0.05],
    "fixed": {"epochs": 6, "warmup_epochs": 1, "batch_size": 16},
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
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that ran in one piece, in one process without Ray, and its table."""
    home = tmp_path_factory.mktemp("undisturbed")
    return home, printed_table(launch_here(spec, home))


@pytest.fixture(scope="module")
def expected(undisturbed: tuple[Path, str]) -> list[tuple[object, ...]]:
    """What the sweep comes to."""
    found = outcome(undisturbed[0], "crash")
    assert len(found) == NUM_TRIALS
    assert {entry[5].value for entry in found} == {"complete", "pruned", "failed"}  # type: ignore[attr-defined]
    return found


def database(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def rest_of(driver: subprocess.Popen[str]) -> str:
    """What a launch prints until it ends."""
    assert driver.stdout is not None
    return driver.stdout.read()


def worker_at_work(driver: subprocess.Popen[str]) -> psutil.Process:
    """Wait for a worker that trains, and return it. Ray gives no handle of one that starts, by which to disturb it."""
    while not (workers := [each for each in workers_of(driver.pid) if is_at_work(each)]):
        assert driver.poll() is None, "the sweep was over before a worker was seen at work"
        time.sleep(0.01)
    return workers[0]


def kill(driver: subprocess.Popen[str], victim: str) -> None:
    """`kill -9` of a worker, of the driver, or of the driver and a worker if there is one yet."""
    if victim == "worker":
        worker_at_work(driver).kill()
        return
    if victim == "both":
        for worker in workers_of(driver.pid)[:1]:
            worker.kill()
    driver.kill()
    driver.wait()


@contextmanager
def suspended(driver: subprocess.Popen[str]) -> Iterator[None]:
    """Let a driver do nothing in this context, while its Ray and its workers go on."""
    driver.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        driver.send_signal(signal.SIGCONT)


# That a death after any epoch changes nothing is tested without processes (test_sweep.py, test_replay.py, and for the
# bits of a trial test_loop.py). Here each kind of death comes at some moment of a second that follows a finished trial,
# and while Ray and its workers start.
DEATHS = [(0, "both"), (2, "worker"), (5, "driver"), (9, "worker"), (12, "both")]


def test_kills_at_random_moments_change_nothing(spec: Path, expected: list[tuple[object, ...]], tmp_path: Path) -> None:
    chance = random.Random(5)
    deaths = iter(DEATHS)
    ended = False
    while not ended:
        with start_sptune("launch", spec, home=tmp_path) as driver:
            for num_finished, victim in deaths:
                read_until(driver, num_finished)
                time.sleep(chance.uniform(0, 1))
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

        # A worker that is told to go leaves within the grace time of a pod. If the driver gave the other one trials
        # meanwhile, that one could end the sweep.
        worker = worker_at_work(driver)
        with suspended(driver):
            worker.terminate()
            worker.wait(timeout=60)

        # A worker falls silent before the server is back: its start may take as long as all that is left of the sweep.
        worker_at_work(driver).suspend()
        open_mlflow.start()
        rest = rest_of(driver)
    assert driver.returncode == 0, rest
    assert "MLflow did not answer" not in rest
    assert outcome(tmp_path, "crash") == expected
    for name, value in open_mlflow.env.items():
        monkeypatch.setenv(name, value)
    assert_mlflow_has(open_mlflow.uri, expected, "crash")


@dataclasses.dataclass
class Seen:
    """A driver's end, and what the databases held after it."""

    returncode: int
    output: str
    states: list[object]
    statuses: set[str]
    """Of the trials' runs in MLflow."""
    shown: str
    """By `sptune status`."""


def seen_after(driver: subprocess.Popen[str], output: str, home: Path) -> Seen:
    statuses = {status for status, *_ in runs_in_mlflow(f"sqlite:///{home / 'mlflow.db'}", "crash").values()}
    shown = sptune_here("status", "crash", home=home)
    return Seen(driver.returncode, output, [entry[5] for entry in outcome(home, "crash")], statuses, shown)


@dataclasses.dataclass
class Interrupted:
    """A sweep through Ray: stopped at once, stopped after saving, killed, and then left alone until its end."""

    home: Path
    at_once: Seen
    saved: Seen
    table: str
    """That of the launch that came to the end."""


@pytest.fixture(scope="module")
def interrupted(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    home = tmp_path_factory.mktemp("interrupted")

    # Ctrl-C twice, while Ray's workers start.
    with start_sptune("launch", spec, home=home) as driver:
        output = read_until(driver, 0)
        assert driver.stdout is not None
        for _ in range(2):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.2)
        output += driver.stdout.read()
    at_once = seen_after(driver, output, home)

    # Ctrl-C once, as a terminal does it: everything that was started hears it.
    with start_sptune("resume", "crash", home=home) as driver:
        read_until(driver, 1)
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.stdout is not None
        output = driver.stdout.read()
    saved = seen_after(driver, output, home)

    with start_sptune("resume", "crash", home=home) as driver:
        read_until(driver, 5)
        driver.kill()

    # What Ray began, a driver without Ray ends.
    finished = launch_here(spec, home)
    first = re.search(r"crash: (\d+) of 18 trials finished", finished)
    assert first is not None and int(first[1]) >= 5, "what was finished stayed finished"
    return Interrupted(home, at_once, saved, printed_table(finished))


def test_a_sweep_that_was_stopped_and_killed_comes_to_what_an_undisturbed_one_comes_to(
    interrupted: Interrupted, undisturbed: tuple[Path, str], expected: list[tuple[object, ...]]
) -> None:
    assert interrupted.table == undisturbed[1]
    assert outcome(interrupted.home, "crash") == expected


def test_ctrl_c_once_saves_what_runs(interrupted: Interrupted) -> None:
    saved = interrupted.saved
    assert saved.returncode == 130, saved.output
    assert "stopping after the current epoch of each trial; press Ctrl-C again to stop immediately" in saved.output
    assert f"stopped by SIGINT. Run `sptune resume crash --home {interrupted.home}` to continue." in saved.output
    assert "Traceback" not in saved.output
    assert TrialState.RUNNING not in saved.states
    assert "RUNNING" not in saved.statuses
    assert "stopped by SIGINT" in saved.shown


def test_ctrl_c_twice_stops_at_once(interrupted: Interrupted) -> None:
    at_once = interrupted.at_once
    assert at_once.returncode == 130, at_once.output
    command = f"sptune resume crash --home {interrupted.home}"
    assert f"stopped. Run `{command}` to continue from the last finished epochs." in at_once.output
    assert "Traceback" not in at_once.output
    assert TrialState.RUNNING not in at_once.states


def test_no_trial_runs_twice_and_none_has_two_runs(
    interrupted: Interrupted, expected: list[tuple[object, ...]]
) -> None:
    assert_mlflow_has(database(interrupted.home), expected, "crash")
    client = MlflowClient(tracking_uri=database(interrupted.home))
    experiment = client.get_experiment_by_name("crash")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}, "none is left running"


def test_the_database_says_how_each_driver_ended(interrupted: Interrupted) -> None:
    url = f"sqlite:///{interrupted.home / 'studies.db'}"
    drivers = optuna.load_study(study_name="crash", storage=url).trials
    ends = [driver.state.name for driver in drivers]
    assert ends == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"], "two were stopped, one was killed, one came to the end"


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
