"""Numbers of the report of a real small sweep, each computed again from the predictions of the trials."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from orchestrator.cli import main
from orchestrator.environment.home import Home, home_at
from orchestrator.report.blocks import Block, TableBlock, TextBlock
from orchestrator.report.results_table import build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.spec.loader import parse_spec
from orchestrator.study.selection import LEVEL, find_tied, unpack_correct
from orchestrator.study.statistics import find_worse
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Trial, TrialState
from tests.orchestrator.conftest import Sptune
from trainer.plain_text import counted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPEC: dict[str, Any] = {
    "name": "real_1",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_shallow", "linear"],
    "train_sizes": [0.1],
    "val_size": "full",
    "fixed": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16},
    "space": {
        "lr": {"type": "choice", "values": [1.0e-6, 0.05, 0.5]},
        "prompt_length": {"type": "choice", "values": [2, 4]},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "random"]},
    },
    "search": {"trials": 3, "sampler": "random", "seed": 3},
    "final": {"seeds": [42, 44], "measure_peeking": True},
}


@pytest.fixture(scope="module")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The home of a sweep that was launched in this process."""
    folder = tmp_path_factory.mktemp("home")
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPTUNE_WEIGHTS", "SPTUNE_HOME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "argv", ["sptune", "launch", str(file), "--inline", "--home", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        yield home_at(str(folder))


@pytest.fixture(scope="module")
def studies(home: Home) -> list[Study]:
    loaded = load_studies(parse_spec(SPEC, "a test"), StudyDatabase(f"sqlite:///{home.database_file}"))
    assert all(study.is_done for study in loaded)
    return loaded


@pytest.fixture(scope="module")
def report(home: Home) -> list[Block]:
    """The report as the command makes it, from a study database read without epochs."""
    database = StudyDatabase(f"sqlite:///{home.database_file}")
    return build_sections(load_studies(parse_spec(SPEC, "a test"), database, epochs=False))


def table_block(report: list[Block], title: str) -> list[dict[str, str]]:
    """Return the rows of one of its tables, by column."""
    (table,) = (block for block in report if isinstance(block, TableBlock) and block.title.startswith(title))
    return [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]


def correct_of(home: Home, trial: Trial) -> list[bool]:
    """Return which images a trial classified correctly, from its labels and predictions."""
    rows = pq.read_table(f"{home.trials_folder('real_1')}/{trial.trial_id}/predictions.parquet").to_pylist()
    assert all(row["correct"] == (row["label"] == row["prediction"]) for row in rows)
    assert len({row["key"] for row in rows}) == len(rows) == (60 if trial.phase == "search" else 90)
    return [row["label"] == row["prediction"] for row in rows]


def percent(home: Home, trial: Trial) -> float:
    correct = correct_of(home, trial)
    return 100 * (sum(correct) / len(correct))


def test_cells_are_computed_from_the_predictions_to_the_last_digit(
    home: Home, studies: list[Study], report: list[Block], sptune: Sptune
) -> None:
    status, out, error = sptune("report", "real_1", "--home", Path(home.root), "--format", "csv")
    assert (status, error) == (0, "")
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(out))}
    rows = {row["method"]: row for row in table_block(report, "test accuracy")}
    assert {*lines} == {*rows} == {*SPEC["methods"]}
    for study in studies:
        scores = [percent(home, trial) for trial in study.requested_final_trials]
        assert [trial.config.seed for trial in study.requested_final_trials] == [42, 44]
        line, method = lines[study.plan.method], study.plan.method
        assert (float(line["mean"]), float(line["std"])) == (statistics.mean(scores), statistics.stdev(scores))
        assert rows[method]["demo/digits"] == f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def test_the_learnable_share_is_counted_in_the_saved_tensors(
    home: Home, studies: list[Study], report: list[Block]
) -> None:
    for study in studies:
        for trial in study.trials:
            learnt = load_file(f"{home.trials_folder('real_1')}/{trial.trial_id}/prompt.safetensors")
            assert trial.last_metrics["learnable/parameters"] == sum(tensor.size for tensor in learnt.values())
        shares = [100 * trial.last_metrics["learnable/share"] for trial in study.requested_final_trials]
        row = next(row for row in build_results_table(studies).rows if row.names[0] == study.plan.method)
        assert row.tuned == pytest.approx(statistics.mean(shares))
        printed = next(row for row in table_block(report, "test accuracy") if row["method"] == study.plan.method)
        assert printed["tuned %"] == f"{statistics.mean(shares):.3g}"


def test_the_chosen_params_are_those_of_the_best_val_accuracy(
    home: Home, studies: list[Study], report: list[Block]
) -> None:
    rows = {row["method"]: row for row in table_block(report, "chosen on val")}
    for study in studies:
        trials = [trial for trial in study.requested_search_trials if trial.duplicate_of is None]
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        by_val = {trial.number: percent(home, trial) for trial in trials}
        best = min(trials, key=lambda trial: (-by_val[trial.number], trial.number))
        row = rows[study.plan.method]
        assert (row["val %"], row["trial"]) == (f"{by_val[best.number]:.1f}", str(best.number))
        assert row["params"] == ", ".join(f"{name} {value}" for name, value in best.params.items())
        for trial in trials:
            assert 100 * (trial.score or 0.0) == by_val[trial.number], "to the last digit"


def test_tied_trials_follow_from_the_predictions(home: Home, studies: list[Study], report: list[Block]) -> None:
    rows = {row["method"]: row for row in table_block(report, "chosen on val")}
    for study in studies:
        assert study.best is not None
        best = study.best
        trials = [t for t in study.requested_search_trials if t.duplicate_of is None and t is not best]
        trials.sort(key=lambda trial: (-percent(home, trial), trial.number))
        correct_TN = np.array([correct_of(home, trial) for trial in [best, *trials]])
        is_worse = find_worse(correct_TN, LEVEL)[1:]
        tied = [trial.number for trial, is_trial_worse in zip(trials, is_worse, strict=True) if not is_trial_worse]
        assert [trial.number for trial in find_tied(study.requested_search_trials)] == [best.number, *tied]
        assert rows[study.plan.method]["tied"] == (", ".join(map(str, tied)) or "none")
    assert any(
        len(find_tied(study.requested_search_trials)) < len(study.requested_search_trials) for study in studies
    ), "a rate of 1e-6 learns nothing"


def test_facts_about_images_in_the_study_database_agree_with_the_predictions(home: Home, studies: list[Study]) -> None:
    for study in studies:
        for trial in study.trials:
            correct = correct_of(home, trial)
            if trial.phase == "search":
                assert unpack_correct(trial.provenance["correct"]).tolist() == correct
            else:
                assert "correct" not in trial.provenance, "test is not what anything is chosen by"
            card = json.loads(Path(home.trials_folder("real_1"), trial.trial_id, "card.json").read_text())
            assert {name: trial.provenance[name] for name in ("learnt_from", "scored_on", "protocol")} == {
                name: card[name] for name in ("learnt_from", "scored_on", "protocol")
            }


def test_peeking_is_the_best_epoch_minus_the_last_and_nowhere_else(studies: list[Study], report: list[Block]) -> None:
    rows = {row["method"]: row for row in table_block(report, "peeking")}
    for study in studies:
        gains = []
        for trial in study.requested_final_trials:
            scored = [epoch["peeking/accuracy"] for epoch in trial.epochs]
            assert len(scored) == 2 and trial.score == scored[-1] == trial.epochs[-1]["test/accuracy"]
            assert trial.last_metrics["peeking/gain"] == max(scored) - scored[-1]
            gains.append(100 * trial.last_metrics["peeking/gain"])
        assert rows[study.plan.method]["demo/digits"] == f"{statistics.mean(gains):+.1f}"
        assert not any(
            name.startswith("peeking") for trial in study.requested_search_trials for name in trial.last_metrics
        )


def test_the_reproducibility_lines_name_images_software_and_machine(studies: list[Study], report: list[Block]) -> None:
    (block,) = (block for block in report if isinstance(block, TextBlock) and block.title == "reproducibility")
    facts = studies[0].requested_final_trials[0].provenance
    text = "\n".join(block.lines)
    assert f"images: demo/digits {facts['scored_on'].partition('/')[0]} ({facts['protocol']})" in text
    for name in ("software", "device"):
        assert facts[name] in text
    assert "scored on test at the last epoch (epochs: 2); seeds 42, 44" in text


# Export


@pytest.fixture(scope="module")
def exported(home: Home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The rows of the three files."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sptune", "export", "real_1", "--home", str(Path(home.root)), "--out", str(out)])
        with pytest.raises(SystemExit):
            main()
    return {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("trials", "epochs", "predictions")}


def test_the_exported_trials_and_epochs_are_those_of_the_study_database(
    studies: list[Study], exported: dict[str, list[dict[str, Any]]]
) -> None:
    trials = [trial for study in studies for trial in (*study.search_table.trials, *study.final_table.trials)]
    assert [(row["trial_id"], row["phase"], row["number"], row["score"]) for row in exported["trials"]] == [
        (trial.trial_id, trial.phase, trial.number, trial.score) for trial in trials
    ]
    values = {(row["trial_id"], row["epoch"], row["metric"]): row["value"] for row in exported["epochs"]}
    assert values == {
        (trial.trial_id, epoch, metric): value
        for trial in trials
        for epoch, metrics in enumerate(trial.epochs, start=1)
        for metric, value in metrics.items()
    }


def test_the_exported_predictions_give_each_trials_score(
    home: Home, studies: list[Study], exported: dict[str, list[dict[str, Any]]]
) -> None:
    correct: dict[str, list[bool]] = {}
    for row in exported["predictions"]:
        assert row["correct"] == (row["label"] == row["prediction"]) and 0.1 <= row["confidence"] <= 1.0
        correct.setdefault(row["trial_id"], []).append(row["correct"])
    trials = {trial.trial_id: trial for study in studies for trial in study.trials}
    assert {trial_id: sum(images) / len(images) for trial_id, images in correct.items()} == {
        trial_id: trial.score for trial_id, trial in trials.items()
    }
    assert correct == {trial_id: correct_of(home, trial) for trial_id, trial in trials.items()}


def test_the_table_can_be_made_of_the_exported_files(
    studies: list[Study], exported: dict[str, list[dict[str, Any]]]
) -> None:
    for row in build_results_table(studies).rows:
        scores = [
            100 * trial["score"]
            for trial in exported["trials"]
            if trial["phase"] == "final" and trial["method"] == row.names[0]
        ]
        assert row.scores["demo/digits"].mean == statistics.mean(scores)


# Figures and formats


def test_figures_are_written_as_png_and_pdf(home: Home, sptune: Sptune, tmp_path: Path) -> None:
    status, out, error = sptune("figures", "real_1", "--home", Path(home.root), "--out", tmp_path / "figures")
    assert (status, error) == (0, "")
    files = sorted((tmp_path / "figures").iterdir())
    stems = {file.stem for file in files}
    assert "per_task" in stems
    assert {file.name for file in files} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    assert out.splitlines()[-1] == f"{counted(len(stems), 'figure')}, each as .png and .pdf"
    assert {*out.splitlines()[:-1]} == {str(file) for file in files if file.suffix == ".png"}
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
                assert min(image.size) > 200
        else:
            data = file.read_bytes()
            assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "html"])
def test_every_format_has_every_number(form: str, home: Home, report: list[Block], sptune: Sptune) -> None:
    status, out, error = sptune("report", "real_1", "--home", Path(home.root), "--format", form)
    assert (status, error) == (0, "")
    for row in table_block(report, "test accuracy"):
        cell = row["demo/digits"]
        assert (cell.replace("±", r"$\pm$") if form == "latex" else cell) in out
    assert "Trials: 10 complete, 0 pruned, 0 failed, 0 missing." in out
