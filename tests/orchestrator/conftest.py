"""A small spec, and a sweep driven on synthetic learning curves: no training, any order of events."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from orchestrator.cli import main
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.sqlite_url import sqlite_file, sqlite_url
from orchestrator.study.trial import Failure, Trial
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from trainer.config import TrainConfig
from trainer.data.tasks import open_task

RAW_SPEC: dict[str, Any] = {
    "name": "small",
    "tasks": ["demo/digits", "demo/shapes_loc"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep", "linear"],
    "fixed": {"epochs": 9, "warmup_epochs": 1},
    "space": {
        "lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "prompt_length": {"type": "choice", "values": [1, 5, 64]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool"]},
    },
    "search": {
        "trials": 8,
        "startup_trials": 3,
        "max_concurrent": 3,
        "pruner": {"type": "asha", "min_epochs": 1, "reduction": 2},
    },
    "final": {"seeds": [42, 44]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The digits, with the first 60 of val and 90 of test only, for all homes: quickly scored."""
    root = tmp_path_factory.mktemp("data")
    open_task(str(root), "demo/digits")
    for split, count in (("val", 60), ("test", 90)):
        file = root / f"demo/digits/{split}.parquet"
        pq.write_table(pq.read_table(file)[:count], file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPTUNE_DATA", str(root))
        yield root


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and no run, which takes a second to make; copy it."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def mlflow_uri(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow that the tests of a file share."""
    file = shutil.copy(empty_mlflow, tmp_path_factory.mktemp("mlflow"))
    return f"sqlite:///{file}"


@pytest.fixture
def raw_spec() -> dict[str, Any]:
    """A valid spec as YAML would give it, free to be spoilt."""
    return copy.deepcopy(RAW_SPEC)


@pytest.fixture
def spec(raw_spec: dict[str, Any]) -> SweepSpec:
    return parse_spec(raw_spec, "a test")


@pytest.fixture
def raw_study(raw_spec: dict[str, Any]) -> dict[str, Any]:
    """A spec of one study, free to be spoilt."""
    return raw_spec | {"tasks": ["demo/digits"], "methods": ["spt_deep"]}


@pytest.fixture
def record_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def curve(config: TrainConfig) -> Iterator[dict[str, float]]:
    """A learning curve that depends on what the sweep decides, with a score at the epochs that the config asks for.

    A new field of TrainConfig changes no curve.
    """
    names = ("task", "method", "train_size", "eval_split", "seed", *RAW_SPEC["space"])
    digest = hashlib.sha256(repr([getattr(config, name) for name in names]).encode()).digest()
    top = 0.3 + 0.6 * digest[0] / 255
    for epoch in range(1, config.epochs + 1):
        metrics = {"train/loss": 2.0 / epoch}
        if config.is_scored(epoch):
            metrics[f"{config.eval_split}/accuracy"] = top * epoch / config.epochs
        yield metrics


def drive(
    sweep: Sweep,
    *,
    workers: int = 1,
    seed: int = 0,
    events: int = 1_000_000,
    fail: Callable[[Trial], Failure | None] = lambda _: None,
) -> int:
    """Run a sweep on synthetic curves with that many workers, in an order drawn by `seed`; stop after some events.

    Returns:
        How many events there were.
    """
    order = random.Random(seed)
    running: dict[str, Iterator[tuple[int, dict[str, float]]]] = {}
    for event in range(events):
        while len(running) < workers and (trial := sweep.next_trial()) is not None:
            if (failure := fail(trial)) is not None:
                sweep.on_failure(trial.trial_id, failure)
            else:
                running[trial.trial_id] = iter(list(enumerate(curve(trial.config), start=1)))
        if not running:
            assert sweep.has_ended, "nothing runs and nothing is next, so it must have ended"
            return event
        trial_id = order.choice(sorted(running))
        if not sweep.on_epoch(trial_id, *next(running[trial_id])):
            del running[trial_id]
    return events


def outcome(sweep: Sweep) -> list[tuple[object, ...]]:
    """All that a sweep decided and found, without what depends on interruptions."""
    return [
        (trial.study, trial.phase, trial.number, trial.trial_id, trial.params, trial.state, trial.epochs, trial.score)
        for study in sweep.studies
        for trial in (*study.search_table.trials, *study.final_table.trials)
    ]


@functools.cache
def empty_database() -> bytes:
    """An SQLite file with Optuna's tables and no sweep, which takes three times as long to make as to open."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "studies.db")
        StudyDatabase(sqlite_url(file)).close()
        return file.read_bytes()


def new_sweep(spec: SweepSpec, url: str, tracker: MemoryTracker | None = None) -> Sweep:
    """Open a sweep. How a database is made is seen in `study/storage/test_opening.py`."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        file.write_bytes(empty_database())
    return Sweep.resume(spec, StudyDatabase(url), tracker or MemoryTracker())


def exit_status(patch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command in this process.

    An exception that is no `UserError` leaves it, as the trace that a user would see.
    """
    patch.setattr(sys, "argv", ["sptune", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


Sptune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sptune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sptune:
    """The command in this process: its exit status, what it printed, and what it complained of."""
    for name in ("SPTUNE_DATA", "SPTUNE_WEIGHTS", "SPTUNE_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = exit_status(monkeypatch, *arguments)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
