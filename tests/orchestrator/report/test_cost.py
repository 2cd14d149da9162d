"""What methods cost, in the table of `report --cost`, and which of them no other one beats."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.report.blocks import NOTHING
from orchestrator.report.cost import method_costs, pareto_front
from orchestrator.report.sections import build_sections
from orchestrator.study.trial import Failure, FailureCause, Trial
from tests.orchestrator.report.reports import cells_of, run, small, table_block

PARAMETERS = {"spt_deep": 10_000, "full": 1_000_000}
SPEED = {"spt_deep": 400.0, "full": 100.0}


def measured(trial: Trial) -> dict[str, float]:
    """Return the metrics of a trial whose head has as many parameters as its task has letters."""
    parameters = PARAMETERS[trial.config.method] + len(trial.config.task)
    return {
        "learnable/parameters": float(parameters),
        "learnable/share": parameters / 1_000_100,
        "train/images_per_s": SPEED[trial.config.method],
        "memory/peak_gb": 2.0 if trial.phase == "final" else 9.0,
        "epoch/seconds": 360.0,
    }


def on_half_a_gpu(trial: Trial) -> dict[str, float]:
    return measured(trial) | {"gpu/share": 0.5}


def test_each_method_has_its_parameters_speed_memory_and_hours(record_url: str) -> None:
    studies = run(small(), record_url, metrics=measured)
    spt, full = method_costs(studies)
    assert (spt.names[0], full.names[0]) == ("spt_deep", "full")

    tasks = ["vtab/dtd", "vtab/svhn", "fgvc/nabirds"]
    assert spt.num_tasks == 3
    assert spt.parameters == pytest.approx(10_000 + sum(map(len, tasks)) / 3), "heads differ, so it is a mean"
    assert spt.saved_mb == pytest.approx(4 * (spt.parameters or 0) / 1e6)
    assert (spt.images_per_s, full.images_per_s) == (400.0, 100.0)
    assert spt.peak_gb == 2.0, "of final trials"
    # Two search and two final trials of six minutes for each task.
    assert spt.worker_hours == pytest.approx(0.4)
    assert spt.gpu_hours is None

    table = cells_of(table_block(build_sections(studies, with_cost=True), "cost of the methods, over 3 of 3 tasks"))
    assert table["full", "learnable"].text == "1,000,010"
    assert table["full", "hours"].text == "0.4"
    assert not [block for block in build_sections(studies) if getattr(block, "title", "").startswith("cost")]


def test_hours_on_a_gpu_are_hours_of_whole_gpus(record_url: str) -> None:
    studies = run(small(), record_url, metrics=on_half_a_gpu)
    assert [cost.gpu_hours for cost in method_costs(studies)] == [pytest.approx(0.2)] * 2
    table = table_block(build_sections(studies, with_cost=True), "cost")
    assert "hours of GPUs per task" in table.title


def test_methods_are_compared_on_the_tasks_that_all_have(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        is_hard = (trial.config.method, trial.config.task) == ("spt_deep", "fgvc/nabirds")
        return Failure(error="no", cause=FailureCause.ERROR) if is_hard else None

    studies = run(small(), record_url, metrics=measured, fail=fail)
    assert [cost.num_tasks for cost in method_costs(studies)] == [2, 2]
    assert table_block(build_sections(studies, with_cost=True), "cost").title.startswith(
        "cost of the methods, over 2 of 3 tasks"
    )


def test_what_was_not_measured_is_a_dash(record_url: str) -> None:
    studies = run(small(), record_url)
    table = cells_of(table_block(build_sections(studies, with_cost=True), "cost"))
    unknown = {column for (method, column), cell in table.items() if method == "full" and cell.text == NOTHING}
    assert unknown == {"learnable", "% of all", "MB", "images/s", "GB"}


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 5)], [(1, 5)]),
        ([(3, 9), (1, 5), (2, 4)], [(1, 5), (3, 9)]),
        ([(1, 5), (1, 7)], [(1, 7)]),
        ([(1, 5), (2, 5)], [(1, 5)]),
    ],
)
def test_nothing_on_the_front_is_beaten(points: list[Any], front: list[Any]) -> None:
    assert pareto_front(points) == front
