"""The Python API: a sweep from a notebook, with the same outcome as the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import orchestrator
import search_spaces
from orchestrator.environment.connections import open_database
from orchestrator.environment.home import home_at
from orchestrator.errors import SpecError, UserError
from orchestrator.launch import Progress, Rerun, SweepOutcome, launch, open_sweep, resume
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import TrialState
from tests.notebook import code_cells, run_cell
from tests.orchestrator.conftest import Sptune
from tests.trainer.methods.toy import ROW
from trainer.catalog import METHODS

NOTEBOOK = json.loads((Path(search_spaces.__path__[0]) / "notebook.ipynb").read_text(encoding="utf-8"))
SPEC: dict[str, Any] = {
    "name": "quick",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [0.1],
    "fixed": {"epochs": 4, "warmup_epochs": 0, "batch_size": 8},
    "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0, "log": True}},
    "search": {"trials": 2},
    "final": {"seeds": [42]},
}
TELL = {"notify": {"command": ["sh", "-c", 'cat >> "$TOLD"; echo >> "$TOLD"']}}


@pytest.fixture(scope="module")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A home for the whole module; its sweep is launched once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPTUNE_HOME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("api")
        patch.setenv("TOLD", str(folder / "told"))
        yield str(folder / "home")


@pytest.fixture(scope="module")
def launched(home: str) -> tuple[SweepOutcome, list[Progress]]:
    steps: list[Progress] = []
    return launch(SPEC | TELL, home=home, driver="inline", on_progress=steps.append), steps


def test_a_notebook_launches_a_sweep_and_reads_its_tables(
    launched: tuple[SweepOutcome, list[Progress]], home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = launched
    assert outcome.is_done
    assert not outcome.was_finished
    assert outcome.studies_without_result == []

    trials = open_sweep("quick", home).trials()
    assert isinstance(trials, pd.DataFrame)
    assert list(trials["phase"]) == ["search", "search", "final"]
    assert set(trials["state"]) == {"complete"}
    assert trials.loc[trials["chosen"] & (trials["phase"] == "search"), "score"].max() == trials["score"][:2].max()

    epochs = open_sweep("quick", home).epochs()
    assert set(epochs.loc[epochs["metric"] == "train/loss", "epoch"]) == {1, 2, 3, 4}
    assert capsys.readouterr().out == "", "the API prints nothing"


def test_the_tables_have_the_columns_of_the_export(
    launched: tuple[SweepOutcome, list[Progress]], home: str, tmp_path: Path, sptune: Sptune
) -> None:
    code, _, complaint = sptune("export", "quick", "--home", home, "--out", tmp_path)
    assert code == 0, complaint
    results = open_sweep("quick", home)
    for name, table in (("trials", results.trials()), ("epochs", results.epochs())):
        exported = pq.read_table(tmp_path / f"{name}.parquet").to_pandas()
        pd.testing.assert_frame_equal(table, exported)


def test_the_notebook_runs_and_shows_what_is_stored_in_it(
    launched: tuple[SweepOutcome, list[Progress]], home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPTUNE_HOME", home)
    namespace: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), namespace) for cell in code_cells(NOTEBOOK)]
    assert namespace["spec"] == SPEC, "so that its sweep is finished here"
    assert namespace["outcome"].was_finished

    # The stored outputs are of the same kinds, and with the text of today's report.
    stored = [cell["outputs"] for cell in code_cells(NOTEBOOK)]
    assert [[sorted(output.get("data", output)) for output in cell] for cell in shown] == [
        [sorted(set(output.get("data", output)) - {"execution_count", "metadata"}) for output in cell]
        for cell in stored
    ]
    report, figures = ("".join(shown[cell][0]["data"]["text/html"]) for cell in (1, 3))
    assert "<body" not in report and "doctype" not in report, "the notebook's page has them"
    assert 'class="sptune"' in report and '<td class="name">linear</td>' in report and "test accuracy, %" in report
    assert figures.count("<img ") == len(namespace["sweep"].figures()) >= 3
    assert str(namespace["sweep"].report()).startswith("**test accuracy, %")
    assert namespace["sweep"].figures()["per_task"].axes

    # The classifier scores the test split as the trial did.
    best, sweep = namespace["best"], namespace["sweep"]
    assert (best.phase, best.config.seed) == ("final", 42)
    test = pq.read_table(f"{sweep.home.data_root}/demo/digits/test.parquet").to_pydict()
    classifier = sweep.load(best.trial_id[:8])
    answers = [predictions[0].class_name for predictions in classifier.classify(test["image"], top=1)]
    names = [classifier.class_names[label] for label in test["label"]]
    right = sum(answer == name for answer, name in zip(answers, names, strict=True))
    assert right / len(names) == pytest.approx(best.score, abs=1e-9)


def test_progress_says_each_step_and_has_the_sweep_while_trials_run(
    launched: tuple[SweepOutcome, list[Progress]],
) -> None:
    _, steps = launched
    names = [progress.step for progress in steps]
    assert list(dict.fromkeys(names)) == [
        "checking the spec", "checking the servers", "opening the sweep", "running trials", "logging to MLflow"
    ]  # fmt: skip
    # Before the first epoch, what the trial does; then the numbers of trials.
    activities = [*dict.fromkeys(progress.activity for progress in steps if progress.sweep is not None)]
    assert activities[:2] == ["", "starting workers"] and activities[-1] == "training on demo/digits"
    first_epoch = next(index for index, progress in enumerate(steps) if progress.activity == "training on demo/digits")
    assert [progress.activity for progress in steps[first_epoch + 1 :]] == [""] * (len(steps) - first_epoch - 1)
    assert all((progress.sweep is not None) == (progress.step == "running trials") for progress in steps)


def test_a_finished_sweep_starts_nothing_whatever_form_its_spec_has(
    launched: tuple[SweepOutcome, list[Progress]], home: str, tmp_path: Path
) -> None:
    first, _ = launched
    # Its end was told by the launch that ran it, and no other launch repeats that.
    told = Path(os.environ["TOLD"])
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == ["done"]
    launch(SPEC | TELL, home=home, driver="inline")
    assert len(told.read_text().splitlines()) == 1

    # A resumed sweep tells if its file says whom. The study database, where others may write, is not asked.
    database = open_database(home_at(home))
    database.save_notified("quick", [])
    named = resume("quick", home=home, driver="inline")
    assert [*named.notes] == [
        "notify: nobody is told how quick ends: what the study database has is not called, because others may have "
        "written it; name the sweep by its spec's file."
    ]
    assert len(told.read_text().splitlines()) == 1
    teller = tmp_path / "teller.yaml"
    teller.write_text(json.dumps(SPEC | TELL))
    assert resume(str(teller), home=home, driver="inline").notes == ()
    assert len(told.read_text().splitlines()) == 2
    database.close()

    file = tmp_path / "quick.yaml"
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
    samples: set[str] = set()

    def read_metrics(progress: Progress) -> None:
        if progress.sweep is not None:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/metrics") as answer:
                samples.update(answer.read().decode().splitlines())

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = resume("quick", home=home, driver="inline", rerun=rerun, on_progress=read_metrics, metrics=port)
    assert {'sptune_trials{state="running",sweep="quick"} 1.0', 'sptune_trials_planned{sweep="quick"} 3.0'} <= {
        re.sub(r"{sweep=(.+?),state=(.+?)}", r"{state=\2,sweep=\1}", line) for line in samples
    }
    assert (outcome.num_rerun, outcome.was_finished) == (1, False)
    assert outcome.studies[0].final_table.trials[0].score == first.studies[0].final_table.trials[0].score
    with pytest.raises(UserError, match="no failed trial of quick matches"):
        resume("quick", home=home, driver="inline", rerun=Rerun(lambda _: False, must_match=True))


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

    # Nothing starts where the metrics have no port.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command, sweep in (("launch", file), ("resume", "finals")):
            code, _, complaint = sptune(command, sweep, "--home", home, "--inline", "--metrics", str(port))
            assert code == 2 and f"--metrics {port}: the port cannot be used" in complaint
    assert finals().empty

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


def test_a_method_from_outside_of_the_package_is_swept_like_any_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "toy", ROW)
    space = {"lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}}
    home = str(tmp_path / "home")
    assert launch(SPEC | {"methods": ["linear", "toy"], "space": space}, home=home, driver="inline").is_done

    sweep = open_sweep("quick", home)
    assert set(sweep.trials()["method"]) == {"linear", "toy"}
    assert "toy" in sweep.report()._repr_html_()
    best = sweep.best(method="toy")
    assert "backbone.vit.blocks.4.mlp.shift" in sweep.load(best).model.learnable()
