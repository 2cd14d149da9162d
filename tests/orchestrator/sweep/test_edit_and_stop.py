"""A sweep that is edited or stopped: finished trials stay, contradictions are refused, and the outcome is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.errors import ConflictError
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import TrialState
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome

LR = {"type": "float", "low": 0.001, "high": 0.1, "log": True}
LENGTH = {"type": "choice", "values": [1, 5, 64]}
COUNT = {"type": "int", "low": 3, "high": 5}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("lr", LR, {**LR, "high": 30.0}),
        ("lr", LR, {**LR, "low": 1e-7}),
        ("prompt_length", COUNT, {**COUNT, "low": 1, "high": 60}),
        ("prompt_length", LENGTH, {**LENGTH, "values": [1, 5, 64, 2, 3, 4, 6]}),
        ("prompt_length", LENGTH, {**LENGTH, "values": [64, 5, 6, 1]}),
    ],
)
def test_in_a_wider_range_old_trials_stay_and_new_ones_use_it(
    raw_study: dict[str, Any], record_url: str, name: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    raw_study["space"][name] = before
    raw_study["search"] |= {"sampler": "random"}
    old = new_sweep(parse_spec(raw_study, "before"), record_url)
    drive(old)
    raw_study["space"][name] = after
    raw_study["search"]["trials"] = 20
    wider = new_sweep(parse_spec(raw_study, "after"), record_url)
    assert wider.studies[0].search_table.trials == old.studies[0].search_table.trials, (
        "finished trials are as they were"
    )
    drive(wider, workers=3)
    drawn = [trial.params[name] for trial in wider.studies[0].search_table.trials]
    news = [value for value in drawn[8:] if not _lies_in(before, value)]
    assert news, "new trials leave the old range"
    assert all(_lies_in(after, value) for value in drawn)
    again = new_sweep(parse_spec(raw_study, "after"), record_url)
    assert outcome(again) == outcome(wider), "and the record holds all of it"
    assert again.is_done


def _lies_in(dimension: dict[str, Any], value: Any) -> bool:
    return value in dimension["values"] if "values" in dimension else dimension["low"] <= value <= dimension["high"]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "grid"])
def test_every_sampler_goes_on_in_a_wider_space(raw_study: dict[str, Any], record_url: str, sampler: str) -> None:
    lr = {"type": "choice", "values": [0.001, 0.002]} if sampler == "grid" else LR
    raw_study["space"] = {"lr": lr, "prompt_length": COUNT}
    raw_study["fixed"]["prompt_init"] = "random"
    raw_study["search"] |= {"sampler": sampler, "trials": 6, "startup_trials": 2, "pruner": {"type": "none"}}
    drive(new_sweep(parse_spec(raw_study, "before"), record_url))
    raw_study["space"]["prompt_length"] = {**COUNT, "high": 50}
    raw_study["search"]["trials"] = 10
    wider = new_sweep(parse_spec(raw_study, "after"), record_url)
    drive(wider, workers=2)
    assert wider.is_done
    assert len(wider.studies[0].requested_search_trials) == 10


@pytest.mark.parametrize(
    ("place", "value", "difference"),
    [
        ("space.lr", {**LR, "high": 0.05}, "space.lr was {type: float, low: 0.001, high: 0.1, log: true}, "
         "is {type: float, low: 0.001, high: 0.05, log: true} (in demo/digits spt_deep vit_nano_patch4_32.mae "
         "train_size 1.0 and 3 more)"),
        ("space.lr", {**LR, "low": 1e-5, "high": 0.05}, "space.lr was"),
        ("space.lr", {"type": "float", "low": 0.001, "high": 0.1}, "space.lr was"),
        ("space.lr", {"type": "choice", "values": [0.001, 0.1]}, "space.lr was"),
        ("space.prompt_length", {**LENGTH, "values": [1, 5, 6]},
         "space.prompt_length was {type: choice, values: [1, 5, 64]}, is {type: choice, values: [1, 5, 6]} "
         "(in demo/digits spt_deep vit_nano_patch4_32.mae train_size 1.0 and 1 more)"),
        ("space.lr", {**LR, "high": 1.0, "when": {"prompt_init": ["random", "mean_pool"]}}, "space.lr was"),
        ("space.drop_path", {"type": "float", "low": 0.0, "high": 0.5}, "space.drop_path was not set, is {type: float"),
        ("search.sampler", "random", "search.sampler was tpe, is random"),
        ("search.transfer", 2, "search.transfer was 0, is 2"),
        ("search.pruner", {"type": "none"},
         "search.pruner was {type: asha, min_epochs: 1, reduction: 2}, is {type: none}"),
    ],
)  # fmt: skip
def test_what_is_not_wider_is_refused_and_said_once_for_all_studies(
    raw_spec: dict[str, Any], record_url: str, place: str, value: object, difference: str
) -> None:
    before = new_sweep(parse_spec(raw_spec, "before"), record_url)
    while (trial := before.next_trial()) is not None:
        before.on_epoch(trial.trial_id, 1, next(curve(trial.config)))
    part, name = place.split(".")
    raw_spec[part][name] = value
    edited = parse_spec(raw_spec, "after")
    with pytest.raises(ConflictError) as refused:
        new_sweep(edited, record_url)
    told = str(refused.value).splitlines()
    assert told[0] == "sweep small already has trials that were run under other settings:"
    assert difference in told[1]
    assert len(told) == 3, "one difference, told once, then the way out"
    assert told[2].startswith("Undo the edit, or give the spec another name.")


@pytest.mark.parametrize("events", [1, 7, 25])
def test_a_stopped_sweep_goes_on_and_ends_like_one_that_was_never_stopped(
    raw_study: dict[str, Any], tmp_path: Path, events: int
) -> None:
    spec = parse_spec(raw_study, "a test")
    plain = new_sweep(spec, f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    url = f"sqlite:///{tmp_path / 'stopped.db'}"
    sweep = new_sweep(spec, url)
    drive(sweep, workers=3, events=events)
    running = [t for s in sweep.studies for t in s.search_table.trials if t.state is TrialState.RUNNING]
    sweep.stop("stopped by a test")
    assert sweep.next_trial() is None, "nothing more is started"
    assert sweep.has_ended
    assert not sweep.is_done
    for trial in running:
        epoch = len(trial.epochs) + 1
        event = list(curve(trial.config))[epoch - 1]
        ends = epoch == trial.config.epochs
        assert not sweep.on_epoch(trial.trial_id, epoch, event), "and what runs is interrupted at its next epoch"
        now = sweep.studies[0].search_table.trials[trial.number]
        assert ends or now.state in (TrialState.WAITING, TrialState.PRUNED)
        assert (now.failures, now.losses, now.error, now.cause) == (0, 0, None, None), "an interruption is no failure"
        assert len(now.epochs) == epoch, "and the epoch is kept"
    sweep.close()
    assert StudyDatabase(url).halt_reason("small") == "stopped by a test"
    again = new_sweep(spec, url)
    assert again.halt is None
    assert StudyDatabase(url).halt_reason("small") is None, "a new driver has no reason to stop"
    drive(again, workers=2)
    assert outcome(again) == outcome(plain)


@pytest.mark.parametrize("events", [0, 1, 30])
def test_a_closed_sweep_leaves_nothing_running(raw_study: dict[str, Any], record_url: str, events: int) -> None:
    tracker = MemoryTracker()
    sweep = new_sweep(parse_spec(raw_study, "a test"), record_url, tracker)
    drive(sweep, workers=3, events=events)
    sweep.close()
    for summary in optuna.get_all_study_summaries(record_url):
        shown = optuna.load_study(study_name=summary.study_name, storage=record_url).trials
        assert all(trial.state is not optuna.trial.TrialState.RUNNING for trial in shown)
    assert all(trial.state is not TrialState.RUNNING for trial in tracker.runs.values()), "nor is it shown as such"


def test_a_halt_that_keeps_nothing_from_starting_is_none(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"search": {"trials": 1}, "final": {"seeds": [42]}}
    sweep = new_sweep(parse_spec(raw_study, "a test"), record_url)
    drive(sweep, events=9 + 8)
    final = sweep.studies[0].final_table.trials[0]
    sweep.stop("too late")
    sweep.on_epoch(final.trial_id, 9, {"train/loss": 1.0, "test/accuracy": 0.5})
    assert sweep.is_done
    assert sweep.halt is None


def test_final_trials_that_were_left_while_there_was_more_to_search_are_gone_on_with(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw_study["search"] |= {"sampler": "random"}
    url = f"sqlite:///{tmp_path / 'edited.db'}"
    sweep = new_sweep(parse_spec(raw_study, "before"), url)
    while (trial := sweep.next_trial()) is not None and trial.phase == "search":
        for event in enumerate(curve(trial.config), start=1):
            if not sweep.on_epoch(trial.trial_id, *event):
                break
    best = sweep.studies[0].best
    raw_study["search"]["trials"] = 9
    after = new_sweep(parse_spec(raw_study, "after"), url)
    drive(after)
    assert after.studies[0].best == best, "with this seed the new trial is not the best"
    assert after.is_done
    plain = new_sweep(after.spec, f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    assert outcome(plain) == outcome(after)
