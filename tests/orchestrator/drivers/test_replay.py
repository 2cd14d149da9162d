"""Sweeps without training on a virtual clock: many trials, restarts, and the curves of an earlier sweep."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.drivers.replay import Clock, RecordedCurves, ReplayDriver, SyntheticCurves
from orchestrator.environment.home import home_at
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, Trial, TrialState
from orchestrator.sweep.cost_model import Rate
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import Sptune, outcome
from trainer.storage.files import write_bytes
from trainer.storage.integrity import pack_json


def opened(spec: SweepSpec, url: str) -> tuple[Sweep, Clock]:
    clock = Clock()
    return Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), clock=clock), clock


def epochs_of(curves: SyntheticCurves | RecordedCurves, trial: Trial) -> list[Epoch]:
    return [event for event, _ in curves(trial) if isinstance(event, Epoch)]


@pytest.mark.slow
def test_a_thousand_trials_take_as_long_as_their_epochs_on_the_virtual_clock(
    raw_spec: dict[str, Any], record_url: str
) -> None:
    raw_spec |= {"tasks": ["vtab"], "methods": ["linear"], "final": {"seeds": [42]}}
    raw_spec["search"] |= {"trials": 52, "sampler": "random", "pruner": {"type": "none"}, "max_concurrent": 16}
    raw_spec["fixed"] |= {"epochs": 1, "warmup_epochs": 0}
    raw_spec["space"] = {"lr": raw_spec["space"]["lr"]}
    spec = parse_spec(raw_spec, "a test")
    sweep, clock = opened(spec, record_url)
    driver = ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=10)
    driver.run(sweep)
    busy = driver.busy_seconds
    assert sweep.is_done
    assert sweep.num_finished == 19 * 53 > 1000
    assert busy == 10.0 * 19 * 53, "each epoch once"
    assert clock.now == pytest.approx(busy / 10, rel=0.02), "and hardly a worker was ever idle"


@pytest.mark.parametrize("workers", [1, 5])
def test_drivers_that_die_at_any_time_leave_the_same_outcome(
    raw_study: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    spec = parse_spec(raw_study, "a test")
    curves = SyntheticCurves(plan_sweep(spec).studies)
    plain, clock = opened(spec, f"sqlite:///{tmp_path / 'plain.db'}")
    ReplayDriver(curves, clock, workers=workers).run(plain)
    url = f"sqlite:///{tmp_path / 'killed.db'}"
    clock = Clock()
    for life in range(100):
        sweep = Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), clock=clock)
        until = clock.now + 95 + 7 * life  # longer than a trial: one without a checkpoint starts from the beginning
        ReplayDriver(curves, clock, workers=workers, until=until).run(sweep)
        if sweep.is_done:
            break
        assert clock.now <= until
    assert life > 1, "it was killed more than once"
    assert outcome(sweep) == outcome(plain)


def test_synthetic_curves_rise_to_a_height_that_depends_on_the_config_alone(raw_spec: dict[str, Any]) -> None:
    spec = parse_spec(raw_spec, "a test")
    plans = plan_sweep(spec).studies
    curves = SyntheticCurves(plans, seconds_per_epoch=3.0)
    config = plans[0].search_config({"lr": 0.01, "prompt_length": 5, "prompt_init": "random"}, 0)
    trial = _trial(plans[0].key, config)
    first, second = epochs_of(curves, trial), epochs_of(SyntheticCurves(plans, seconds_per_epoch=3.0), trial)
    assert first == second
    assert [epoch.epoch for epoch in first] == [*range(1, 10)]
    assert first[-1].metrics["val/accuracy"] > first[0].metrics["val/accuracy"]
    assert {epoch.metrics["epoch/seconds"] for epoch in first} == {3.0}
    assert 0.3 <= curves.limit(trial) <= 0.9
    final = epochs_of(
        curves,
        _trial(plans[0].key, plans[0].final_config({"lr": 0.01, "prompt_length": 5, "prompt_init": "random"}, 42)),
    )
    assert ["test/accuracy" in epoch.metrics for epoch in final] == [False] * 8 + [True], "test is seen once"
    assert not any("val/accuracy" in epoch.metrics for epoch in final)


def _trial(study: str, config: Any) -> Trial:
    return Trial(
        trial_id=config.fingerprint(),
        study=study,
        phase="search" if config.eval_split == "val" else "final",
        number=0,
        params={},
        config=config,
        state=TrialState.RUNNING,
    )


@pytest.fixture
def earlier(raw_study: dict[str, Any], record_url: str) -> Sweep:
    """A finished sweep to learn curves from."""
    raw_study["search"]["pruner"] = {"type": "none"}
    spec = parse_spec(raw_study, "a test")
    sweep, clock = opened(spec, record_url)
    ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=3).run(sweep)
    return sweep


def test_recorded_curves_are_those_of_the_same_trial_or_of_the_nearest(earlier: Sweep) -> None:
    curves = RecordedCurves(earlier.studies)
    (study,) = earlier.studies
    for trial in [*study.search_table.trials, *study.final_table.trials]:
        assert [epoch.metrics for epoch in epochs_of(curves, trial)] == list(trial.epochs)
    near = study.search_table.trials[3]
    beside = study.plan.search_config({**near.params, "lr": near.params["lr"] * 1.0001}, 0)
    assert [epoch.metrics for epoch in epochs_of(curves, _trial(study.plan.key, beside))] == list(near.epochs)


def test_a_replay_decides_at_the_scored_epochs_of_its_own_spec(
    earlier: Sweep, raw_study: dict[str, Any], record_url: str
) -> None:
    raw_study["search"] |= {"eval_every": 4, "pruner": {"type": "none"}}
    (plan,) = plan_sweep(parse_spec(raw_study, "scored less often")).studies
    recorded = earlier.studies[0].search_table.trials[0]
    config = plan.search_config(recorded.params, 0)
    for curves in (RecordedCurves(earlier.studies), SyntheticCurves([plan])):
        epochs = epochs_of(curves, _trial(plan.key, config))
        assert [epoch.epoch for epoch in epochs if "val/accuracy" in epoch.metrics] == [4, 8, 9]
        assert [epoch.epoch for epoch in epochs if "train/loss" in epoch.metrics] == [*range(1, 10)]


def test_a_replay_of_the_same_spec_on_recorded_curves_equals_the_sweep(earlier: Sweep, tmp_path: Path) -> None:
    repeated, clock = opened(earlier.spec, f"sqlite:///{tmp_path / 'repeated.db'}")
    ReplayDriver(RecordedCurves(earlier.studies), clock, workers=2).run(repeated)
    assert outcome(repeated) == outcome(earlier)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ({"tasks": ["demo/shapes_loc"]}, "the earlier sweep has no search trial of demo/shapes_loc spt_deep"),
        (
            {"fixed": {"epochs": 12}},
            "of demo/digits spt_deep vit_nano_patch4_32.mae train_size 1.0 that ran to its end of 12 epochs",
        ),
        ({"fixed": {"epochs": 5, "warmup_epochs": 1}}, "that ran to its end of 5 epochs"),
    ],
)
def test_a_trial_without_a_recorded_curve_is_refused(
    earlier: Sweep, raw_study: dict[str, Any], tmp_path: Path, edit: dict[str, Any], problem: str
) -> None:
    spec = parse_spec(raw_study | edit, "edited")
    sweep, clock = opened(spec, f"sqlite:///{tmp_path / 'edited.db'}")
    with pytest.raises(ValueError) as refused:
        ReplayDriver(RecordedCurves(earlier.studies), clock, workers=2).run(sweep)
    assert problem in str(refused.value)


def test_a_conditional_parameter_may_have_no_value(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study["space"]["ema_decay"] = {"type": "float", "low": 0.9, "high": 0.99, "when": {"prompt_init": "mean_pool"}}
    raw_study["search"]["pruner"] = {"type": "none"}
    spec = parse_spec(raw_study, "a test")
    sweep, clock = opened(spec, record_url)
    ReplayDriver(SyntheticCurves(plan_sweep(spec).studies), clock, workers=3).run(sweep)
    curves = RecordedCurves(sweep.studies)
    for trial in sweep.studies[0].search_table.trials:
        assert [epoch.metrics for epoch in epochs_of(curves, trial)] == list(trial.epochs)


def test_the_command_prints_what_a_spec_would_do(raw_study: dict[str, Any], tmp_path: Path, sptune: Sptune) -> None:
    raw_study["search"]["pruner"] = {"type": "none"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw_study))
    home = tmp_path / "home"
    code, said, _ = sptune("replay", tmp_path / "small.yaml", "--home", home, "--workers", "2")
    assert code == 0
    assert re.search(r"10 trials in \d+:\d\d on 2 workers, busy \d+%; 90 of 90 epochs were trained", said)
    assert not home.exists(), "nothing is kept"
    raw_study["search"]["pruner"] = {"type": "asha", "min_epochs": 1, "reduction": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw_study | {"budget": {"max_trials": 7}}))
    code, said, _ = sptune("replay", tmp_path / "small.yaml", "--home", home, "--workers", "2")
    assert code == 0
    trained = re.search(r"7 trials in .*; (\d+) of 63 epochs were trained, .*; budget: max_trials 7 are started", said)
    assert trained is not None
    assert int(trained[1]) < 63


def test_the_command_uses_the_curves_of_a_sweep_of_the_home(
    raw_study: dict[str, Any], tmp_path: Path, sptune: Sptune
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    raw_study["search"]["pruner"] = {"type": "none"}
    spec = parse_spec(raw_study, "a test")
    sweep, clock = opened(spec, f"sqlite:///{home / 'studies.db'}")
    ReplayDriver(SyntheticCurves(plan_sweep(spec).studies, seconds_per_epoch=60.0), clock, workers=3).run(sweep)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(raw_study | {"name": "other"}))
    like = ("replay", tmp_path / "other.yaml", "--home", home, "--workers", "1", "--like")
    code, said, _ = sptune(*like, "small")
    assert code == 0
    assert "10 trials in 1:30:00 on 1 worker, busy 100%" in said, "90 epochs of a minute"
    code, _, complaint = sptune(*like, "smal")
    assert (code, "'smal' is not a sweep in" in complaint, "did you mean 'small'?" in complaint) == (2, True, True)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(raw_study | {"tasks": ["demo/shapes_loc"]}))
    code, _, complaint = sptune(*like, "small")
    assert code == 2
    assert complaint.startswith("error: --like small: the earlier sweep has no search trial of demo/shapes_loc")


def test_invented_curves_take_the_seconds_that_were_measured_in_the_home(
    raw_spec: dict[str, Any], tmp_path: Path, sptune: Sptune
) -> None:
    raw_spec |= {"tasks": ["demo/digits"], "search": {"trials": 8}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(raw_spec))
    home = home_at(str(tmp_path / "home"))
    replay = ("replay", file, "--home", home.root, "--workers", "1", "--json")

    def replayed() -> dict[str, Any]:
        code, said, _ = sptune(*replay)
        assert code == 0
        return dict(json.loads(said))

    shown = replayed()
    assert (shown["seconds"], shown["synthetic"]) == (20 * 9 * 10.0, True)
    assert shown["speed"].startswith("an epoch takes 10 s, which is invented too")

    # 800 images of train, and 200 of val in the final trials.
    rate = Rate(seconds_per_image=0.01, trials=1, peak_gb=1.0, device_gb=8.0)
    write_bytes(home.cost_model_file, pack_json({"linear vit_nano_patch4_32.mae cpu": dataclasses.asdict(rate)}))
    shown = replayed()
    of_linear = 9 * (8 * 8.0 + 2 * 10.0)
    assert shown["seconds"] == pytest.approx(of_linear + 10 * 9 * 10.0)
    assert shown["speed"] == (
        f"an epoch takes as long as measured in {home.root}, and 10 s in 1 study of which nothing like it was run"
    )
    assert "invented learning curves" in shown["curves"], "the curves stay synthetic"

    raw_spec["methods"] = ["linear"]
    del raw_spec["space"]["prompt_length"], raw_spec["space"]["prompt_init"]
    file.write_text(yaml.safe_dump(raw_spec))
    assert replayed()["speed"] == f"an epoch takes as long as measured in {home.root}"
    assert f"; an epoch takes as long as measured in {home.root}\n" in sptune(*replay[:-1])[1]
