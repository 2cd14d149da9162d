"""The commands around a sweep, on records made without training: status, failures, plan, resume, stop and rm."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from orchestrator.cli.lifecycle import _print_outcome, _rerun
from orchestrator.environment.home import Home, home_at
from orchestrator.launch.outcome import SweepOutcome
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.cost_model import CostModel
from orchestrator.sweep.halt import Halt
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from orchestrator.tracking.mlflow_runs import MlflowRuns
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from tests.orchestrator.conftest import RAW_SPEC, Sptune, drive
from trainer.run_folder import RunCard
from trainer.storage.files import write_bytes
from trainer.storage.integrity import pack_json
from trainer.storage.tensors import pack_tensors

DEEP, LINEAR = "demo/digits spt_deep vit_nano_patch4_32.mae 1", "demo/digits linear vit_nano_patch4_32.mae 1"
"""Keys of the studies, as the study database has them."""
DEEP_TEXT, LINEAR_TEXT = (f"{key.removesuffix(' 1')} train_size 1.0" for key in (DEEP, LINEAR))
"""Their names for people."""


def small_spec(raw: dict[str, Any]) -> SweepSpec:
    raw |= {"tasks": ["demo/digits"], "retries": 0, "final": {"seeds": [42]}}
    raw["fixed"]["epochs"] = 2
    raw["search"] |= {"trials": 3, "pruner": {"type": "none"}}
    return parse_spec(raw, "a test")


@pytest.fixture
def spec(raw_spec: dict[str, Any]) -> SweepSpec:
    return small_spec(raw_spec)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    return home_at(str(tmp_path / "home"))


def record_of(home: Home) -> StudyDatabase:
    return StudyDatabase(f"sqlite:///{home.database_file}")


def run(spec: SweepSpec, home: Home, events: int = 10**6) -> Sweep:
    """A sweep of which a trial failed, with folders and, if there is a database, in MLflow."""

    def fail(trial: Trial) -> Failure | None:
        for name, size in (("checkpoint.pt", 1000), ("prompt.safetensors", 500)):
            write_bytes(f"{home.trials_folder(spec.name)}/{trial.trial_id}/{name}", b"x" * size)
        broken = (trial.study, trial.phase, trial.number) == (DEEP, "search", 1)
        error = "OSError: [Errno 5] no disk\n\nTraceback (most recent call last):\n  in [here]"
        return Failure(cause=FailureCause.ERROR, error=error) if broken else None

    runs = MlflowRuns(home.mlflow_uri, spec.name, home.trials_folder(spec.name), home.mlflow_artifacts, home.data_root)
    tracker = MlflowTracker(runs, patience_s=5)
    sweep = Sweep.resume(spec, record_of(home), tracker)
    drive(sweep, fail=fail, events=events)
    sweep.close()
    assert tracker.close() == 0
    return sweep


@pytest.fixture(scope="module")
def finished_home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home with a finished sweep, for tests to copy."""
    home = home_at(str(tmp_path_factory.mktemp("finished")))
    shutil.copy(empty_mlflow, Path(home.root) / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(small_spec(copy.deepcopy(RAW_SPEC)), home)
    return Path(home.root)


@pytest.fixture
def finished(spec: SweepSpec, home: Home, finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished_home, home.root, dirs_exist_ok=True)
    sweep = Sweep.resume(spec, record_of(home), MemoryTracker())
    assert sweep.is_done
    sweep.close()
    return sweep


def shown_runs(home: Home, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = MlflowClient(tracking_uri=home.mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], run_view_type=view))


def studies_of(spec: SweepSpec, home: Home) -> list[Study]:
    return load_studies(spec, record_of(home))


def test_status_is_the_same_for_people_and_for_scripts(finished: Sweep, home: Home, sptune: Sptune) -> None:
    code, said, _ = sptune("status", "small", "--home", Path(home.root))
    assert code == 0
    assert "small: 8 of 8 trials finished" in said
    assert "no driver is running it" in said
    assert re.search(r"digits +spt_deep +4/4 +1 ", said.replace("demo/", "")), "one of them failed"
    code, said, _ = sptune("status", "small", "--home", Path(home.root), "--json")
    shown = json.loads(said)
    assert (shown["sweep"], shown["driver"], shown["halted"]) == ("small", None, None)
    assert (shown["checkpoint_bytes"], shown["trial_bytes"]) == (8 * 1000, 8 * 1500)
    deep, linear = shown["studies"]
    assert (deep["method"], linear["method"]) == ("spt_deep", "linear")
    assert (deep["planned"], deep["finished"], deep["failed"], deep["complete"]) == (4, 4, 1, 3)
    (study, _) = finished.studies
    assert study.best is not None
    assert deep["best_val_accuracy"] == study.best.score
    assert deep["test_accuracies"] == [study.final_table.trials[0].score]


def test_status_names_the_driver_and_why_the_last_one_stopped(
    spec: SweepSpec, home: Home, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(home)
    record.save_sweep("small", spec.model_dump(mode="json"))
    record.save_halt_reason("small", "paused: failures in a row")
    code, said, _ = sptune("status", "small", "--home", Path(home.root))
    assert "no driver is running it; paused: failures in a row" in said
    assert "small: 0 of 8 trials finished" in said
    lease = record.lease("small")
    lease.acquire("small")
    code, said, _ = sptune("status", "small", "--home", Path(home.root))
    assert code == 0
    assert f"driven by process {os.getpid()} on {socket.gethostname()} since 20" in said
    for command in (("rm", "small", "--yes"), ("resume", "small", "--inline")):
        code, _, complaint = sptune(*command, "--home", Path(home.root))
        assert (code, "is driven by process" in complaint) == (2, True), f"{command[0]} waits for no one"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, said, complaint = sptune("rm", "small", "--home", Path(home.root))
    assert (code, said) == (2, "") and "is driven by process" in complaint, "it does not ask what it would refuse"
    lease.release()


@pytest.mark.parametrize("command", ["status", "failures", "report", "resume", "stop", "rm"])
def test_a_sweep_that_is_not_there_is_told_with_the_nearest(
    spec: SweepSpec, home: Home, sptune: Sptune, command: str
) -> None:
    code, _, complaint = sptune(command, "smal", "--home", Path(home.root))
    assert (code, "holds no sweep; start one with `sptune launch demo`" in complaint) == (2, True)
    record_of(home).save_sweep("small", spec.model_dump(mode="json"))
    code, _, complaint = sptune(command, "smal", "--home", Path(home.root))
    assert (code, "did you mean 'small'?" in complaint) == (2, True)


def outcome_of(sweep: Sweep, home: Home, halt: Halt | None) -> SweepOutcome:
    return SweepOutcome(
        name=sweep.spec.name,
        home=home,
        studies=sweep.studies,
        halt=halt,
        was_finished=False,
        is_interrupted=False,
        stopped_by=None,
        num_rerun=0,
        num_unlogged=0,
        notes=(),
    )


def test_a_sweep_that_was_stopped_before_its_first_test_accuracy_says_what_is_kept_and_shows_no_report(
    spec: SweepSpec, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep.resume(spec, record_of(home), MemoryTracker())
    drive(sweep, events=3)
    sweep.stop("stopped by SIGINT")
    sweep.close()
    _print_outcome(outcome_of(sweep, home, sweep.halt), "")
    assert capsys.readouterr().out.splitlines() == [
        "stopped by SIGINT. Run `sptune resume small` to continue.",
        "Kept: 1 of 8 trials finished, and 1 unfinished with their last epochs. There is no test accuracy yet.",
    ]


def test_a_stopped_sweep_with_a_test_accuracy_shows_its_report(
    finished: Sweep, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_outcome(outcome_of(finished, home, Halt("stopped by SIGINT", interrupt_running=True)), "")
    said = capsys.readouterr().out
    assert "test accuracy, %" in said
    assert said.endswith("\nstopped by SIGINT. Run `sptune resume small` to continue.\n")


def test_the_end_of_a_launch_names_commands_that_work(
    finished: Sweep, home: Home, tmp_path: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPTUNE_HOME", home.root)
    code, said, _ = sptune("resume", "small", "--inline")
    assert code == 0 and "--home" not in said, "the environment names the home for the next command too"
    monkeypatch.delenv("SPTUNE_HOME")

    code, said, _ = sptune("resume", "small", "--inline", "--home", "home")
    assert code == 0
    steps = dict(line.split(": ", 1) for line in said.splitlines()[-3:])
    best = max(finished.studies, key=lambda study: (study.best and study.best.score) or 0.0)
    assert steps == {
        "Every trial in MLflow": "sptune ui --home home",
        "A page to send": "sptune report small --format html --home home",
        "Classes of your images": f"sptune predict small --where 'method={best.plan.method}' --home home IMAGE...",
    }

    _, *report = shlex.split(steps["A page to send"])
    code, said, _ = sptune(*report)
    assert code == 0 and said.startswith("<!doctype html>")
    # The trial was made without training, so the command finds it and no weights.
    _, *predict, _ = shlex.split(steps["Classes of your images"])
    Path("one.png").write_bytes(b"")
    code, _, complaint = sptune(*predict, "one.png")
    trial = best.final_table.trials[0]
    assert (code, trial.trial_id in complaint) == (2, True), complaint


def test_there_is_nothing_to_stop_without_a_driver(finished: Sweep, home: Home, sptune: Sptune) -> None:
    code, _, complaint = sptune("stop", "small", "--home", Path(home.root))
    assert (code, complaint) == (2, "error: no driver is running small: there is nothing to stop.\n")


def test_failures_are_told_with_all_that_helps(finished: Sweep, home: Home, sptune: Sptune) -> None:
    failed = finished.studies[0].search_table.trials[1]
    code, said, _ = sptune("failures", "small", "--home", Path(home.root))
    assert code == 0
    for line in (
        "1 × error: OSError: [Errno 5] no disk",
        "    Traceback (most recent call last):",
        "      in [here]",
        f"  {failed.trial_id}  {DEEP_TEXT}, search 1",
        f"  log:   {home.trials_folder('small')}/{failed.trial_id}/log.txt",
        f"  retry: sptune resume small --where 'error=OSError* cause=error' --home {home.root}",
    ):
        assert line in said.splitlines()
    (deep, _) = studies_of(finished.spec, home)
    deep.reset_trials(lambda trial: trial.state is TrialState.FAILED)
    assert sptune("failures", "small", "--home", Path(home.root))[1] == "no trial of small has failed.\n"
    deep.search_table.save_stop_reason("ValueError: no such image")
    said = sptune("failures", "small", "--home", Path(home.root))[1]
    assert f"stopped {DEEP_TEXT}: ValueError: no such image" in said


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (("--where", "tasc=x"), "tasc: 'tasc' is not something a trial has; did you mean 'task'?"),
        (("--where", "error=KeyError*"), "no failed trial of small matches; `sptune failures small` lists them."),
        (("--trial", "ffff"), "no failed trial of small matches; `sptune failures small` lists them."),
    ],
)
def test_nothing_is_resumed_that_was_not_meant(
    finished: Sweep, home: Home, sptune: Sptune, choice: tuple[str, str], problem: str
) -> None:
    before = [study.trials for study in studies_of(finished.spec, home)]
    code, _, complaint = sptune("resume", "small", *choice, "--home", Path(home.root), "--inline")
    assert (code, problem in complaint) == (2, True)
    assert [study.trials for study in studies_of(finished.spec, home)] == before
    assert record_of(home).lease("small").holders() == [], "and nobody holds it"


def test_a_complete_trial_that_is_named_runs_again_only_if_its_results_are_damaged_or_missing(
    finished: Sweep, tmp_path: Path
) -> None:
    trial = next(trial for trial in finished.studies[0].search_table.trials if trial.state is TrialState.COMPLETE)
    named = _rerun(False, [trial.trial_id], None, lambda: str(tmp_path))
    all_failed = _rerun(True, None, None, lambda: str(tmp_path))
    assert named is not None and all_failed is not None
    assert named.matches(trial) and not all_failed.matches(trial), "there is no file of it"

    # Otherwise its first epoch would make it complete, before the worker has written anything.
    assert len(trial.reset().epochs) == trial.config.epochs - 1
    assert trial.reset(discard_progress=True).epochs == ()

    card = RunCard(
        config=trial.config,
        class_names=["one"],
        backbone_sha256="",
        learnt_from="",
        scored_on="",
        protocol="",
        learnable={},
        prototypes_seconds=0.0,
        metrics={},
    )
    table = io.BytesIO()
    pq.write_table(pa.table({"correct": [True]}), table)
    contents = {
        "card.json": pack_json(card.to_values()),
        "prompt.safetensors": pack_tensors({}),
        "predictions.parquet": table.getvalue(),
    }
    for name, content in contents.items():
        write_bytes(tmp_path / trial.trial_id / name, content)
    assert not named.matches(trial)

    for name, content in contents.items():
        write_bytes(tmp_path / trial.trial_id / name, content[:-9])
        assert named.matches(trial), name
        write_bytes(tmp_path / trial.trial_id / name, content)


def test_resume_failed_goes_on_where_nothing_has_failed(
    spec: SweepSpec, home: Home, sptune: Sptune, empty_mlflow: Path
) -> None:
    shutil.copy(empty_mlflow, Path(home.root) / "mlflow.db")
    drive(Sweep.resume(spec, record_of(home), MemoryTracker()))
    code, said, complaint = sptune("resume", "small", "--failed", "--home", Path(home.root), "--inline")
    assert (code, complaint) == (0, "")
    assert "0 failed trials of small were run again.\nsmall is finished; nothing to run." in said


@pytest.mark.parametrize(
    ("gpus", "precision", "count"),
    [(1, None, "4 of 4"), (0.5, "fp32", "4 of 4"), ("auto", "tf32", ""), (1, "bf16", ""), (0, "fp32", "")],
)
def test_plan_says_in_words_what_fp32_costs_on_a_gpu_and_what_sharing_one_needs(
    gpus: float | str,
    precision: str | None,
    count: str,
    tmp_path: Path,
    sptune: Sptune,
    raw_spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fixed = raw_spec["fixed"] | ({"precision": precision} if precision else {})
    raw = raw_spec | {"fixed": fixed, "resources": {"gpus": gpus, "cpus": 1}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw))
    code, said, _ = sptune("plan", tmp_path / "small.yaml", "--home", tmp_path / "home", "--workers", "1")
    assert code == (1 if gpus else 0), "the table is shown whether or not this machine has a GPU"
    warning = f"{count} studies train in fp32, in which a GPU is much slower than in bf16; `precision: bf16` in `fixed`"
    assert (warning in " ".join(said.split())) == bool(count) == ("much slower" in said)
    assert ("trials that share a GPU take turns unless MPS runs on its node" in said) == (gpus in (0.5, "auto"))


def test_plan_says_what_is_done_and_what_the_rest_costs(
    spec: SweepSpec, home: Home, tmp_path: Path, sptune: Sptune, raw_spec: dict[str, Any]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw_spec))
    plan = ("plan", tmp_path / "small.yaml", "--home", Path(home.root), "--workers", "2")
    code, said, _ = sptune(*plan)
    assert code == 0
    assert "2 studies, 6 search trials, 2 final trials, each on 1 CPU and 0 GPU; 0 are finished" in said
    assert "no estimate: nothing like it was run in this home; --calibrate times a short trial of each." in said
    assert home.database_file is not None
    assert not home.database_file.exists(), "and nothing is made"
    record_of(home).save_sweep("small", spec.model_dump(mode="json"))
    sweep = Sweep.resume(
        spec,
        record_of(home),
        MlflowTracker(MlflowRuns("sqlite:////dev/null/x.db", "small", "", None, ""), patience_s=0),
    )
    trial = sweep.next_trial()
    assert trial is not None
    told = {
        "train/loss": 1.0,
        "val/accuracy": 0.5,
        "epoch/seconds": 8.0,
        "memory/peak_gb": 2.0,
        "memory/device_gb": 8.0,
    }
    for epoch in (1, 2):
        sweep.on_epoch(trial.trial_id, epoch, told)
    CostModel.load(home.cost_model_file).update(sweep.studies, home.data_root)
    sweep.close()
    said = sptune(*plan)[1]
    assert "each on 1 CPU and 0 GPU; 1 is finished" in said
    # 0.01 s an image: two more search trials of 16 s and a final one of 20 s, on two workers.
    assert (
        "at most 0:52 of work, 0:26 on 2 workers; not counted, because nothing like it was run: 1 of 2 studies" in said
    )
    assert (
        "memory of spt_deep vit_nano_patch4_32.mae: 2.0 GB a trial, 50% of the memory for all trials at once: fits"
        in said
    )
    assert re.search(r"linear .* 3 +1 +0 +\?", said)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw_spec | {"fixed": {"epochs": 3, "warmup_epochs": 1}}))
    code, _, complaint = sptune(*plan)
    assert code == 2 and "fixed.epochs was 2, is 3" in complaint, "and what launch would refuse"


def test_rm_forgets_a_trial_in_the_record_in_mlflow_and_on_disk(finished: Sweep, home: Home, sptune: Sptune) -> None:
    gone = finished.studies[0].search_table.trials[2]
    runs = shown_runs(home)
    database = StudyDatabase(home.database_url)
    database.save_notified("small", ["an end"])
    code, said, _ = sptune("rm", "small", "--trial", gone.trial_id[:8], "--yes", "--home", Path(home.root))
    assert (code, said) == (0, "deleted 1 trial of small.\n")
    assert database.notified("small") == [], "there will be another end to tell"
    database.close()
    deep, linear = studies_of(finished.spec, home)
    assert deep.search_table.trials[2] == gone.reset(discard_progress=True)
    assert [deep.search_table.trials[number] for number in (0, 1)] == finished.studies[0].search_table.trials[:2]
    assert linear.trials == finished.studies[1].trials
    assert not Path(home.trials_folder("small"), gone.trial_id).exists()
    assert len([*Path(home.trials_folder("small")).iterdir()]) == 7
    left = {run.info.run_id for run in shown_runs(home)}
    removed = [run for run in runs if run.info.run_id not in left]
    assert [run.data.tags["trial_id"] for run in removed] == [gone.trial_id]
    artifacts = Path(home.root, "mlartifacts", *Path(removed[0].info.artifact_uri).parts[-3:])
    assert artifacts.parent.parent.is_dir() and not artifacts.parent.exists(), "with its artifacts"
    again = run(finished.spec, home)
    assert again.studies[0].search_table.trials[2].score == gone.score, "and run again it is what it was"
    assert len(shown_runs(home)) == len(runs)


@pytest.mark.parametrize("pattern", ["*linear*", LINEAR, LINEAR_TEXT])
def test_rm_forgets_a_study_and_no_other(finished: Sweep, home: Home, sptune: Sptune, pattern: str) -> None:
    code, said, _ = sptune("rm", "small", "--study", pattern, "--yes", "--home", Path(home.root))
    assert (code, said) == (0, "deleted 1 study of small with 4 trials.\n")
    deep, linear = studies_of(finished.spec, home)
    assert deep.trials == finished.studies[0].trials
    assert linear.trials == []
    assert {run.data.tags["method"] for run in shown_runs(home)} == {"spt_deep"}
    assert len([*Path(home.trials_folder("small")).iterdir()]) == 4
    assert sptune("status", "small", "--home", Path(home.root))[1].count("4 of 8 trials finished") == 1


def test_rm_forgets_a_whole_sweep(finished: Sweep, home: Home, sptune: Sptune) -> None:
    code, said, _ = sptune("rm", "small", "--yes", "--home", Path(home.root))
    assert (code, said) == (0, "deleted 2 studies of small with 8 trials.\n")
    assert shown_runs(home) == []
    assert not (Path(home.root) / "sweeps" / "small").exists()
    assert not (Path(home.root) / "mlartifacts" / "small").exists()
    assert sptune("status", "small", "--home", Path(home.root))[2].endswith(
        "start one with `sptune launch demo`, or name another with --home.\n"
    )
    assert record_of(home)._storage.get_all_studies() == []


def test_rm_that_was_interrupted_can_be_said_again(finished: Sweep, home: Home, sptune: Sptune) -> None:
    client = MlflowClient(tracking_uri=home.mlflow_uri)
    for shown in shown_runs(home)[:3]:
        client.delete_run(shown.info.run_id)  # so far it came
    (deep, _) = studies_of(finished.spec, home)
    deep.search_table.save_synced_run(0, "f" * 32, TrialState.COMPLETE)  # a run that `mlflow gc` has removed for good
    assert sptune("rm", "small", "--yes", "--home", Path(home.root))[0] == 0
    assert len(shown_runs(home)) <= 1, "but the one whose number the record has lost"


def test_rm_asks_first_and_refuses_what_it_does_not_know(
    finished: Sweep, home: Home, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [study.trials for study in studies_of(finished.spec, home)]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, said, _ = sptune("rm", "small", "--where", "phase=final", "--home", Path(home.root))
    assert (code, "Delete 2 trials of small? This cannot be undone. [y/N]" in said) == (1, True)
    # A script has nobody who answers.
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, complaint = sptune("rm", "small", "--where", "phase=final", "--home", Path(home.root))
    assert (code, "nothing was deleted. Where nobody can answer, add --yes" in complaint) == (2, True)
    for choice, problem in [
        (("--study", "vtab*"), f"no study of small matches 'vtab*'; there are: {DEEP_TEXT}, {LINEAR_TEXT}."),
        (("--study", "*", "--trial", "a"), "--study deletes whole studies; use it without --trial and --where."),
        (("--trial", "ffff"), "no trial of small matches; `sptune status small` shows what there is."),
        (("--where", "stat=x"), "did you mean 'state'?"),
        (
            ("--where", "method=spt_dep phase=final"),
            "'spt_dep' is not a method of this sweep; did you mean 'spt_deep'?",
        ),
    ]:
        code, _, complaint = sptune("rm", "small", *choice, "--yes", "--home", Path(home.root))
        assert (code, problem in complaint) == (2, True)
    assert [study.trials for study in studies_of(finished.spec, home)] == before
