"""Kinds of devices: a study that mixes them says so, or stays on the kind of its first trials."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.spec.labels import study_text
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Trial, TrialState, wrong_device
from orchestrator.sweep.device_kinds import mixed_devices
from orchestrator.sweep.retry_policy import MAX_LOSSES
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome

A100 = {"device": "NVIDIA A100-SXM4-40GB", "host": "one"}
H200 = {"device": "NVIDIA H200", "host": "two"}
REFUSED = (
    "WrongDevice: resources.mix_devices is false, the study's first trials ran on NVIDIA A100-SXM4-40GB, and a worker "
    "has NVIDIA H200. Set resources.accelerator_type so that all workers have NVIDIA A100-SXM4-40GB, or mix_devices: "
    "true."
)


def sweep_of(raw_study: dict[str, Any], url: str, **resources: Any) -> Sweep:
    raw_study |= {"search": {"trials": 3, "pruner": {"type": "none"}}, "resources": resources}
    return new_sweep(parse_spec(raw_study, "a test"), url)


def started(sweep: Sweep) -> Trial:
    trial = sweep.next_trial()
    assert trial is not None
    return trial


def epochs_of(trial: Trial) -> Iterator[tuple[int, dict[str, float]]]:
    return enumerate(curve(trial.config), start=1)


def test_a_study_that_mixes_kinds_says_so_at_once_and_in_its_report(raw_study: dict[str, Any], record_url: str) -> None:
    sweep = sweep_of(raw_study, record_url)
    first, second = started(sweep), started(sweep)
    for trial, facts in ((first, A100), (second, H200)):
        assert sweep.device_kinds.required(trial.study) is None
        for event in epochs_of(trial):
            sweep.on_epoch(trial.trial_id, *event, facts)

    name = study_text(sweep.studies[0].plan)
    sentence = (
        f"{name}: trials ran on 2 kinds of devices (NVIDIA A100-SXM4-40GB, NVIDIA H200), whose results differ in their "
        "last bits."
    )
    # Once, not at each epoch.
    assert sweep.device_kinds.take_notes() == [f"{sentence} resources.mix_devices: false refuses that."]
    assert sweep.device_kinds.take_notes() == []
    assert mixed_devices(sweep.studies) == [sentence]
    assert sentence in reproducibility_lines(sweep.studies).lines

    # A later driver reads it from the trials, and warns of no kind that is known.
    sweep.close()
    later = new_sweep(sweep.spec, record_url)
    assert mixed_devices(later.studies) == [sentence] and later.device_kinds.take_notes() == []


def test_a_trial_that_moves_to_another_kind_names_both(raw_study: dict[str, Any], record_url: str) -> None:
    sweep = sweep_of(raw_study, record_url)
    trial = started(sweep)
    for (number, metrics), facts in zip(epochs_of(trial), (A100, A100, H200, H200, A100), strict=False):
        sweep.on_epoch(trial.trial_id, number, metrics, facts)
    (moved,) = sweep.studies[0].trials
    assert moved.devices == [A100["device"], H200["device"]]
    assert moved.provenance["device"] == "NVIDIA A100-SXM4-40GB; NVIDIA H200" and moved.provenance["host"] == "one"
    assert len(mixed_devices(sweep.studies)) == 1
    assert moved.reset(discard_progress=True).devices == []


def test_a_study_of_one_kind_and_trials_of_old_versions_say_nothing(raw_study: dict[str, Any], record_url: str) -> None:
    sweep = sweep_of(raw_study, record_url, mix_devices=False)
    first, second = started(sweep), started(sweep)
    for event in epochs_of(first):
        assert sweep.device_kinds.required(first.study) is None
        sweep.on_epoch(first.trial_id, *event)
    for event in epochs_of(second):
        sweep.on_epoch(second.trial_id, *event, A100)
    assert sweep.device_kinds.required(second.study) == A100["device"]
    assert mixed_devices(sweep.studies) == [] and sweep.device_kinds.take_notes() == []


def test_with_mix_devices_false_another_kind_stops_the_sweep_and_leaves_its_trial_waiting(
    raw_study: dict[str, Any], record_url: str
) -> None:
    # Both started before the first of them had reported its kind.
    sweep = sweep_of(raw_study, record_url, mix_devices=False)
    first, second = started(sweep), started(sweep)
    assert sweep.on_epoch(first.trial_id, *next(epochs_of(first)), A100)
    assert not sweep.on_epoch(second.trial_id, *next(epochs_of(second)), H200)

    refused = sweep.studies[0].search_table.trials[1]
    assert (refused.state, refused.losses, refused.failures, refused.epochs) == (TrialState.WAITING, 0, 0, ())
    assert sweep.halt is not None and sweep.halt.reason == f"stopped: {REFUSED}"
    # What runs on the right kind runs to its end.
    assert not sweep.halt.interrupt_running and sweep.next_trial() is None
    for event in list(epochs_of(first))[1:]:
        sweep.on_epoch(first.trial_id, *event, A100)
    assert sweep.studies[0].search_table.trials[0].state is TrialState.COMPLETE
    assert mixed_devices(sweep.studies) == []


def test_a_trial_that_is_refused_again_and_again_is_no_failed_trial(
    raw_study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    urls = [f"sqlite:///{tmp_path_factory.mktemp('studies')}/a.db" for _ in range(2)]
    plain, sweep = (sweep_of(dict(raw_study), url, mix_devices=False) for url in urls)
    drive(plain)
    for _ in range(MAX_LOSSES + 1):
        trial = started(sweep)
        sweep.on_failure(trial.trial_id, wrong_device(A100["device"], H200["device"]))
        assert sweep.halt is not None
        sweep.close()
        sweep = new_sweep(sweep.spec, urls[1])
    drive(sweep)
    assert outcome(sweep) == outcome(plain)


def test_a_kind_that_a_study_began_on_is_required_of_its_later_trials(
    raw_study: dict[str, Any], record_url: str
) -> None:
    sweep = sweep_of(raw_study, record_url, mix_devices=False)
    trial = started(sweep)
    for before, after in pairwise([*epochs_of(trial), None]):
        assert before is not None
        assert sweep.on_epoch(trial.trial_id, *before, A100) is (after is not None)
    following = started(sweep)
    assert sweep.device_kinds.required(following.study) == A100["device"]
    # And of a later driver's.
    sweep.close()
    assert new_sweep(sweep.spec, record_url).device_kinds.required(trial.study) == A100["device"]
