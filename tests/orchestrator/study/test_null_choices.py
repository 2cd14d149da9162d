"""Null and booleans among choices are values like others: drawn, stored, resumed, reported and drawn in figures."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib import pyplot

from orchestrator.errors import SpecError
from orchestrator.figures.params import against_params, choice_grid
from orchestrator.figures.search import parallel_coordinates
from orchestrator.report.chosen_params import chosen_block
from orchestrator.report.export import trials_table
from orchestrator.report.study_page import render_study_page
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.searched import searched_parts
from orchestrator.study.importance import param_importances
from orchestrator.sweep.cost_model import most_expensive_config
from tests.orchestrator.conftest import drive, new_sweep, outcome

SPACE: dict[str, Any] = {
    "ema_decay": {"type": "choice", "values": [None, 0.9, 0.99]},
    "nmi": {"type": "choice", "values": [True, False]},
    "prompt_length": {"type": "choice", "values": [1, 5]},
    "drop_path": {"type": "choice", "values": [0.0, 0.1], "when": {"nmi": True}},
}


def raw_with(raw_study: dict[str, Any], sampler: str) -> dict[str, Any]:
    search = {"trials": 6, "startup_trials": 2, "max_concurrent": 2, "sampler": sampler}
    fixed = {"epochs": 2, "warmup_epochs": 0, "prompt_init": "random"}
    return raw_study | {"space": SPACE, "search": search, "fixed": fixed}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "grid"])
def test_every_sampler_draws_them_and_the_database_gives_them_back(
    raw_study: dict[str, Any], record_url: str, sampler: str
) -> None:
    spec = parse_spec(raw_with(raw_study, sampler), "a test")
    sweep = new_sweep(spec, record_url)
    # Killed on the way, and resumed.
    drive(sweep, events=7)
    sweep.close()
    resumed = new_sweep(spec, record_url)
    drive(resumed)

    trials = resumed.studies[0].search_table.trials
    drawn = {repr(trial.params["ema_decay"]) for trial in trials}
    assert "None" in drawn
    assert drawn <= {"None", "0.9", "0.99"}
    assert {trial.params["nmi"] for trial in trials} <= {True, False}
    assert all(type(trial.params["nmi"]) is bool for trial in trials)
    assert all(("drop_path" in trial.params) == trial.params["nmi"] for trial in trials)
    for trial in trials:
        assert (trial.config.ema_decay, trial.config.nmi) == (trial.params["ema_decay"], trial.params["nmi"])
    assert outcome(new_sweep(spec, record_url)) == outcome(resumed)


def test_tables_and_figures_write_them_as_yaml_does(raw_study: dict[str, Any], record_url: str) -> None:
    spec = parse_spec(raw_with(raw_study, "random"), "a test")
    sweep = new_sweep(spec, record_url)
    drive(sweep)
    (study,) = sweep.studies

    (part,), _ = searched_parts(plan_sweep(spec).studies)
    assert "ema_decay null, 0.9 or 0.99; nmi true or false" in part.space
    assert "drop_path 0.0 or 0.1 if nmi is true" in part.space
    assert "None" not in str(chosen_block(sweep.studies).rows)
    assert "nmi true" in (page := render_study_page(study)) or "nmi false" in page
    assert set(param_importances(study)) <= {*SPACE}
    assert most_expensive_config(study.plan, 0).epochs == 2

    table = trials_table(sweep.studies)
    assert None in table["ema_decay"].to_pylist()
    assert {*table["nmi"].to_pylist()} <= {True, False}

    for draw in (against_params, choice_grid, parallel_coordinates):
        figure = draw(study)
        if figure is not None:
            figure.canvas.draw()
            pyplot.close(figure)


def test_more_values_beside_them_widen_a_choice(raw_study: dict[str, Any], record_url: str) -> None:
    raw = raw_with(raw_study, "random")
    drive(new_sweep(parse_spec(raw, "before"), record_url))
    raw["space"] = raw["space"] | {"ema_decay": {"type": "choice", "values": [0.5, None, 0.9, 0.99]}}
    raw["search"] = raw["search"] | {"trials": 8}
    wider = new_sweep(parse_spec(raw, "after"), record_url)
    drive(wider)
    assert len(wider.studies[0].search_table.trials) == 8


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("lr", [None, 0.1], "space.lr: must be a number, got None."),
        ("prompt_init", [True, "random"], "space.prompt_init: must be a name, got True."),
        ("nmi", [1, False], "space.nmi: must be true or false, got 1."),
        ("nmi", [None, False], "space.nmi: must be true or false, got None."),
        ("optimizer", ["sgd", None], "space.optimizer: must be one of adamw, sgd, got None."),
        ("ema_decay", [None, None], "space.ema_decay: samplers cannot tell None from None: leave one of them out."),
        ("nmi", [True, 1], "space.nmi: samplers cannot tell 1 from True: leave one of them out."),
    ],
)
def test_a_field_that_does_not_take_them_says_so(
    raw_study: dict[str, Any], name: str, values: list[Any], problem: str
) -> None:
    raw_study["space"][name] = {"type": "choice", "values": values}
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_study, "a test")
    assert problem in str(refused.value)
