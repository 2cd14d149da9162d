"""Costs learnt from trials, and the estimate for a sweep."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.resources import TrialResources
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Epoch, Failure, FailureCause
from orchestrator.sweep.cost_model import CostModel, Estimate, Rate, memory_share, most_expensive_config, num_images
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import new_sweep

METRICS = {"train/loss": 1.0, "epoch/seconds": 16.0, "memory/peak_gb": 1.5, "memory/device_gb": 6.0}


@pytest.fixture
def spec(raw_study: dict[str, Any]) -> SweepSpec:
    raw_study["search"] |= {"pruner": {"type": "none"}}
    return parse_spec(raw_study, "a test")


def _run(sweep: Sweep, trials: int, *, epochs: int = 9, changes: dict[str, float] | None = None) -> None:
    """Trials on the 800 training images of the task, and 200 more for final ones, at 0.02 s an image."""
    for _ in range(trials):
        trial = sweep.next_trial()
        assert trial is not None
        seconds = 16.0 if trial.phase == "search" else 20.0
        metric = f"{trial.config.eval_split}/accuracy"
        for epoch in range(1, epochs + 1):
            sweep.on_epoch(trial.trial_id, epoch, METRICS | {"epoch/seconds": seconds, metric: 0.5} | (changes or {}))


def test_without_a_measurement_there_is_no_estimate(spec: SweepSpec, tmp_path: Path, record_url: str) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    study = new_sweep(spec, record_url).studies[0]
    assert throughput.rate(study.plan, 0) is None
    assert throughput.estimate(study, str(tmp_path)) == Estimate(trials=10, seconds=None)
    throughput.update([study], str(tmp_path))
    assert not (tmp_path / "throughput.json").exists(), "nor written"


def test_an_estimate_is_all_that_is_left_of_every_trial(spec: SweepSpec, tmp_path: Path, record_url: str) -> None:
    file = str(tmp_path / "throughput.json")
    throughput = CostModel.load(file)
    sweep = new_sweep(spec, record_url)
    (study,) = sweep.studies
    _run(sweep, 1)
    throughput.update(sweep.studies, str(tmp_path))
    assert CostModel.load(file).rates == throughput.rates, "the file has them"
    rate = throughput.rate(study.plan, 0)
    assert rate == Rate(seconds_per_image=pytest.approx(0.02), trials=1, peak_gb=1.5, device_gb=6.0)  # type: ignore[arg-type]
    search, final = 9 * 16.0, 9 * 20.0
    for done, left in [(0, 7 * search + 2 * final), (6, search + 2 * final), (1, 2 * final), (1, final), (1, 0)]:
        _run(sweep, done)
        estimate = throughput.estimate(study, str(tmp_path))
        assert estimate.seconds == pytest.approx(left)
    assert throughput.estimate(study, str(tmp_path)).trials == 0


def test_epochs_that_are_done_of_a_trial_under_way_are_not_counted_again(
    spec: SweepSpec, tmp_path: Path, record_url: str
) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    sweep = new_sweep(spec, record_url)
    (study,) = sweep.studies
    _run(sweep, 1, epochs=4)
    throughput.update(sweep.studies, str(tmp_path))
    estimate = throughput.estimate(study, str(tmp_path))
    assert estimate.trials == 10
    assert estimate.seconds == pytest.approx((5 + 7 * 9) * 16.0 + 2 * 9 * 20.0)


def test_a_study_of_a_task_that_is_not_imported_has_no_estimate(
    spec: SweepSpec, tmp_path: Path, record_url: str
) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    sweep = new_sweep(spec, record_url)
    _run(sweep, 2)
    throughput.update(sweep.studies, str(tmp_path))
    (study,) = new_sweep(
        parse_spec(spec.model_dump() | {"name": "own", "tasks": ["own/x"]}, "a test"), record_url
    ).studies
    assert throughput.rate(study.plan, 0) is not None, "its method has trained on another task"
    assert throughput.estimate(study, str(tmp_path)).seconds is None


def test_more_trials_teach_more_and_the_most_memory_counts(spec: SweepSpec, tmp_path: Path, record_url: str) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    sweep = new_sweep(spec, record_url)
    (study,) = sweep.studies
    _run(sweep, 2, changes={"epoch/seconds": 32.0, "memory/peak_gb": 2.5})
    throughput.update(sweep.studies, str(tmp_path))
    _run(sweep, 2, changes={"epoch/seconds": 16.0})
    throughput.update(sweep.studies, str(tmp_path))
    rate = throughput.rate(study.plan, 0)
    assert rate is not None
    assert rate.seconds_per_image == pytest.approx(0.03)
    assert (rate.trials, rate.peak_gb) == (4, 2.5)
    fresh = new_sweep(parse_spec(spec.model_dump() | {"name": "other"}, "a test"), record_url)
    _run(fresh, 1, changes={"epoch/seconds": 99.0})
    throughput.update(fresh.studies, str(tmp_path))
    assert throughput.rate(study.plan, 0) == rate, "one trial does not undo what four have taught"
    assert throughput.rate(study.plan, 0.5) is None, "a GPU is another kind of device"


def test_each_precision_has_a_rate_of_its_own(spec: SweepSpec, tmp_path: Path) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    (plan,) = plan_sweep(spec).studies
    of_precision = {
        precision: dataclasses.replace(plan, fixed=plan.fixed | {"precision": precision})
        for precision in ("fp32", "tf32", "bf16")
    }
    epochs = [Epoch(epoch=1, metrics={}), Epoch(epoch=2, metrics=METRICS)]
    throughput.update_from_calibration(of_precision["bf16"], epochs, 1, str(tmp_path))
    assert [precision for precision, study in of_precision.items() if throughput.rate(study, 1)] == ["bf16"]

    # fp32 is the default: written or not, it is the same, also in files of earlier versions.
    throughput.update_from_calibration(plan, epochs, 1, str(tmp_path))
    assert throughput.rate(of_precision["fp32"], 1) == throughput.rate(plan, 1)
    assert throughput.rates.keys() == {f"spt_deep vit_nano_patch4_32.mae gpu{end}" for end in ("", " bf16")}


def test_a_short_trial_teaches_until_a_whole_one_has(spec: SweepSpec, tmp_path: Path, record_url: str) -> None:
    throughput = CostModel.load(str(tmp_path / "throughput.json"))
    (plan,) = plan_sweep(spec).studies
    throughput.update_from_calibration(
        plan, [Epoch(epoch=1, metrics={}), Epoch(epoch=2, metrics=METRICS)], 0, str(tmp_path)
    )
    assert throughput.rates == {
        "spt_deep vit_nano_patch4_32.mae cpu": Rate(seconds_per_image=0.02, trials=1, peak_gb=1.5, device_gb=6.0)
    }
    sweep = new_sweep(spec, record_url)
    _run(sweep, 2, changes={"epoch/seconds": 32.0})
    throughput.update(sweep.studies, str(tmp_path))
    throughput.update_from_calibration(plan, [Epoch(epoch=2, metrics=METRICS)], 0, str(tmp_path))
    rate = throughput.rate(plan, 0)
    assert rate is not None
    assert rate.seconds_per_image == pytest.approx(0.04)
    assert rate.trials == 2
    with pytest.raises(UserError, match=r"the short trial of demo/digits .* failed: OSError: no data"):
        throughput.update_from_calibration(
            plan, [Failure(cause=FailureCause.ERROR, error="OSError: no data\n\nTrace")], 0, str(tmp_path)
        )


@pytest.mark.parametrize(
    ("train_size", "search", "final"),
    [(1.0, 800, 1000), (0.5, 400, 500), (100, 100, 100), (900, 800, 900), ("5 per class", 50, 50)],
)
def test_a_trial_learns_from_as_many_images_as_its_size_says(
    spec: SweepSpec, tmp_path: Path, train_size: float | str, search: int, final: int
) -> None:
    (plan,) = plan_sweep(spec).studies
    sized = dataclasses.replace(plan, train_size=train_size)
    assert num_images(sized, ("train",), str(tmp_path)) == search
    assert num_images(sized, ("train", "val"), str(tmp_path)) == final


def test_the_short_trial_costs_as_much_as_any(raw_study: dict[str, Any]) -> None:
    raw_study["space"] |= {
        "batch_size": {"type": "int", "low": 8, "high": 64},
        "init_images": {"type": "choice", "values": [10, 200], "when": {"prompt_init": "mean_pool"}},
    }
    (plan,) = plan_sweep(parse_spec(raw_study, "a test")).studies
    config = most_expensive_config(plan, 3)
    assert (config.prompt_length, config.batch_size, config.prompt_init) == (64, 64, "mean_pool")
    assert config.init_images == 200
    assert config.lr == pytest.approx(0.01)
    assert (config.epochs, config.warmup_epochs, config.eval_split, config.seed) == (2, 0, "val", 3)


@pytest.mark.parametrize(
    ("gpus", "workers", "share"),
    [(0, 2, 0.5), (0, 6, 1.5), (1, 8, 0.25), (0.5, 8, 0.5), (0.2, 8, 1.25), (2, 8, 0.25), ("auto", 8, 0.75)],
)
def test_trials_that_share_a_device_share_its_memory(gpus: Any, workers: int, share: float) -> None:
    rate = Rate(seconds_per_image=1.0, trials=1, peak_gb=1.5, device_gb=6.0)
    assert memory_share(TrialResources(gpus=gpus), rate, workers) == share
