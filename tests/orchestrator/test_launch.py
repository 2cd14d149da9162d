"""The Python API: a sweep from a notebook, with the same outcome as the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import orchestrator
from orchestrator.errors import SpecError, UserError
from orchestrator.launch import Progress, Rerun, SweepOutcome, launch, open_sweep, resume
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import TrialState
from tests.orchestrator.conftest import Sptune

SPEC: dict[str, Any] = {
    "name": "api",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [0.1],
    "fixed": {"epochs": 2, "warmup_epochs": 0},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.1, "log": True}},
    "search": {"trials": 2},
    "final": {"seeds": [42]},
}


@pytest.fixture(scope="module")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A home for the whole module; its sweep is launched once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPTUNE_HOME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield str(tmp_path_factory.mktemp("api") / "home")


@pytest.fixture(scope="module")
def launched(home: str) -> tuple[SweepOutcome, list[Progress]]:
    steps: list[Progress] = []
    return launch(SPEC, home=home, driver="inline", on_progress=steps.append), steps


def test_a_notebook_launches_a_sweep_and_reads_its_tables(
    launched: tuple[SweepOutcome, list[Progress]], home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = launched
    assert outcome.is_done
    assert not outcome.was_finished
    assert outcome.studies_without_result == []

    trials = open_sweep("api", home).trials()
    assert isinstance(trials, pd.DataFrame)
    assert list(trials["phase"]) == ["search", "search", "final"]
    assert set(trials["state"]) == {"complete"}
    assert trials.loc[trials["chosen"] & (trials["phase"] == "search"), "score"].max() == trials["score"][:2].max()

    epochs = open_sweep("api", home).epochs()
    assert set(epochs.loc[epochs["metric"] == "train/loss", "epoch"]) == {1, 2}
    assert capsys.readouterr().out == "", "the API prints nothing"


def test_the_tables_have_the_columns_of_the_export(
    launched: tuple[SweepOutcome, list[Progress]], home: str, tmp_path: Path, sptune: Sptune
) -> None:
    code, _, complaint = sptune("export", "api", "--home", home, "--out", tmp_path)
    assert code == 0, complaint
    results = open_sweep("api", home)
    for name, table in (("trials", results.trials()), ("epochs", results.epochs())):
        exported = pq.read_table(tmp_path / f"{name}.parquet").to_pandas()
        pd.testing.assert_frame_equal(table, exported)


def test_progress_says_each_step_and_has_the_sweep_while_trials_run(
    launched: tuple[SweepOutcome, list[Progress]],
) -> None:
    _, steps = launched
    names = [progress.step for progress in steps]
    assert list(dict.fromkeys(names)) == ["checking the servers", "running trials", "logging to MLflow"]
    assert all((progress.sweep is not None) == (progress.step == "running trials") for progress in steps)


def test_a_finished_sweep_starts_nothing_whatever_form_its_spec_has(
    launched: tuple[SweepOutcome, list[Progress]], home: str, tmp_path: Path
) -> None:
    first, _ = launched
    file = tmp_path / "api.yaml"
    file.write_text(str(SPEC).replace("'", '"').replace("True", "true"))  # YAML is a superset of JSON
    for spec in (SPEC, parse_spec(SPEC, "a test"), file, str(file)):
        again = launch(spec, home=home, driver="inline")
        assert again.was_finished
        assert [trial.score for study in again.studies for trial in study.trials] == [
            trial.score for study in first.studies for trial in study.trials
        ]


def test_resume_runs_matching_trials_again(launched: tuple[SweepOutcome, list[Progress]], home: str) -> None:
    first, _ = launched
    rerun = Rerun(lambda trial: trial.phase == "final" and trial.state is TrialState.COMPLETE)
    outcome = resume("api", home=home, driver="inline", rerun=rerun)
    assert (outcome.num_rerun, outcome.was_finished) == (1, False)
    assert outcome.studies[0].final_table.trials[0].score == first.studies[0].final_table.trials[0].score
    with pytest.raises(UserError, match="no failed trial of api matches"):
        resume("api", home=home, driver="inline", rerun=Rerun(lambda _: False, must_match=True))


def test_launch_ends_with_1_until_a_final_trial_of_each_study_has_a_score(
    store: Path, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sptune: Sptune
) -> None:
    # An image of test is damaged: the search ends well, and all final trials fail.
    shutil.copytree(store, tmp_path / "data")
    test_file = tmp_path / "data/demo/digits/test.parquet"
    whole = pq.read_table(test_file)
    images = [b"not an image", *whole["image"].to_pylist()[1:]]
    pq.write_table(whole.set_column(whole.column_names.index("image"), "image", [images]), test_file)
    monkeypatch.setenv("SPTUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "cache"))

    spec = SPEC | {"name": "finals", "search": {"trials": 1}, "final": {"seeds": [42, 44]}, "retries": 0}
    file = tmp_path / "finals.yaml"
    file.write_text(json.dumps(spec))  # YAML is a superset of JSON

    def finals() -> pd.DataFrame:
        return open_sweep("finals", home).trials().query("phase == 'final'")

    assert sptune("launch", file, "--home", home, "--inline")[0] == 1
    assert [*finals()["state"]] == ["failed", "failed"] and finals()["score"].isna().all()
    assert finals()["error"].str.contains(r"test.parquet, image .* cannot be read: its format is unknown").all()
    again = launch(file, home=home, driver="inline")
    assert again.is_done and again.was_finished
    assert again.studies_without_result == [study.plan.key for study in again.studies]

    # One of the two has a score: that is a result.
    pq.write_table(whole, test_file)
    first = finals()["trial_id"].iloc[0]
    assert sptune("resume", "finals", "--home", home, "--inline", "--trial", first)[0] == 0
    assert [*finals()["state"]] == ["complete", "failed"]


def test_mistakes_are_listed_together_and_nothing_is_written(tmp_path: Path, store: Path) -> None:
    wrong = SPEC | {"tasks": ["demo/digit"], "search": {"trials": 0}, "epoch": 3}
    with pytest.raises(SpecError) as mistakes:
        launch(wrong, home=str(tmp_path / "home"), driver="inline")
    assert len(mistakes.value.problems) >= 3, mistakes.value
    assert not (tmp_path / "home").exists()
    with pytest.raises(UserError, match="holds no sweep"):
        open_sweep("nothing", str(tmp_path / "home"))


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert orchestrator.__version__ == version("sptune")


def test_the_command_prints_the_version(sptune: Sptune) -> None:
    assert sptune("--version") == (0, f"sptune {orchestrator.__version__}\n", "")
