"""What a worker reports reaches the sweep as it was, and ends the trial as it would alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.utils import flatten_dict

from orchestrator.drivers.activity import Activity
from orchestrator.drivers.ray.bridge import TuneBridge
from orchestrator.drivers.ray.capacity import ClusterCapacity
from orchestrator.drivers.ray.messages import from_result, phase_result, to_result
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Epoch, Failure, FailureCause, TrialState
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import curve, new_sweep

FAILURE = Failure(
    cause=FailureCause.LOST,
    error="AcceleratorError: CUDA error\n\nTraceback",
    seconds=1.5,
    ends_process=True,
    lost_gpu="GPU 3 of node7",
    stops_sweep=True,
)
EVENTS: list[Epoch | Failure] = [
    Epoch(epoch=1, metrics={}, provenance={}),
    Epoch(epoch=2, metrics={"val/accuracy": 1 / 3, "nmi/layer_00": 5e-324}, provenance={"software": "a/b", "": "ü"}),
    FAILURE,
]


def test_events_survive_the_way_through_tune() -> None:
    result = to_result(EVENTS)
    assert from_result(flatten_dict(result)) == EVENTS
    assert from_result(json.loads(json.dumps(result))) == EVENTS, "Ray keeps the text of whatever is no JSON"


def test_a_value_that_is_no_number_survives_too() -> None:
    [event] = from_result(to_result([Epoch(epoch=1, metrics={"val/accuracy": math.nan})]))
    assert isinstance(event, Epoch) and math.isnan(event.metrics["val/accuracy"])


@pytest.fixture
def sweep(raw_study: dict[str, Any], record_url: str) -> Sweep:
    raw_study["search"]["pruner"] = {"type": "none"}
    return new_sweep(parse_spec(raw_study, "a test"), record_url)


def bridge_with_a_trial(sweep: Sweep, activity: Activity | None = None) -> tuple[TuneBridge, list[Epoch]]:
    """A bridge whose first trial is with Tune, and the epochs of the trial."""
    bridge = TuneBridge(sweep, lambda: None, ClusterCapacity(lambda: [], workers=1), activity or Activity())
    trial = sweep.next_trial()
    assert trial is not None
    bridge.trial_ids["tune"] = trial.trial_id
    metrics = curve(trial.config)
    return bridge, [Epoch(epoch=epoch, metrics=values) for epoch, values in enumerate(metrics, start=1)]


def state_of(sweep: Sweep) -> tuple[TrialState, int]:
    trial = sweep.studies[0].search_table.trials[0]
    return trial.state, len(trial.epochs)


def test_what_a_trial_does_before_its_first_epoch_is_shown_and_changes_nothing(sweep: Sweep) -> None:
    activity = Activity()
    bridge, epochs = bridge_with_a_trial(sweep, activity)
    before = sweep.studies[0].search_table.trials[0]
    assert bridge.on_result("tune", phase_result("decoding the images of demo/digits"))
    assert str(activity) == "decoding the images of demo/digits"
    assert sweep.studies[0].search_table.trials[0] == before
    assert bridge.on_result("tune", to_result(epochs[:1]))
    assert str(activity) == ""

    # The trial has ended meanwhile, as with a stop.
    sweep.on_failure(bridge.trial_ids["tune"], Failure(cause=FailureCause.ERROR, error="OSError: no"))
    assert not bridge.on_result("tune", phase_result("training on demo/digits"))


def test_a_report_of_epochs_goes_on_until_the_last_one(sweep: Sweep) -> None:
    bridge, epochs = bridge_with_a_trial(sweep)
    assert bridge.on_result("tune", to_result(epochs[:1]))
    assert bridge.on_result("tune", to_result(epochs[1:7]))
    assert state_of(sweep) == (TrialState.RUNNING, 7)
    assert not bridge.on_result("tune", to_result(epochs[7:]))
    assert state_of(sweep) == (TrialState.COMPLETE, 9)
    assert not bridge.on_result("tune", to_result(epochs)), "a report that comes late changes nothing"


def test_a_failure_at_the_end_of_a_report_follows_its_epochs(sweep: Sweep) -> None:
    bridge, epochs = bridge_with_a_trial(sweep)
    diverged = Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan")
    assert not bridge.on_result("tune", to_result([*epochs[:4], diverged]))
    assert state_of(sweep) == (TrialState.FAILED, 4)


def test_a_trial_that_ends_before_the_failure_in_its_report_has_not_failed(sweep: Sweep) -> None:
    bridge, epochs = bridge_with_a_trial(sweep)
    sweep.stop("enough")
    failed = Failure(cause=FailureCause.ERROR, error="OSError: gone")
    assert not bridge.on_result("tune", to_result([*epochs[:4], failed]))
    trial = sweep.studies[0].search_table.trials[0]
    assert (trial.state, len(trial.epochs), trial.failures, trial.error) == (TrialState.WAITING, 4, 0, None)


@pytest.mark.parametrize("stops", [False, True])
def test_a_worker_that_cannot_go_on_is_asked_for_more_so_that_it_ends(sweep: Sweep, stops: bool) -> None:
    bridge, epochs = bridge_with_a_trial(sweep)
    if stops:
        sweep.stop("enough")
    lost = Failure(cause=FailureCause.LOST, error="AcceleratorError: CUDA error", ends_process=True)
    assert bridge.on_result("tune", to_result([*epochs[:4], lost]))
    bridge.on_end("tune")
    trial = sweep.studies[0].search_table.trials[0]
    assert (trial.state, len(trial.epochs)) == (TrialState.WAITING, 4)
    assert trial.losses == (0 if stops else 1), "a trial that was interrupted before has lost nothing"


def test_the_driver_reads_no_message_of_another_kind(sweep: Sweep, tmp_path: Path) -> None:
    bridge, _ = bridge_with_a_trial(sweep)
    with pytest.raises(KeyError):
        bridge.on_result("tune", {"epoch": 1})
    assert isinstance(bridge.error, KeyError), "Tune would wrap it into an error of its own"
