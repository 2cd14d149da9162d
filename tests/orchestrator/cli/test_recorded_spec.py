"""A recorded spec with keys or names that this version lacks is read; only running trials needs a valid one."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.loader import parse_recorded_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from tests.orchestrator.conftest import Sptune, drive, new_sweep

Edit = Callable[[dict[str, Any]], None]


def _add_keys(raw: dict[str, Any]) -> None:
    """Add a key to every part of a spec, as a newer version might have."""
    raw["novel"] = {"a": 1}
    for part in ("search", "final", "resources", "cluster", "budget"):
        raw[part]["novel"] = 1
    raw["search"]["pruner"]["novel"] = [1, 2]
    for dimension in raw["space"].values():
        dimension["novel"] = None
    raw["resources"]["backbones"] = {raw["backbones"][0]: {"cpus": 2, "novel": 1}}


def _edit_recorded_spec(home: Path, edit: Edit) -> None:
    with sqlite3.connect(home / "studies.db") as database:
        (text,) = database.execute("SELECT value_json FROM study_user_attributes WHERE key = 'spec'").fetchone()
        raw = json.loads(text)
        edit(raw)
        database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'spec'", (json.dumps(raw),))


@pytest.fixture
def home(spec: SweepSpec, tmp_path: Path, empty_mlflow: Path) -> Path:
    """A home with a finished sweep, and an MLflow that knows nothing of it."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    drive(new_sweep(spec, f"sqlite:///{tmp_path / 'studies.db'}"), workers=2)
    return tmp_path


def test_unknown_keys_are_ignored_wherever_they_are(spec: SweepSpec) -> None:
    raw = spec.model_dump(mode="json")
    _add_keys(raw)
    before = json.dumps(raw)
    expected = spec.model_dump() | {
        "resources": spec.resources.model_dump() | {"backbones": {spec.backbones[0]: {
            "cpus": 2, "gpus": None, "accelerator_type": None
        }}}
    }  # fmt: skip
    assert parse_recorded_spec(raw, "a test").model_dump() == expected
    assert json.dumps(raw) == before, "what was given stays as it was"


@pytest.mark.parametrize("kind", ["float", "int", "choice", "asha"])
def test_a_key_may_be_called_like_a_type(spec: SweepSpec, kind: str) -> None:
    raw = spec.model_dump(mode="json")
    raw["search"]["pruner"][kind] = 1
    raw["space"]["lr"][kind] = {kind: 1}
    assert parse_recorded_spec(raw, "a test") == spec


def test_values_that_cannot_be_read_are_refused_with_their_place(spec: SweepSpec) -> None:
    raw = spec.model_dump(mode="json")
    _add_keys(raw)
    raw["search"]["trials"] = "many"
    del raw["final"]["seeds"]
    with pytest.raises(SpecError) as refused:
        parse_recorded_spec(raw, "the recorded spec of small")
    assert str(refused.value).startswith("the recorded spec of small has 2 problems")
    assert {*refused.value.problems} == {
        "search.trials: must be a number, got the text 'many'.",
        "final.seeds: is missing.",
    }


def test_unknown_keys_lock_nobody_out(home: Path, sptune: Sptune) -> None:
    before = {
        command: sptune(*command, "--home", home)
        for command in (("status", "small"), ("report", "small"), ("report", "small", "--format", "csv"))
    }
    _edit_recorded_spec(home, _add_keys)
    for command, outcome in before.items():
        assert outcome[0] == 0
        assert sptune(*command, "--home", home) == outcome, command
    code, said, _ = sptune("rm", "small", "--study", "*linear*", "--yes", "--home", home)
    assert (code, "2 studies of small with " in said) == (0, True)
    assert sptune("rm", "small", "--yes", "--home", home)[0] == 0
    assert StudyDatabase(f"sqlite:///{home / 'studies.db'}").sweeps() == {}


def test_resume_refuses_unknown_keys_and_lists_them(home: Path, sptune: Sptune) -> None:
    _edit_recorded_spec(home, _add_keys)
    code, _, complaint = sptune("resume", "small", "--inline", "--home", home)
    assert (code, complaint.startswith("error: the recorded spec of small has 11 problems:\n")) == (2, True)
    for key in ("novel", "search.novel", "search.pruner.novel", "space.lr.novel", "budget.novel"):
        assert f"  {key}: 'novel' is not a key here; there are " in complaint


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("tasks", ["demo/digits", "demo/no_more"]),
        ("backbones", ["vit_nano_patch4_32.mae", "vit_no_more.mae"]),
        ("methods", ["spt_deep", "no_more"]),
    ],
)
def test_a_name_that_left_the_catalog_does_not_keep_a_sweep_from_being_deleted(
    home: Path, sptune: Sptune, part: str, names: list[str]
) -> None:
    _edit_recorded_spec(home, lambda raw: raw.update({part: names}))
    code, _, complaint = sptune("resume", "small", "--inline", "--home", home)
    assert (code, f"{part}.1: '{names[1]}' is not a" in complaint) == (2, True)
    for command in (("status", "small"), ("report", "small"), ("rm", "small", "--yes")):
        code, _, complaint = sptune(*command, "--home", home)
        assert (command, code, complaint) == (command, 0, "")
    database = StudyDatabase(f"sqlite:///{home / 'studies.db'}")
    assert (database.sweeps(), database._storage.get_all_studies()) == ({}, [])


def test_trials_of_a_task_that_left_the_catalog_can_be_deleted(home: Path, sptune: Sptune) -> None:
    with sqlite3.connect(home / "studies.db") as database:
        for table, column in (
            ("studies", "study_name"),
            ("trial_user_attributes", "value_json"),
            ("study_user_attributes", "value_json"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, 'demo/shapes_loc', 'demo/no_more')")
    code, said, _ = sptune("rm", "small", "--study", "demo/no_more*", "--yes", "--home", home)
    assert (code, "2 studies of small" in said) == (0, True), "its studies are found by their names"
    code, said, complaint = sptune("rm", "small", "--yes", "--home", home)
    assert (code, complaint) == (0, "")
    assert StudyDatabase(f"sqlite:///{home / 'studies.db'}").sweeps() == {}
