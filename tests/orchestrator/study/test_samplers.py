"""Every sampler with every pruner: the same trials for any workers; what each of them promises is what it does."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep, suggest_params
from orchestrator.spec.space import Choice, FloatRange
from orchestrator.study.trial import Trial, TrialState
from tests.orchestrator.conftest import drive, new_sweep, outcome

SAMPLERS = ["tpe", "gp", "cmaes", "random", "grid"]
PRUNERS: list[dict[str, Any]] = [
    {"type": "none"},
    {"type": "asha", "min_epochs": 1, "reduction": 2},
    {"type": "hyperband", "min_epochs": 1, "reduction": 2},
    {"type": "median", "min_epochs": 2},
]
PAIRS = [
    pytest.param(
        sampler,
        pruner,
        id=f"{sampler}-{pruner['type']}",
        marks=[] if number % len(PRUNERS) == SAMPLERS.index(sampler) % len(PRUNERS) else [pytest.mark.slow],
    )
    for number, (sampler, pruner) in enumerate(itertools.product(SAMPLERS, PRUNERS))
]
"""All pairs. The quick tests have each sampler and each pruner once."""
LR = {"type": "float", "low": 0.001, "high": 0.1, "log": True}
RATES = {"type": "choice", "values": [0.001, 0.01, 0.1]}
DROP = {"type": "float", "low": 0.0, "high": 0.5}


@pytest.fixture
def small(raw_study: dict[str, Any]) -> dict[str, Any]:
    raw_study["search"] |= {"trials": 6, "startup_trials": 2}
    return raw_study | {"final": {"seeds": [42]}}


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_the_same_spec_gives_the_same_trials_whatever_the_workers(
    small: dict[str, Any], tmp_path: Path, sampler: str, pruner: dict[str, Any]
) -> None:
    small["search"] |= {"sampler": sampler, "pruner": pruner, "trials": 5}
    small["fixed"]["epochs"] = 4
    if sampler == "grid":
        small["space"]["lr"] = RATES
    spec = parse_spec(small, "a test")
    found = []
    for workers in (1, 4):
        sweep = new_sweep(spec, f"sqlite:///{tmp_path / str(workers)}.db")
        drive(sweep, workers=workers, seed=workers)
        assert sweep.is_done
        found.append(outcome(sweep))
    assert found[0] == found[1]


def _without_interruption(spec: dict[str, Any], tmp_path: Path) -> tuple[list[Trial], list[Trial]]:
    """The search trials of a sweep in one piece, and of one whose driver dies every 25 events."""
    plain = new_sweep(parse_spec(spec, "a test"), f"sqlite:///{tmp_path / 'plain.db'}")
    drive(plain)
    url = f"sqlite:///{tmp_path / 'killed.db'}"
    for life in range(100):
        killed = new_sweep(plain.spec, url)
        if drive(killed, workers=2, seed=life, events=25) < 25:
            break
        killed.close()
    assert killed.is_done
    return plain.studies[0].search_table.trials, killed.studies[0].search_table.trials


def test_cmaes_proceeds_through_generations_and_its_state_survives_the_driver(
    small: dict[str, Any], tmp_path: Path
) -> None:
    small |= {"methods": ["linear"], "space": {"lr": LR, "drop_path": DROP}}
    small["fixed"] |= {"epochs": 3}
    small["search"] |= {"sampler": "cmaes", "trials": 26, "pruner": {"type": "none"}}
    plain, killed = _without_interruption(small, tmp_path)
    assert [trial.params for trial in killed] == [trial.params for trial in plain]
    generations = [trial.sampler_attrs.get("cma:generation") for trial in plain]
    assert generations[:2] == [None, None], "the first are drawn at random"
    later = [generation for generation in generations if generation is not None]
    assert later == sorted(later)
    assert max(later) >= 2, "each generation is learnt from"
    assert [trial.sampler_attrs.get("cma:generation") for trial in killed] == generations


@pytest.mark.parametrize("when", [{}, {"prompt_init": "mean_pool"}])
def test_a_grid_is_gone_through_once(small: dict[str, Any], tmp_path: Path, when: dict[str, str]) -> None:
    images = {"type": "int", "low": 2, "high": 3, "when": when}
    # In the spec a condition may stand before what it depends on.
    small["space"] = {"init_images": images, "lr": RATES, "prompt_init": small["space"]["prompt_init"]}
    small["fixed"] |= {"prompt_length": 5}
    points = 3 * 2 * 2 if not when else 3 * (2 + 1)
    small["search"] |= {"sampler": "grid", "trials": points}
    for trials in _without_interruption(small, tmp_path):
        assert len({tuple(sorted(trial.params.items())) for trial in trials}) == points == len(trials)
        assert len({trial.trial_id for trial in trials}) == points


def test_a_grid_that_is_smaller_for_one_method_repeats_its_points_from_the_record(
    small: dict[str, Any], record_url: str
) -> None:
    small["methods"] = ["linear", "spt_deep"]
    small["space"]["lr"] = RATES
    small["search"] |= {"sampler": "grid", "trials": 10}
    sweep = new_sweep(parse_spec(small, "a test"), record_url)
    drive(sweep, workers=3)
    linear, deep = sweep.studies
    assert (len(linear.trials), len(deep.trials)) == (3 + 1, 10 + 1), "search and one final trial each"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_conditional_parameter_is_there_where_its_condition_holds(
    small: dict[str, Any], record_url: str, sampler: str
) -> None:
    images: dict[str, Any] = {"type": "float", "low": 0.1, "high": 0.5, "when": {"prompt_init": "mean_pool"}}
    if sampler == "grid":
        small["space"]["lr"] = RATES
        images = {"type": "choice", "values": [0.1, 0.5], "when": {"prompt_init": "mean_pool"}}
    small["space"]["init_images"] = images
    small["search"] |= {"sampler": sampler, "trials": 10}
    sweep = new_sweep(parse_spec(small, "a test"), record_url)
    drive(sweep, workers=2)
    trials = new_sweep(sweep.spec, record_url).studies[0].search_table.trials
    inits = [trial.params["prompt_init"] for trial in trials]
    assert {*inits} == {"random", "mean_pool"}
    for trial in trials:
        holds = trial.params["prompt_init"] == "mean_pool"
        assert ("init_images" in trial.params) is holds
        assert holds or trial.config.init_images == 1.0, "else it has its default"


def test_a_condition_may_be_on_what_is_fixed(small: dict[str, Any], record_url: str) -> None:
    small["space"] = {"lr": LR, "init_images": {"type": "float", "low": 0.1, "high": 0.5, "when": {"epochs": [9, 8]}}}
    small["fixed"] |= {"prompt_length": 5, "prompt_init": "mean_pool"}
    spec = parse_spec(small, "a test")
    sweep = new_sweep(spec, record_url)
    drive(sweep)
    assert all("init_images" in trial.params for trial in sweep.studies[0].search_table.trials)
    (plan,) = plan_sweep(spec).studies
    other = dataclasses.replace(plan, fixed={**plan.fixed, "epochs": 7})

    def lowest(_: str, dimension: FloatRange | Any) -> Any:
        assert not isinstance(dimension, Choice)
        return dimension.low

    assert suggest_params(plan, lowest) == {"lr": 0.001, "init_images": 0.1}
    assert suggest_params(other, lowest) == {"lr": 0.001}


def test_hyperband_begins_to_stop_at_different_epochs(small: dict[str, Any], record_url: str) -> None:
    small["search"] |= {"sampler": "random", "trials": 30}
    small["search"]["pruner"] = {"type": "hyperband", "min_epochs": 1, "reduction": 3}
    sweep = new_sweep(parse_spec(small, "a test"), record_url)
    drive(sweep, workers=3)
    trials = [trial for trial in sweep.studies[0].search_table.trials if trial.duplicate_of is None]
    stopped = {len(trial.epochs) for trial in trials if trial.state is TrialState.PRUNED}
    assert stopped == {1, 3}, "at the powers of its reduction"
    passed = {
        sum(name.startswith("completed_rung") for name in trial.sampler_attrs)
        for trial in trials
        if trial.state is TrialState.COMPLETE
    }
    assert passed == {0, 1, 2}, "a bracket that judges at epochs 1 and 3, one at 3, and one that stops nothing"
