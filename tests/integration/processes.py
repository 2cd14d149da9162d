"""Sweeps as processes of their own, to be killed: started, looked into from outside, compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies

SPTUNE = str(Path(sys.executable).with_name("sptune"))
CLOCKS = ("train/images_per_s", "prototypes/seconds", "epoch/seconds", "memory/peak_gb")
"""Metrics that no two runs have in common."""


def sptune(*arguments: str | Path, home: Path | str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [SPTUNE, *map(str, arguments), "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=560, env={**os.environ, **env})


def started(*arguments: str | Path, home: Path | str, out: Any = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    """Start the command, deaf to nothing, in a group of its own."""
    # A shell starts background jobs deaf to Ctrl-C, and a child inherits that: let it hear.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [SPTUNE, *map(str, arguments), "--home", str(home)],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **env},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def workers_of(pid: int) -> list[psutil.Process]:
    """Ray's trial processes below a driver."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if "TrialWorker" in _title(process)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def outcome(home: Path, sweep: str) -> list[tuple[object, ...]]:
    """As `outcome_in`, of the record in a home."""
    return outcome_in(f"sqlite:///{home / 'studies.db'}", sweep)


def outcome_in(url: str, sweep: str) -> list[tuple[object, ...]]:
    """All that a sweep decided and found, without what depends on interruptions."""
    record = StudyDatabase(url)
    try:
        return came(load_studies(parse_spec(record.sweeps()[sweep], "the record"), record))
    finally:
        record.close()


def came(studies: list[Study]) -> list[tuple[object, ...]]:
    """As `outcome_in`, of studies."""
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


def trials_told(uri: str, sweep: str) -> Mapping[str, tuple[str, str, int]]:
    """What MLflow has of each trial: the run's status, its state and the number of its epochs; each once, in order."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    found: dict[str, Any] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=5000):
        if (trial_id := run.data.tags.get("trial_id")) is not None:
            assert trial_id not in found, f"trial {trial_id} has two runs"
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
            assert steps == [*range(1, len(steps) + 1)], f"trial {trial_id} misses an epoch, or has one twice"
            found[trial_id] = run.info.status, run.data.tags["state"], len(steps)
    return found


def assert_mlflow_agrees(uri: str, home: Path, sweep: str) -> None:
    """As `assert_told`, of the record in a home."""
    assert_told(uri, outcome(home, sweep), sweep)


def assert_told(uri: str, came: list[tuple[object, ...]], sweep: str) -> None:
    """Every trial that was trained has one run, ended as it ended, with all its epochs."""
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    trained = [entry for entry in came if entry[6] is None]
    expected = {
        str(trial_id): (status[state.value], state.value, len(epochs))  # type: ignore[attr-defined,arg-type]
        for _, _, _, trial_id, _, state, _, _, epochs in trained
    }
    assert trials_told(uri, sweep) == expected
