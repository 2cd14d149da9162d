"""What each kind of failure leads to: for its trial, its study, and the whole sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.drivers.replay import Clock
from orchestrator.report.failure_groups import group_failures
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.retry_policy import MAX_LOSSES
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome


def failure(cause: FailureCause, error: str = "OSError: broken") -> Failure:
    return Failure(cause=cause, error=f"{error}\n\nTraceback\n  line 1", seconds=2.0)


def fail_until(attempts: float, cause: FailureCause) -> Callable[[Trial], Failure | None]:
    """The first search trial of each study fails in its first attempts."""

    def fail(trial: Trial) -> Failure | None:
        fails = (trial.phase, trial.number) == ("search", 0) and trial.attempt <= attempts
        return failure(cause) if fails else None

    return fail


@pytest.mark.parametrize(
    ("cause", "gpus", "attempts", "state", "failures", "share"),
    [
        # Fails twice, then goes well.
        (FailureCause.LOST, 0, 2, TrialState.COMPLETE, 0, 1),
        (FailureCause.ERROR, 0, 2, TrialState.COMPLETE, 2, 1),
        (FailureCause.MEMORY, 0, 2, TrialState.COMPLETE, 2, 1),
        (FailureCause.MEMORY, 0.25, 2, TrialState.COMPLETE, 0, 4),
        (FailureCause.MEMORY, 0.5, 2, TrialState.COMPLETE, 1, 2),
        (FailureCause.MEMORY, 1, 2, TrialState.COMPLETE, 2, 1),
        (FailureCause.MEMORY, 2, 2, TrialState.COMPLETE, 2, 1),
        (FailureCause.DIVERGED, 1, 2, TrialState.FAILED, 0, 1),
        (FailureCause.INVALID, 1, 2, TrialState.FAILED, 0, 1),
        # Fails for ever.
        (FailureCause.LOST, 1, 99, TrialState.FAILED, 0, 1),
        (FailureCause.ERROR, 1, 99, TrialState.FAILED, 3, 1),
        (FailureCause.MEMORY, 0, 99, TrialState.FAILED, 3, 1),
        (FailureCause.MEMORY, 0.3, 99, TrialState.FAILED, 3, 4),
    ],
)
def test_a_failure_is_answered_by_its_cause(
    raw_study: dict[str, Any],
    record_url: str,
    cause: FailureCause,
    gpus: float,
    attempts: int,
    state: TrialState,
    failures: int,
    share: int,
) -> None:
    raw_study |= {"resources": {"gpus": gpus}, "search": {"trials": 2}}
    sweep = new_sweep(parse_spec(raw_study, "a test"), record_url)
    drive(sweep, fail=fail_until(attempts, cause))
    trial = sweep.studies[0].search_table.trials[0]
    assert (trial.state, trial.failures, trial.gpu_share_factor) == (state, failures, share)
    doublings = share.bit_length() - 1
    tries = {FailureCause.LOST: MAX_LOSSES, FailureCause.DIVERGED: 1, FailureCause.INVALID: 1}.get(
        cause, 1 + 2 + doublings
    )
    assert trial.attempt == min(attempts + 1, tries)
    assert trial.lost_seconds == 2.0 * min(attempts, tries), "the time of bad attempts is not forgotten"
    assert sweep.gpu_allocator.gpus_for(trial) == min(gpus * share, max(1, gpus)), (
        "never more than a whole GPU, unless asked for"
    )
    if state is TrialState.FAILED:
        assert (trial.cause, trial.error_summary) == (cause, "OSError: broken")
    else:
        assert (trial.cause, trial.error) == (None, None), "what passed is no error of the trial"


def test_workers_lost_with_an_epoch_between_them_are_not_held_against_the_trial(
    raw_study: dict[str, Any], record_url: str
) -> None:
    sweep = new_sweep(parse_spec(raw_study | {"pause_after": 99}, "a test"), record_url)
    first = sweep.next_trial()
    assert first is not None
    for event in enumerate(curve(first.config), start=1):
        for _ in range(MAX_LOSSES - 1):
            sweep.on_failure(first.trial_id, failure(FailureCause.LOST))
            again = sweep.next_trial()
            assert again is not None
            assert again.trial_id == first.trial_id, "what waits is first"
        sweep.on_epoch(first.trial_id, *event)
    trial = sweep.studies[0].search_table.trials[0]
    assert (trial.state, trial.attempt) == (TrialState.COMPLETE, 1 + 9 * (MAX_LOSSES - 1))


def test_bad_data_stops_its_study_at_once_and_no_other(raw_spec: dict[str, Any], record_url: str) -> None:
    raw_spec["tasks"] = ["demo/digits"]
    sweep = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    assigned = [sweep.next_trial() for _ in range(3)]
    broken, beside, _ = assigned
    assert broken is not None
    assert beside is not None
    sweep.on_failure(broken.trial_id, failure(FailureCause.INVALID, "ValueError: no such image"))
    stopped, other = sweep.studies
    assert stopped.search_table.stop_reason == "ValueError: no such image"
    assert sweep.summaries()[0].stop_reason == "ValueError: no such image"
    event = next(curve(beside.config))
    assert not sweep.on_epoch(beside.trial_id, 1, event), "what runs beside it in the study is interrupted"
    assert stopped.search_table.trials[1].state is TrialState.WAITING
    following = sweep.next_trial()
    assert following is not None
    assert following.study == other.plan.key
    sweep.close()

    later = new_sweep(sweep.spec, record_url)
    drive(later)
    stopped, other = later.studies
    assert (stopped.is_done, other.is_done, later.is_done) == (False, True, True)
    assert [trial.state for trial in stopped.search_table.trials] == [
        TrialState.FAILED, TrialState.WAITING, TrialState.WAITING
    ], "a later driver does not start it"  # fmt: skip

    (study, _) = load_studies(sweep.spec, StudyDatabase(record_url))
    study.reset_trials(lambda trial: trial.state is TrialState.FAILED)
    assert study.search_table.stop_reason is None
    mended = new_sweep(sweep.spec, record_url)
    drive(mended)
    assert all(study.is_done for study in mended.studies), "until its failed trial is to be run again"


@pytest.mark.parametrize("phase", ["search", "final"])
def test_a_study_is_stopped_in_either_phase(raw_study: dict[str, Any], record_url: str, phase: str) -> None:
    sweep = new_sweep(parse_spec(raw_study, "a test"), record_url)
    drive(sweep, fail=lambda trial: failure(FailureCause.INVALID) if trial.phase == phase else None)
    (study,) = sweep.studies
    failed = [trial for trial in study.trials if trial.state is TrialState.FAILED]
    assert [(trial.phase, trial.number) for trial in failed] == [(phase, 0)], "the next would fail of the same"
    assert sweep.is_done
    assert sweep.halt is None, "a stopped study is no reason to pause the others"


def test_a_machine_that_takes_many_workers_with_it_pauses_nothing(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study["search"] |= {"max_concurrent": 8, "startup_trials": 8}
    sweep = new_sweep(parse_spec(raw_study | {"pause_after": 3}, "a test"), record_url)
    running = [trial for _ in range(8) if (trial := sweep.next_trial()) is not None]
    assert len(running) == 8
    for trial in running:
        sweep.on_failure(trial.trial_id, failure(FailureCause.LOST))
    assert sweep.halt is None
    drive(sweep)
    assert sweep.is_done
    assert {trial.attempt for trial in sweep.studies[0].search_table.trials} == {2}


@pytest.mark.parametrize("cause", [FailureCause.LOST, FailureCause.ERROR, FailureCause.MEMORY])
def test_failures_in_a_row_pause_the_sweep_which_goes_on_later(
    raw_study: dict[str, Any], record_url: str, tmp_path: Any, cause: FailureCause
) -> None:
    spec = parse_spec(raw_study | {"pause_after": 3, "retries": 0}, "a test")
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3, fail=lambda trial: failure(cause, "OSError: the disk is gone"))
    reason = f"paused: failures in a row ({cause.value}), the last: OSError: the disk is gone"
    assert sweep.halt is not None
    assert (sweep.halt.reason, sweep.halt.interrupt_running) == (reason, False)
    # One trial that loses its workers says nothing of the others, nor does another's first loss.
    enough = MAX_LOSSES + 2 if cause is FailureCause.LOST else 3
    assert sum(trial.attempt for trial in sweep.studies[0].trials) == enough, "no more than that is burnt"
    sweep.close()
    assert StudyDatabase(record_url).halt_reason("small") == reason
    (study,) = load_studies(spec, StudyDatabase(record_url))
    study.reset_trials(lambda trial: trial.state is TrialState.FAILED)
    later = new_sweep(spec, record_url)
    drive(later)
    plain = new_sweep(spec, f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    assert outcome(later) == outcome(plain)


@pytest.mark.parametrize(
    ("events", "pauses"),
    [
        (["0 OSError", "1 OSError", "2 OSError"], True),
        (["0 OSError", "0 OSError", "1 OSError"], True),
        (["0 OSError", "0 OSError", "0 OSError"], False),  # one trial alone says nothing of the others
        (["0 OSError", "1 KeyError", "2 OSError"], False),  # not the same
        (["0 OSError", "1 OSError", "epoch", "2 OSError"], False),  # something went well
        (["0 OSError", "1 OSError", "diverged", "2 OSError"], True),  # a result, which says nothing of the machine
        (["diverged", "diverged", "diverged"], False),
    ],
)
def test_only_a_row_of_like_failures_of_several_trials_pauses(
    raw_study: dict[str, Any], record_url: str, events: list[str], pauses: bool
) -> None:
    raw_study["search"] |= {"max_concurrent": 8}
    sweep = new_sweep(parse_spec(raw_study | {"pause_after": 3, "retries": 5}, "a test"), record_url)
    trials = [trial for trial in (sweep.next_trial() for _ in range(7)) if trial is not None]
    for event in events:
        number, _, kind = event.partition(" ")
        if event == "epoch":
            sweep.on_epoch(trials[3].trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5})
        elif event == "diverged":
            sweep.on_failure(trials.pop().trial_id, failure(FailureCause.DIVERGED, "TrainingDiverged: nan"))
        else:
            if not sweep.is_running(trials[int(number)].trial_id):
                sweep.next_trial()
            sweep.on_failure(trials[int(number)].trial_id, failure(FailureCause.ERROR, f"{kind}: trial {number}"))
    assert (sweep.halt is not None) is pauses


def test_a_trial_that_is_silent_for_too_long_is_named(raw_study: dict[str, Any], record_url: str) -> None:
    clock = Clock()
    spec = parse_spec(raw_study | {"lost_after_minutes": 2}, "a test")
    sweep = Sweep.resume(spec, StudyDatabase(record_url), MemoryTracker(), clock=clock)
    silent, heard, late = sweep.next_trial(), sweep.next_trial(), sweep.next_trial()
    assert silent is not None
    assert heard is not None
    assert late is not None
    clock.now = 100.0
    assert sweep.tick() == []
    sweep.on_start(late.trial_id)
    sweep.on_epoch(heard.trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5})
    clock.now = 121.0
    assert sweep.tick() == [silent.trial_id], "each epoch is a sign of life, and so is the start"
    sweep.on_failure(silent.trial_id, failure(FailureCause.LOST))
    assert sweep.tick() == [], "who ended is not awaited"


def test_what_was_held_against_a_trial_survives_the_driver(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"resources": {"gpus": 0.25}, "pause_after": 99}
    spec = parse_spec(raw_study, "a test")
    for cause, expected in [
        (FailureCause.ERROR, (TrialState.WAITING, 1, 0, 1)),
        (FailureCause.LOST, (TrialState.WAITING, 1, 1, 1)),
        (FailureCause.MEMORY, (TrialState.WAITING, 1, 1, 2)),
        (FailureCause.ERROR, (TrialState.WAITING, 2, 1, 2)),
        (FailureCause.LOST, (TrialState.WAITING, 2, 2, 2)),
        (FailureCause.ERROR, (TrialState.FAILED, 3, 2, 2)),
    ]:  # each time a driver that dies right after
        sweep = new_sweep(spec, record_url)
        trial = sweep.next_trial()
        assert trial is not None
        assert trial.number == 0
        sweep.on_failure(trial.trial_id, failure(cause))
        kept = new_sweep(spec, record_url).studies[0].search_table.trials[0]
        assert (kept.state, kept.failures, kept.losses, kept.gpu_share_factor) == expected
        assert (kept.cause, kept.error_summary) == (cause, "OSError: broken")


def test_failures_are_grouped_by_cause_and_kind_the_largest_first(raw_study: dict[str, Any], record_url: str) -> None:
    causes = {
        0: failure(FailureCause.ERROR, "OSError: disk 1"),
        1: failure(FailureCause.DIVERGED, "TrainingDiverged: nan"),
        2: failure(FailureCause.ERROR, "OSError: disk 2"),
        4: failure(FailureCause.LOST, "OSError: gone"),
    }
    sweep = new_sweep(parse_spec(raw_study | {"pause_after": 99}, "a test"), record_url)
    drive(sweep, fail=lambda trial: causes.get(trial.number) if trial.phase == "search" else None)
    found = [
        (group.cause, group.kind, [trial.number for trial in group.trials])
        for group in group_failures(sweep.studies[0].trials)
    ]
    assert found == [
        (FailureCause.ERROR, "OSError", [0, 2]),
        (FailureCause.DIVERGED, "TrainingDiverged", [1]),
        (FailureCause.LOST, "OSError", [4]),
    ]
    assert group_failures(sweep.studies[0].trials)[0].trace == ["Traceback", "  line 1"]


def lost_on(gpu: str) -> Failure:
    error = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    return Failure(cause=FailureCause.LOST, error=error, ends_process=True, lost_gpu=gpu)


def test_a_gpu_that_fails_three_times_in_a_row_pauses_the_sweep_and_is_named(
    raw_study: dict[str, Any], record_url: str
) -> None:
    sweep = new_sweep(parse_spec(raw_study | {"pause_after": 99}, "a test"), record_url)
    trial = sweep.next_trial()
    assert trial is not None
    epochs = enumerate(curve(trial.config), start=1)

    # Another GPU counts for itself, and an epoch that finishes on a GPU ends its series but no other.
    bad, other = "GPU 3 of node7", "GPU 3 of node8"
    for gpu in (bad, bad, other, None, bad):
        if gpu is None:
            sweep.on_epoch(trial.trial_id, *next(epochs), {"gpu": bad, "host": "node7"})
            continue
        sweep.on_failure(trial.trial_id, lost_on(gpu))
        assert sweep.halt is None
        assert sweep.next_trial() is not None
    sweep.on_epoch(trial.trial_id, *next(epochs), {"gpu": other})
    sweep.on_failure(trial.trial_id, lost_on(bad))
    assert sweep.halt is None and sweep.next_trial() is not None
    sweep.on_failure(trial.trial_id, lost_on(bad))

    assert sweep.halt is not None and not sweep.halt.interrupt_running
    assert sweep.halt.reason == (
        "paused: GPU 3 of node7 failed 3 times in a row, the last: AcceleratorError: CUDA error: an illegal memory "
        "access was encountered. Repair it, or start Ray there without it (CUDA_VISIBLE_DEVICES)"
    )
    waiting = sweep.studies[0].search_table.trials[0]
    assert waiting.state is TrialState.WAITING

    # It is remembered for `failures`, until the sweep goes on.
    sweep.close()
    database = StudyDatabase(record_url)
    assert database.halt_reason(sweep.spec.name) == sweep.halt.reason
    assert new_sweep(sweep.spec, record_url).next_trial() is not None
