"""Sweeps as processes of their own: started, read, killed, and compared by what the databases hold."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.sqlite_url import sqlite_url
from orchestrator.study.study import Study, load_studies
from tests.orchestrator.conftest import exit_status

SPTUNE = str(Path(sys.executable).with_name("sptune"))
CLOCKS = ("train/images_per_s", "prototypes/seconds", "epoch/seconds", "memory/peak_gb")
"""Metrics that no two runs have in common."""


def run_sptune(*arguments: str | Path, home: Path | str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [SPTUNE, *map(str, arguments), "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=560, env={**os.environ, **env})


def sptune_here(*arguments: str | Path, home: Path | str, **env: str) -> str:
    """Run the command in this process, which has loaded all libraries, and return what is printed.

    Asserts that it ends well.
    """
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        # As wide as in a process that writes to a pipe.
        patch.setenv("COLUMNS", "80")
        for name, value in env.items():
            patch.setenv(name, value)
        ended = exit_status(patch, *arguments, "--home", str(home))
    assert ended == 0, printed.getvalue()
    return printed.getvalue()


def launch_here(spec: Path, home: Path | str, **env: str) -> str:
    """Launch a sweep inline in this process, and return what is printed."""
    return sptune_here("launch", spec, "--inline", home=home, **env)


class Driver(subprocess.Popen[str]):
    """A driver that ends with its `with` block, at once if an assertion fails in it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Popen itself waits for the end of the process, and a sweep may take hours.
        if kind is not None and self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)


def start_sptune(*arguments: str | Path, home: Path | str, **env: str) -> Driver:
    """Start the command in a process group of its own, with stderr in stdout."""
    # A shell starts background jobs with SIGINT ignored, and children inherit that. This process must hear Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return Driver(
            [SPTUNE, *map(str, arguments), "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **env},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def read_until(driver: subprocess.Popen[str], num_finished: int) -> str:
    """Read what a launch prints until so many of its trials are finished, and return it."""
    assert driver.stdout is not None
    output = ""
    for line in driver.stdout:
        output += line
        progress = re.search(r"(\d+) of \d+ trials finished", line)
        if progress and int(progress[1]) >= num_finished:
            return output
    raise AssertionError(f"the launch ended before:\n{output}")


def printed_table(output: str) -> str:
    """Return the result that a launch prints, without progress and without the commit, which may change meanwhile."""
    result = output[output.index("test accuracy") : output.index("Every trial in MLflow")]
    return re.sub(r"^commit: .*\n", "", result, flags=re.MULTILINE)


def workers_of(pid: int) -> list[psutil.Process]:
    """Ray's trial processes below a driver."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if "TrialWorker" in _title(process)]


def is_at_work(process: psutil.Process) -> bool:
    """Return whether a process is one of Ray's for trials, and trains: it neither starts nor waits for a trial."""
    return "TrialWorker.train" in _title(process)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def outcome(home: Path, sweep: str) -> list[tuple[object, ...]]:
    """Return all that a sweep decided and found, from the study database in a home."""
    return outcome_in_database(sqlite_url(home.absolute() / "studies.db"), sweep)


def outcome_in_database(url: str, sweep: str) -> list[tuple[object, ...]]:
    """Return all that a sweep decided and found, without what depends on interruptions."""
    database = StudyDatabase(url)
    try:
        return _outcome(load_studies(parse_spec(database.sweeps()[sweep], "the study database"), database))
    finally:
        database.close()


def _outcome(studies: list[Study]) -> list[tuple[object, ...]]:
    return [
        (
            trial.study,
            trial.phase,
            trial.number,
            trial.trial_id,
            tuple(sorted(trial.params.items())),
            trial.state,
            trial.duplicate_of,
            trial.score,
            tuple(tuple(sorted((k, v) for k, v in epoch.items() if k not in CLOCKS)) for epoch in trial.epochs),
        )
        for study in studies
        for trial in (*study.search_table.trials, *study.final_table.trials)
    ]


def runs_in_mlflow(uri: str, sweep: str) -> Mapping[str, tuple[str, str, int]]:
    """Return of each trial its run's status, its state and the number of its epochs.

    Asserts that no trial has two runs, and that no run has an epoch twice or misses one.
    """
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    trials: dict[str, tuple[str, str, int]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=5000):
        trial_id = run.data.tags.get("trial_id")
        if trial_id is None:
            continue
        assert trial_id not in trials, f"trial {trial_id} has two runs"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [*range(1, len(steps) + 1)], f"trial {trial_id} misses an epoch, or has one twice"
        trials[trial_id] = run.info.status, run.data.tags["state"], len(steps)
    return trials


def assert_mlflow_has(uri: str, outcome: list[tuple[object, ...]], sweep: str) -> None:
    """Every trial that was trained has one run, ended as the trial ended, with all its epochs."""
    status = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
    trained = [entry for entry in outcome if entry[6] is None]
    expected = {
        str(trial_id): (status[state.value], state.value, len(epochs))  # type: ignore[attr-defined,arg-type]
        for _, _, _, trial_id, _, state, _, _, epochs in trained
    }
    assert runs_in_mlflow(uri, sweep) == expected
