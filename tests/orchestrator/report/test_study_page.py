"""Page of a study in MLflow: its contents, its spec and command, and when it is written again."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from mlflow import MlflowClient

from orchestrator.report.study_page import counts_text, render_study_page, study_summary_metrics
from orchestrator.spec.loader import find_spec, load_spec, parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from orchestrator.tracking.mlflow_page import view_paths
from orchestrator.tracking.mlflow_projection import outcome_tags
from orchestrator.tracking.mlflow_runs import DESCRIPTION_TAG, MlflowRuns
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from tests.orchestrator.conftest import drive, new_sweep
from trainer.__main__ import parse
from trainer.config import TrainConfig
from trainer.data.tasks import open_task


@pytest.fixture
def small(raw_study: dict[str, Any], request: pytest.FixtureRequest) -> SweepSpec:
    raw_study["name"] = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    raw_study["search"] |= {"trials": 4, "max_concurrent": 2}
    return parse_spec(raw_study, "a test")


def tracker_for(spec: SweepSpec, home: Path, uri: str) -> MlflowTracker:
    runs = MlflowRuns(
        uri, spec.name, str(home / "trials"), (home / "artifacts").as_uri(), str(home / "data"), [*spec.space]
    )
    return MlflowTracker(runs, patience_s=5)


def code_blocks(page: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(page) if token.type == "fence"]


def test_a_page_repeats_its_study_and_its_first_final_trial(small: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(small, record_url)
    drive(sweep)
    (study,) = sweep.studies
    spec, command = code_blocks(render_study_page(study))
    repeated = new_sweep(parse_spec(yaml.safe_load(spec) | {"name": "again"}, "the page"), record_url)
    drive(repeated)
    assert [t.trial_id for t in repeated.studies[0].trials] == [t.trial_id for t in study.trials]
    lines = [*command.splitlines(), *spec.splitlines()]
    assert max(map(len, lines)) <= 80 < len(command), "wider lines would cut MLflow's page"
    # A shell takes a backslash at the end of a line out.
    program, *words = shlex.split(command.replace("\\\n", ""))
    assert [program, *words[:2]] == ["python", "-m", "trainer"]
    fields, _ = parse(words[2:])
    assert TrainConfig.from_params(fields).fingerprint() == study.requested_final_trials[0].trial_id


@pytest.mark.parametrize("name", ["demo", "demo_data_efficiency", "nmi", "vtab_mae", "ablation_backbone_size"])
def test_the_page_of_every_study_contains_a_spec_of_it_alone_under_its_own_name(name: str, record_url: str) -> None:
    spec = load_spec(find_spec(name))
    for study in {study.plan.method: study for study in load_studies(spec, StudyDatabase(record_url))}.values():
        (text,) = code_blocks(render_study_page(study))
        alone = parse_spec(yaml.safe_load(text), "the page")
        assert alone.per == [], "what differed for the study is merged"
        assert alone.name == f"{spec.name}-again", "so that the trials of the sweep are not touched"
        assert plan_sweep(alone).studies == [study.plan]


def test_the_leaderboard_begins_with_the_best_trial_and_has_the_stored_numbers(
    small: SweepSpec, record_url: str
) -> None:
    sweep = new_sweep(small, record_url)
    drive(sweep)
    (study,) = sweep.studies
    assert study.best is not None and study.best.score is not None
    page = render_study_page(study)
    first = next(line for line in page.splitlines() if line.startswith(f"| {study.best.number} |"))
    assert f"| {100 * study.best.score:.1f} |" in first
    board = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert board[0] == first
    for trial in study.requested_final_trials:
        assert trial.score is not None and f"{trial.config.seed}: {100 * trial.score:.1f}" in page
    scores = [trial.score or 0.0 for trial in study.requested_final_trials]
    assert study_summary_metrics(study)["test/accuracy"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan"), "4 failed"),
        (Failure(cause=FailureCause.INVALID, error="ValueError: no images"), "stopped: ValueError: no images"),
    ],
)
def test_the_page_of_a_study_without_results_says_so(
    small: SweepSpec, record_url: str, failure: Failure, expected: str
) -> None:
    sweep = new_sweep(small, record_url)
    drive(sweep, fail=lambda _: failure)
    page = render_study_page(sweep.studies[0])
    assert expected in page and "test accuracy" not in page
    assert study_summary_metrics(sweep.studies[0]) == {}


def test_a_tracker_syncs_a_study_after_its_search_and_at_its_end(small: SweepSpec, record_url: str) -> None:
    class Counting(MemoryTracker):
        def __init__(self) -> None:
            super().__init__()
            self.marks: list[tuple[int, int]] = []

        def sync_study(self, study: Study) -> None:
            super().sync_study(study)
            num_scored = sum(trial.score is not None for trial in study.requested_final_trials)
            self.marks.append((len(study.requested_search_trials), num_scored))

    tracker = Counting()
    drive(Sweep.resume(small, StudyDatabase(record_url), tracker))
    assert tracker.marks == [(4, 0), (4, 2)]


def test_mlflow_has_the_page_the_images_the_figures_and_the_numbers(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    card = open_task(str(tmp_path / "data"), "demo/digits")
    tracker = tracker_for(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    drive(sweep)
    assert tracker.close() == 0, tracker.problem
    (study,) = sweep.studies
    client = MlflowClient(tracking_uri=mlflow_uri)
    assert study.search_table.mlflow_run is not None
    run = client.get_run(study.search_table.mlflow_run)
    assert run.data.tags[DESCRIPTION_TAG] == render_study_page(study)
    assert study.best is not None
    last = study.best.epochs[-1]
    scores = {name: last[name] for name in last if name.startswith(("val/", "train/loss"))}
    assert run.data.metrics == pytest.approx(study_summary_metrics(study) | scores)
    for name, value in scores.items():
        curve = [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        assert curve == [epoch[name] for epoch in study.best.epochs], value
    params = {name: str(value) for name, value in study.best.params.items()}
    assert params.items() <= run.data.params.items(), "the chosen params"
    assert (run.data.tags["state"], run.data.tags["trials"]) == (
        "complete",
        counts_text(study).removeprefix("trials: "),
    )
    assert run.inputs is not None
    assert [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs] == [
        ("demo/digits", card.fingerprint)
    ]
    figures = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "figures")}
    assert {"figures/learning_curves.png", "figures/params.png"} <= figures
    report = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    assert 'class="chart curves"' in report and 'class="leaderboard"' in report
    assert 'class="picture"' not in report, "the figures lie beside it"
    assert view_paths(mlflow_uri)[small.name].endswith("/runs?workflowType=machine_learning&viewStateShareKey=sptune")


def test_a_page_is_written_again_only_when_the_study_has_changed(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    tracker = tracker_for(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(url), tracker)
    drive(sweep)
    tracker.close()
    run_id = sweep.studies[0].search_table.mlflow_run
    assert run_id is not None
    client = MlflowClient(tracking_uri=mlflow_uri)

    def num_values() -> int:
        return len(client.get_metric_history(run_id, "test/accuracy"))

    before = num_values()
    second_tracker = tracker_for(small, tmp_path, mlflow_uri)
    Sweep.resume(small, StudyDatabase(url), second_tracker)
    assert (second_tracker.close(), num_values()) == (0, before)
    wider = small.model_copy(update={"final": small.final.model_copy(update={"seeds": [42, 44, 82]})})
    more = tracker_for(wider, tmp_path, mlflow_uri)
    drive(Sweep.resume(wider, StudyDatabase(url), more))
    assert (more.close(), num_values()) == (0, before + 1)
    assert "82:" in client.get_run(run_id).data.tags[DESCRIPTION_TAG]


def test_a_run_has_best_and_last_values_and_the_facts_of_its_worker(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    tracker = tracker_for(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    trial = sweep.next_trial()
    assert trial is not None
    facts = {"host": "node-7", "device": "H200", "commit": "abc", "lock": "def", "correct": "0:"}
    for epoch, accuracy in enumerate([0.1, 0.7, *[0.4] * 7], start=1):
        sweep.on_epoch(trial.trial_id, epoch, {"train/loss": 1 / epoch, "val/accuracy": accuracy}, facts)
    tracker.close()
    client = MlflowClient(tracking_uri=mlflow_uri)
    run = client.get_run(str(sweep.studies[0].search_table.synced_run(0)[0]))
    assert (run.data.tags["best/val/accuracy"], run.data.metrics["val/accuracy"]) == ("0.7", 0.4)
    assert {name: run.data.tags[name] for name in ("host", "device", "commit", "lock")} == {
        name: facts[name] for name in ("host", "device", "commit", "lock")
    }
    assert "correct" not in run.data.tags, "which images it got right is no tag"
    assert (run.data.tags["group"], run.data.tags["phase"]) == ("demo", "search")


def test_a_final_trial_has_no_best_epoch(small: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(small, record_url)
    drive(sweep)
    final: Trial = dataclasses.replace(
        sweep.studies[0].requested_final_trials[0], last_metrics={"test/accuracy": 0.5, "train/loss": 1.0}
    )
    assert not any(name.startswith("best/") for name in outcome_tags(final))
