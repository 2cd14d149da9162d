"""Checkpoints are deleted when nothing needs them any more; those of trials that may resume, and all prompts, stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.checkpoint_retention import CheckpointRetention
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import drive
from trainer.storage.files import write_bytes


@pytest.mark.parametrize("keep", ["best", "final", "all"])
def test_checkpoints_stay_if_the_policy_keeps_them_or_the_trial_may_resume(
    raw_study: dict[str, Any], tmp_path: Path, keep: Any
) -> None:
    spec = parse_spec(raw_study | {"keep": keep, "retries": 0, "pause_after": 99}, "a test")
    trials = tmp_path / "trials"
    checkpoints = CheckpointRetention(str(trials), spec.keep)

    def fail(trial: Trial) -> Failure | None:
        for name in ("checkpoint.pt", "prompt.safetensors"):
            write_bytes(trials / trial.trial_id / name, b"x" * 100)
        cause = {1: FailureCause.DIVERGED, 2: FailureCause.ERROR}.get(trial.number) if trial.phase == "search" else None
        return cause and Failure(cause=cause, error=f"{cause.value}: broken")

    sweep = Sweep.resume(
        spec,
        StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"),
        MemoryTracker(),
        on_finish=checkpoints.delete_unneeded,
    )
    drive(sweep, workers=3, fail=fail)
    (study,) = sweep.studies
    kept = {trial.trial_id for trial in study.trials if (trials / trial.trial_id / "checkpoint.pt").exists()}
    finals = {trial.trial_id for trial in study.final_table.trials}
    retried = {trial.trial_id for trial in study.search_table.trials if trial.cause is FailureCause.ERROR}
    assert study.best is not None
    assert {trial.state for trial in study.search_table.trials} > {TrialState.PRUNED, TrialState.COMPLETE}
    expected = {
        "all": {trial.trial_id for trial in study.trials},
        "best": finals | retried | {study.best.trial_id},
        "final": finals | retried,
    }[keep]
    assert kept == expected
    assert all((trials / trial.trial_id / "prompt.safetensors").exists() for trial in study.trials)
    count, size, total = checkpoints.size()
    assert (count, size, total) == (len(kept), 100 * len(kept), 100 * (len(kept) + len(study.trials)))


def test_a_trial_that_is_interrupted_keeps_its_checkpoint(raw_study: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(raw_study | {"keep": "final"}, "a test")
    sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"), MemoryTracker())
    trial = sweep.next_trial()
    assert trial is not None
    write_bytes(tmp_path / "trials" / trial.trial_id / "checkpoint.pt", b"x")
    checkpoints = CheckpointRetention(str(tmp_path / "trials"), spec.keep)
    checkpoints.delete_unneeded(sweep.studies[0])
    sweep.close()
    checkpoints.delete_unneeded(sweep.studies[0])
    assert checkpoints.size() == (1, 1, 1)


def test_a_checkpoint_that_was_written_late_is_deleted_at_the_end(raw_study: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(raw_study | {"keep": "final"}, "a test")
    checkpoints = CheckpointRetention(str(tmp_path / "trials"), spec.keep)
    sweep = Sweep.resume(
        spec,
        StudyDatabase(f"sqlite:///{tmp_path / 'studies.db'}"),
        MemoryTracker(),
        on_finish=checkpoints.delete_unneeded,
    )
    drive(sweep, workers=3)
    (study,) = sweep.studies
    pruned = [trial.trial_id for trial in study.search_table.trials if trial.state is TrialState.PRUNED]
    for trial_id in (*pruned, study.final_table.trials[0].trial_id):
        write_bytes(tmp_path / "trials" / trial_id / "checkpoint.pt", b"late")
    checkpoints.delete_late(sweep.studies)
    assert pruned
    assert checkpoints.size() == (1, 4, 4), "the final trial's stays"


def test_without_trials_there_are_no_checkpoints(tmp_path: Path) -> None:
    assert CheckpointRetention(str(tmp_path / "nowhere"), "best").size() == (0, 0, 0)
