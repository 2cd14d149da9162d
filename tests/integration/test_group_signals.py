"""SIGTERM to more processes than the driver: the sweep saves and stops, and no process of Ray is left."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.study.trial import TrialState
from tests.integration.processes import Driver, outcome, read_until, start_sptune, workers_of
from trainer.training.checkpoint import load_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SPEC: dict[str, Any] = {
    "name": "signalled",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [0.05],
    "fixed": {"epochs": 5000, "warmup_epochs": 0, "batch_size": 16},
    "space": {"lr": {"type": "float", "low": 0.005, "high": 0.05, "log": True}},
    "search": {"trials": 1, "max_concurrent": 1, "startup_trials": 1, "seed": 0, "pruner": {"type": "none"}},
    "final": {"seeds": [42]},
    "resources": {"cpus": 1},
}


def processes_of(driver: Driver) -> list[psutil.Process]:
    """All processes of the session that the driver began, also those whose parents have ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == driver.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def num_epochs(home: Path) -> int:
    """Number of epochs that the study database has of the only trial."""
    with contextlib.closing(sqlite3.connect(home / "studies.db")) as database:
        (number,) = database.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchone()
    return int(number)


def test_a_sigterm_to_all_saves_what_runs_and_leaves_no_process(tmp_path: Path, store: Path) -> None:
    spec = tmp_path / "signalled.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    with start_sptune("launch", spec, home=tmp_path) as driver:
        read_until(driver, 0)
        while num_epochs(tmp_path) == 0:
            assert driver.poll() is None
            time.sleep(0.2)

        # `timeout` signals the group; systemd and Slurm also the workers, which have groups of their own.
        workers = workers_of(driver.pid)
        assert workers
        os.killpg(driver.pid, signal.SIGTERM)
        for worker in workers:
            worker.terminate()
        output, _ = driver.communicate(timeout=50)

    assert driver.returncode == 143, output
    assert f"stopped by SIGTERM. Run `sptune resume signalled --home {tmp_path}` to continue." in output
    assert "Traceback" not in output
    assert processes_of(driver) == []

    (trial,) = outcome(tmp_path, "signalled")
    assert trial[5] is TrialState.WAITING
    checkpoint = load_state(tmp_path / f"sweeps/signalled/trials/{trial[3]}/checkpoint.pt")
    assert checkpoint is not None
    assert len(checkpoint["epochs"]) >= num_epochs(tmp_path) > 0
