"""A home that version 0.1 wrote is listed, reported and resumed to the table that version 0.1 came to.

`tests/fixtures/home_v0_1` is such a home: the spec that was launched, its study database as SQL, and the checkpoint of
the trial in which it was interrupted, after epoch 2 of 3. `trials.json` and `report.csv` are what version 0.1 had when
it resumed a copy of the home, on the digits with the first 60 images of val and 90 of test only.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.inline import InlineDriver
from orchestrator.environment.home import Home, home_at
from orchestrator.spec.loader import load_spec, parse_recorded_spec, parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.study.trial import Trial
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import Sptune

FIXTURE = Path(__file__).parents[2] / "fixtures" / "home_v0_1"
INTERRUPTED = "6e68104f9ba0"
"""The trial with the checkpoint."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    shutil.copytree(FIXTURE, folder)
    with sqlite3.connect(folder / "studies.db") as database:
        database.executescript((FIXTURE / "studies.sql").read_text())
    return home_at(str(folder))


def _rows(trials: list[Trial]) -> list[dict[str, Any]]:
    """Trials as `trials.json` has them: without what differs from machine to machine."""
    return [
        {
            "study": trial.study,
            "phase": trial.phase,
            "number": trial.number,
            "trial_id": trial.trial_id,
            "params": trial.params,
            "state": trial.state.value,
            "score": trial.score,
            "epochs": [
                {name: value for name, value in epoch.items() if name.endswith("/accuracy")} for epoch in trial.epochs
            ],
        }
        for trial in trials
    ]


def _expected() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((FIXTURE / "trials.json").read_text())
    return rows


def test_its_trials_are_read_as_they_were(home: Home) -> None:
    database = StudyDatabase(home.database_url)
    raw = database.sweeps()["before"]
    spec = parse_recorded_spec(raw, "the fixture")
    assert spec == parse_spec(raw, "the fixture")
    # Version 0.1.0 had no `val_size`, and scored every trial on all of val.
    assert spec == load_spec(FIXTURE / "before.yaml").model_copy(update={"val_size": "full"})

    trials = [trial for study in load_studies(spec, database) for trial in study.trials]
    *finished, interrupted = _rows(trials)
    assert finished == _expected()[:4]
    assert (interrupted["trial_id"], interrupted["state"]) == (INTERRUPTED, "waiting")
    assert interrupted["epochs"] == _expected()[4]["epochs"][:2]
    assert [trial.config.fingerprint() for trial in trials] == [trial.trial_id for trial in trials]
    assert trials[0].last_metrics["learnable/parameters"] == 1354
    assert trials[0].provenance["device"] == "x86_64"


def test_it_is_listed_and_reported(home: Home, sptune: Sptune) -> None:
    code, said, _ = sptune("status", "before", "--home", Path(home.root), "--json")
    status = json.loads(said)
    assert (code, status["driver"], status["halted"]) == (0, None, "stopped by SIGINT")
    assert [(study["method"], study["planned"], study["finished"]) for study in status["studies"]] == [
        ("spt_shallow", 4, 4),
        ("linear", 4, 0),
    ]
    code, said, _ = sptune("report", "before", "--home", Path(home.root), "--format", "csv")
    header, shallow, *_ = (FIXTURE / "report.csv").read_text().splitlines()
    assert code == 0
    assert said.splitlines()[:2] == [header, shallow], "the study that is done has its score already"


def test_it_is_resumed_to_the_same_table(home: Home, store: Path, sptune: Sptune) -> None:
    database = StudyDatabase(home.database_url)
    spec = parse_spec(database.sweeps()["before"], "the fixture")
    trials_folder = home.trials_folder("before")
    lease = database.lease("before")
    lease.acquire("before")
    sweep = Sweep.resume(spec, database, MemoryTracker(), lease=lease)
    context = TrialContext(
        data_root=str(store),
        trials_folder=trials_folder,
        prototype_cache=home.prototype_cache,
        weights=None,
        cpus=1,
        gpus=0.0,
    )
    InlineDriver(context).run(sweep)
    sweep.close()
    lease.release()

    assert _rows([trial for study in sweep.studies for trial in study.trials]) == _expected()
    log = Path(trials_folder, INTERRUPTED, "log.txt").read_text()
    assert "epoch 3" in log
    assert "'train/images_per_s': 16147.44772760602" in log, "epoch 2 is restored, as fast as it was, not trained again"

    code, said, _ = sptune("report", "before", "--home", Path(home.root), "--format", "csv")
    assert (code, said) == (0, (FIXTURE / "report.csv").read_text())
