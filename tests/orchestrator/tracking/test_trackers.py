"""One contract for both trackers, and what MLflow has of a sweep."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker, Tracker
from orchestrator.tracking.mlflow_projection import step_times, trial_metrics, trial_tags
from orchestrator.tracking.mlflow_runs import MlflowRuns
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from tests.orchestrator.conftest import RAW_SPEC, drive
from trainer.storage.files import write_bytes


@pytest.fixture
def sweep_name(request: pytest.FixtureRequest) -> str:
    return "".join(c if c.isalnum() else "-" for c in request.node.name.lower())


@pytest.fixture
def small(raw_spec: dict[str, Any], sweep_name: str) -> SweepSpec:
    raw_spec |= {"name": sweep_name, "tasks": ["demo/digits"]}
    raw_spec["search"] |= {"trials": 4, "max_concurrent": 2}
    return parse_spec(raw_spec, "a test")


class Seen(Protocol):
    """What a tracker has: for each trial id its state, params and the number of its epochs."""

    def __call__(self) -> dict[str, tuple[str, dict[str, str], int]]: ...


def mlflow_runs(uri: str, sweep: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


class TrackerContract:
    """What every tracker does; the subclass makes one."""

    def make(self, spec: SweepSpec, home: Path, uri: str) -> tuple[Tracker, Seen]:
        raise AssertionError("a subclass makes the tracker")

    def test_every_trial_is_logged_once_in_its_true_state(
        self, small: SweepSpec, tmp_path: Path, mlflow_uri: str
    ) -> None:
        tracker, seen = self.make(small, tmp_path, mlflow_uri)
        database = StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}")
        sweep = Sweep.resume(small, database, tracker)
        drive(sweep, workers=2, fail=_fail_second)
        assert tracker.close() == 0
        trials = [
            t for s in sweep.studies for t in (*s.search_table.trials, *s.final_table.trials) if t.duplicate_of is None
        ]
        assert {trial.state for trial in trials} >= {TrialState.COMPLETE, TrialState.FAILED}
        assert seen() == {
            t.trial_id: (t.state.value, {k: str(v) for k, v in dataclasses.asdict(t.config).items()}, len(t.epochs))
            for t in trials
        }

    def test_syncing_again_changes_nothing(self, small: SweepSpec, tmp_path: Path, mlflow_uri: str) -> None:
        tracker, seen = self.make(small, tmp_path, mlflow_uri)
        sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
        drive(sweep)
        before = (tracker.close(), seen())
        second, _ = self.make(small, tmp_path, mlflow_uri)
        for study in sweep.studies:
            second.open_study(study)
            for table in (study.search_table, study.final_table):
                for trial in table.trials:
                    if trial.duplicate_of is None:
                        second.sync(trial, table)
        assert (second.close(), seen()) == before or isinstance(tracker, MemoryTracker)


class TestMemoryTracker(TrackerContract):
    def make(self, spec: SweepSpec, home: Path, uri: str) -> tuple[Tracker, Seen]:
        tracker = MemoryTracker()
        return tracker, lambda: {
            trial_id: (
                trial.state.value,
                {k: str(v) for k, v in dataclasses.asdict(trial.config).items()},
                len(trial.epochs),
            )
            for trial_id, trial in tracker.runs.items()
        }


class TestMlflowTracker(TrackerContract):
    def make(self, spec: SweepSpec, home: Path, uri: str) -> tuple[Tracker, Seen]:
        runs = MlflowRuns(uri, spec.name, str(home / "trials"), (home / "artifacts").as_uri(), str(home / "data"))
        tracker = MlflowTracker(runs, patience_s=5)

        def seen() -> dict[str, tuple[str, dict[str, str], int]]:
            children = [run for run in mlflow_runs(uri, spec.name) if "trial_id" in run.data.tags]
            client = MlflowClient(tracking_uri=uri)
            shown = {}
            for run in children:
                steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
                assert steps == [*range(1, len(steps) + 1)], "each epoch once, in order"
                shown[run.data.tags["trial_id"]] = (run.data.tags["state"], dict(run.data.params), len(steps))
            assert len(shown) == len(children), "one run a trial"
            return shown

        return tracker, seen


def _fail_second(trial: Trial) -> Failure | None:
    failing = trial.phase == "search" and trial.number == 1
    return (
        Failure(error="TrainingDiverged: train/loss became nan\n\nTraceback", cause=FailureCause.DIVERGED)
        if failing
        else None
    )


def test_mlflow_has_a_parent_run_for_each_study_and_the_outcome_of_each_trial(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    drive(sweep, workers=2, fail=_fail_second)
    best = sweep.studies[0].best
    tracker.close()
    runs = mlflow_runs(mlflow_uri, small.name)
    parents = {run.info.run_id: run for run in runs if run.data.tags["phase"] == "study"}
    assert {run.data.tags["study"] for run in parents.values()} == {plan.key for plan in plan_sweep(small).studies}
    assert {run.info.run_name for run in parents.values()} == {"demo/digits spt_deep", "demo/digits linear"}
    children = [run for run in runs if run.info.run_id not in parents]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == set(parents)
    status = Counter((run.data.tags["state"], run.info.status) for run in children)
    assert set(status) <= {("complete", "FINISHED"), ("pruned", "FINISHED"), ("failed", "FAILED")}
    assert status["failed", "FAILED"] == 2
    failed = next(run for run in children if run.info.status == "FAILED")
    assert failed.data.tags["error"] == "TrainingDiverged: train/loss became nan"
    assert best is not None
    shown = next(run for run in children if run.data.tags["trial_id"] == best.trial_id)
    assert shown.data.metrics["val/accuracy"] == best.score


def test_artifacts_are_in_the_run_of_their_trial(small: SweepSpec, tmp_path: Path, mlflow_uri: str) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    trial = sweep.next_trial()
    assert trial is not None
    kept = {"prototypes.safetensors", "prompt.safetensors", "predictions.parquet", "card.json"}
    for name in (*kept, "checkpoint.pt"):
        write_bytes(tmp_path / "trials" / trial.trial_id / name, name.encode())
    for epoch in range(1, 10):
        sweep.on_epoch(trial.trial_id, epoch, {"train/loss": 1.0, "val/accuracy": 0.5})
    tracker.close()
    client = MlflowClient(tracking_uri=mlflow_uri)
    run = next(run for run in mlflow_runs(mlflow_uri, small.name) if run.data.tags.get("trial_id") == trial.trial_id)
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == kept, "and not the checkpoint, which only serves to resume"
    for name in kept:
        assert Path(client.download_artifacts(run.info.run_id, name, str(tmp_path))).read_bytes() == name.encode()


def test_values_before_the_first_step_are_logged_at_step_0(small: SweepSpec, tmp_path: Path, mlflow_uri: str) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    first = {"train/loss": 2.0, "val/accuracy": 0.4, "nmi/layer_00": 0.2, "initial/nmi/layer_00": 0.1}
    # A second driver continues the run and hears the first epochs again: what is logged is not logged again.
    for num_epochs in (2, 3):
        tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
        sweep = Sweep.resume(small, StudyDatabase(url), tracker)
        trial = sweep.next_trial()
        assert trial is not None
        for epoch in range(1, num_epochs + 1):
            later = {"train/loss": 1.0, "val/accuracy": 0.5, "nmi/layer_00": 0.2 + epoch / 10}
            sweep.on_epoch(trial.trial_id, epoch, first if epoch == 1 else later)
        assert tracker.close() == 0
    assert trial is not None
    client = MlflowClient(tracking_uri=mlflow_uri)
    (run,) = (run for run in mlflow_runs(mlflow_uri, small.name) if run.data.tags.get("trial_id") == trial.trial_id)
    history = client.get_metric_history(run.info.run_id, "nmi/layer_00")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.5)]
    assert run.data.metrics["nmi/layer_00"] == 0.5, "MLflow's tables show the last value"
    assert not any(name.startswith("initial/") for name in run.data.metrics)


def test_epochs_of_a_resumed_trial_come_after_those_that_mlflow_has(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    # Each epoch took 1,000 s: dated back, the second of the later ones would come before the first of all.
    metrics = {"train/loss": 1.0, "val/accuracy": 0.5, "epoch/seconds": 1000.0}
    for num_epochs in (1, 3):
        tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
        sweep = Sweep.resume(small, StudyDatabase(url), tracker)
        trial = sweep.next_trial()
        assert trial is not None
        sweep.on_epochs(trial.trial_id, [Epoch(epoch=n, metrics=metrics) for n in range(1, num_epochs + 1)])
        assert tracker.close() == 0
    assert trial is not None
    (run,) = (run for run in mlflow_runs(mlflow_uri, small.name) if run.data.tags.get("trial_id") == trial.trial_id)
    history = MlflowClient(tracking_uri=mlflow_uri).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3], "MLflow orders them by time"


@pytest.mark.parametrize(
    "events", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(23, marks=pytest.mark.slow)]
)
def test_a_driver_that_dies_leaves_no_second_run_and_no_gap(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str, events: int
) -> None:
    contract = TestMlflowTracker()
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    for _ in range(3):
        tracker, _ = contract.make(small, tmp_path, mlflow_uri)
        drive(Sweep.resume(small, StudyDatabase(url), tracker), workers=2, events=events)
        tracker.close()
    # A driver may die after it created a run and before it saved the id: MLflow has the run, the log has not.
    database = StudyDatabase(url)
    for table, _ in database.load_tables(small.name, plan_sweep(small).studies):
        for trial in table.trials:
            if table.synced_run(trial.number)[0] is not None:
                table._save_attribute(f"mlflow/{trial.number}", [None, None])
    tracker, seen = contract.make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(url), tracker)
    drive(sweep, workers=2)
    assert tracker.close() == 0
    trials = [
        t for s in sweep.studies for t in (*s.search_table.trials, *s.final_table.trials) if t.duplicate_of is None
    ]
    assert {trial_id: epochs for trial_id, (_, _, epochs) in seen().items()} == {
        t.trial_id: len(t.epochs) for t in trials
    }


def test_what_mlflow_missed_while_it_was_away_is_logged_at_the_next_launch(tmp_path: Path, mlflow_uri: str) -> None:
    spec = parse_spec(
        {
            **RAW_SPEC,
            "name": "away",
            "tasks": ["demo/digits"],
            "methods": ["linear"],
            "space": {"lr": RAW_SPEC["space"]["lr"]},
        },
        "a test",
    )
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    away = MlflowRuns("sqlite:////dev/null/mlflow.db", spec.name, str(tmp_path), None, str(tmp_path))
    nowhere = MlflowTracker(away, patience_s=0)
    sweep = Sweep.resume(spec, StudyDatabase(url), nowhere)
    drive(sweep)
    num_unlogged = nowhere.close()
    trials = {t.trial_id for s in sweep.studies for t in (*s.search_table.trials, *s.final_table.trials)}
    assert num_unlogged == len(trials) + len(sweep.studies)
    assert nowhere.problem, "the reason is kept"
    tracker, seen = TestMlflowTracker().make(spec, tmp_path, mlflow_uri)
    relaunched = Sweep.resume(spec, StudyDatabase(url), tracker)
    assert relaunched.is_done
    assert (tracker.close(), len(seen())) == (0, len(trials))


def test_mlflow_can_be_opened_before_there_is_anything_to_log(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    assert isinstance(tracker, MlflowTracker)
    tracker.open()
    assert tracker.close() == 0
    assert MlflowClient(tracking_uri=mlflow_uri).get_experiment_by_name(small.name) is not None


def test_an_open_that_fails_is_no_problem(small: SweepSpec, tmp_path: Path) -> None:
    away = MlflowTracker(MlflowRuns("sqlite:////dev/null/mlflow.db", small.name, str(tmp_path), None, str(tmp_path)))
    away.open()
    assert (away.close(), away.problem) == (0, None)


def test_a_trial_result_cannot_be_in_an_impossible_state(spec: SweepSpec) -> None:
    config = plan_sweep(spec).studies[1].search_config({"lr": 0.01}, 0)
    running = Trial(
        trial_id=config.fingerprint(),
        study="s",
        phase="search",
        number=0,
        params={"lr": 0.01},
        config=config,
        state=TrialState.RUNNING,
    )
    for impossible, text in (
        ({"state": TrialState.COMPLETE}, "must have a finite score, got None"),
        ({"state": TrialState.COMPLETE, "score": float("nan")}, "must have a finite score, got nan"),
        ({"state": TrialState.FAILED}, "must have an error"),
        ({"state": TrialState.PRUNED, "score": 0.5}, "must have no score, got 0.5"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(running, **impossible)


def test_a_run_that_a_person_deletes_while_it_is_logged_comes_back_and_blocks_no_other(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    runs = MlflowRuns(
        mlflow_uri, small.name, str(tmp_path / "trials"), (tmp_path / "artifacts").as_uri(), str(tmp_path)
    )
    tracker = MlflowTracker(runs, patience_s=2)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    first, second = sweep.next_trial(), sweep.next_trial()
    assert first is not None and second is not None
    search = sweep.studies[0].search_table
    end = time.monotonic() + 30
    while None in (search.synced_run(0)[0], search.synced_run(1)[0]) and time.monotonic() < end:
        time.sleep(0.05)
    client = MlflowClient(tracking_uri=mlflow_uri)
    client.delete_run(str(search.synced_run(0)[0]))
    for trial in (first, second):
        sweep.on_epoch(trial.trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5})
    assert (tracker.close(), tracker.problem) == (0, None)
    for number in (0, 1):
        run_id = str(search.synced_run(number)[0])
        assert len(client.get_metric_history(run_id, "train/loss")) == 1
        assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_what_mlflow_accepted_before_it_failed_is_not_logged_twice(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    trial = sweep.next_trial()
    assert trial is not None and isinstance(tracker, MlflowTracker)
    end = time.monotonic() + 30
    while tracker._pending and time.monotonic() < end:
        time.sleep(0.05)
    engine = sqlalchemy.create_engine(mlflow_uri)
    # Metrics can be logged, tags cannot.
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE tags RENAME TO gone"))
    sweep.on_epoch(trial.trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5}, {"gpu": "none"})
    while tracker.problem is None and time.monotonic() < end:
        time.sleep(0.05)
    assert tracker.problem is not None and "no such table: tags" in tracker.problem
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE gone RENAME TO tags"))
    assert tracker.close() == 0
    [run] = [run for run in mlflow_runs(mlflow_uri, small.name) if "trial_id" in run.data.tags]
    assert len(MlflowClient(tracking_uri=mlflow_uri).get_metric_history(run.info.run_id, "train/loss")) == 1


def test_a_driver_that_dies_before_it_saves_the_id_of_a_run_leaves_one_run(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(url), tracker)
    trial = sweep.next_trial()
    assert trial is not None
    tracker.close()
    sweep.studies[0].search_table._save_attribute("mlflow/0", [None, None])
    second, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    Sweep.resume(small, StudyDatabase(url), second)
    assert second.close() == 0
    runs = mlflow_runs(mlflow_uri, small.name)
    assert sum(run.data.tags.get("trial_id") == trial.trial_id for run in runs) == 1


def test_a_study_that_chooses_another_trial_has_the_params_and_curves_of_that_one_alone(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    runs, chosen = [], []
    for trials in (1, 8):
        spec = small.model_copy(update={"search": small.search.model_copy(update={"trials": trials})})
        tracker, _ = TestMlflowTracker().make(spec, tmp_path, mlflow_uri)
        sweep = Sweep.resume(spec, StudyDatabase(url), tracker)
        drive(sweep, workers=2)
        assert tracker.close() == 0
        study = sweep.studies[0]
        assert study.best is not None
        chosen.append(study.best)
        runs.append(str(study.search_table.mlflow_run))

    assert chosen[0].trial_id != chosen[1].trial_id and runs[0] != runs[1], "MLflow's params never change"
    every = mlflow_runs(mlflow_uri, small.name)
    (parent,) = (run for run in every if run.data.tags.get("study") == study.plan.key)
    assert parent.info.run_id == runs[1]
    assert {name: parent.data.params[name] for name in chosen[1].params} == {
        name: str(value) for name, value in chosen[1].params.items()
    }
    curve = MlflowClient(tracking_uri=mlflow_uri).get_metric_history(runs[1], "val/accuracy")
    assert [point.value for point in curve] == [epoch["val/accuracy"] for epoch in chosen[1].epochs]
    own = {trial.trial_id for trial in study.trials}
    children = [run for run in every if run.data.tags.get("trial_id") in own]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {runs[1]}
    assert len(children) == len(own)


def test_the_run_of_a_study_begins_with_its_first_trial_and_ends_with_its_last(
    small: SweepSpec, tmp_path: Path, mlflow_uri: str
) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    drive(sweep, fail=lambda _: time.sleep(0.02))
    assert tracker.close() == 0
    runs = mlflow_runs(mlflow_uri, small.name)
    for study in sweep.studies:
        (parent,) = (run for run in runs if run.data.tags.get("study") == study.plan.key)
        children = [run.info for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        first, last = min(info.start_time for info in children), max(info.end_time for info in children)
        assert (parent.info.start_time, parent.info.end_time) == (first, last)
        assert last - first >= 20 * len(children), "milliseconds"


def test_what_a_trial_has_once_makes_no_chart_of_one_dot(small: SweepSpec, tmp_path: Path, mlflow_uri: str) -> None:
    tracker, _ = TestMlflowTracker().make(small, tmp_path, mlflow_uri)
    sweep = Sweep.resume(small, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), tracker)
    drive(sweep)
    (study, *_) = sweep.studies
    final = study.requested_final_trials[0]
    seconds = {"epoch/seconds": 1.5, "memory/peak_gb": 2.0, "train/images_per_s": 30.0}
    first = {"train/loss": 1.0, "learnable/share": 0.01, "train/images": 64.0, "prototypes/seconds": 3.25} | seconds
    epochs = (first, {"train/loss": 0.5, "test/accuracy": 0.75, "test/accuracy_top5": 1.0} | seconds)
    trial = dataclasses.replace(final, epochs=epochs, last_metrics=epochs[0] | epochs[1])
    assert trial_metrics(trial.epochs) == {
        0: {"test/accuracy": 0.75, "test/accuracy_top5": 1.0},
        1: {"train/loss": 1.0} | {f"system/{name}": value for name, value in seconds.items()},
        2: {"train/loss": 0.5} | {f"system/{name}": value for name, value in seconds.items()},
    }, "MLflow draws a bar at step 0, and shows what the machine did on another page"
    assert [*trial_metrics(trial.epochs)] == [0, 1, 2], "who finds the last epoch knows that step 0 was logged"
    assert trial_metrics(trial.epochs, num_logged=2) == {}
    tags = trial_tags(trial)
    assert (tags["learnable/share"], tags["train/images"], tags["prototypes/seconds"]) == ("0.01", "64", "3.25")
    assert step_times(trial.epochs, 10_000) == {1: 8_500, 2: 10_000}, "epochs that are logged together keep their times"
