"""The lab book: every page asks, prices, expects and says how to run; and what it says is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from orchestrator.report.published import published_rows
from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import Choice, IntRange
from trainer.catalog import METHODS

PAGES = sorted(Path(search_spaces.__path__[0]).glob("*.yaml"))
REPRODUCTIONS = [
    f"{benchmark}_{pretraining}_{method}"
    for benchmark in ("vtab", "fgvc")
    for pretraining in ("mae", "moco_v3", "supervised")
    for method in ("spt", "vpt", "linear", "full")
]
STUDIES = ["data_efficiency", "ablation_prompt_init", "ablation_prompt_length", "ablation_backbone_size"]
STUDIES += ["ablation_init_task", "nmi"]
DEMOS = ["demo", "demo_data_efficiency", "demo_ablation_prompt_init"]
GROUPS = {"vtab": ("natural", "specialized", "structured"), "fgvc": ("fgvc",)}


def head_of(path: Path) -> str:
    """The comment that a page begins with, as one line of text."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def first_params(plan: StudyPlan) -> dict[str, Any]:
    """Params at the first end of each dimension."""
    return {name: d.values[0] if isinstance(d, Choice) else d.low for name, d in plan.space.items()}


def num_points(plan: StudyPlan) -> int:
    """How many combinations a grid has."""
    points = 1
    for dimension in plan.space.values():
        assert isinstance(dimension, Choice | IntRange) and not dimension.when
        points *= len(dimension.values) if isinstance(dimension, Choice) else dimension.high - dimension.low + 1
    return points


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest) -> tuple[Path, SweepSpec]:
    path: Path = request.param
    return path, load_spec(path)


def test_the_book_has_these_pages_each_found_by_its_name_and_no_name_twice() -> None:
    assert {path.stem for path in PAGES} == {*REPRODUCTIONS, *STUDIES, *DEMOS}
    assert all(find_spec(path.stem) == path for path in PAGES)
    assert len({load_spec(path).name for path in PAGES}) == len(PAGES)


def test_a_page_asks_prices_expects_and_says_how_to_run(page: tuple[Path, SweepSpec]) -> None:
    path, spec = page
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("?")
    found = [re.match(r"# (Cost: |Expected: |Run:  )", line) for line in lines]
    assert [match[1] for match in found if match] == ["Cost: ", "Expected: ", "Run:  "]
    assert f"# Run:  sptune launch {path.stem}" in lines
    assert spec.name == path.stem.replace("_", "-")
    assert max(map(len, lines)) <= 120


def test_a_page_tells_its_true_cost(page: tuple[Path, SweepSpec]) -> None:
    path, spec = page
    head = head_of(path)
    told = re.search(r"Cost: (\d+) studies x \((\d+) search \+ (\d+) final\) trials = (\d+) \+ (\d+)\. ", head)
    assert told is not None
    count, search, final = len(plan_sweep(spec).studies), spec.search.trials, len(spec.final.seeds)
    assert [int(number) for number in told.groups()] == [count, search, final, count * search, count * final]
    # Hours are told where they were measured, and else how to estimate them.
    known = "minutes on two cores" in head
    assert known == (path.stem in DEMOS)
    assert known or f"sptune plan {path.stem} --calibrate" in head


def test_a_grid_has_as_many_points_as_trials(page: tuple[Path, SweepSpec]) -> None:
    _, spec = page
    if spec.search.sampler == "grid":
        assert {num_points(study) for study in plan_sweep(spec).studies} == {spec.search.trials}


def test_search_never_reads_test_and_a_final_trial_learns_from_all_else(page: tuple[Path, SweepSpec]) -> None:
    _, spec = page
    for study in plan_sweep(spec).studies:
        search, final = (make(first_params(study), 0) for make in (study.search_config, study.final_config))
        assert (search.train_split, search.eval_split, search.eval_metric) == ("train", "val", "val/accuracy")
        assert (final.train_split, final.eval_split) == ("trainval", "test")
        assert not search.measure_peeking


@pytest.mark.parametrize("stem", REPRODUCTIONS)
def test_a_reproduction_follows_its_papers_protocol(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    assert spec.final.seeds == [42, 44, 82, 100, 800] and spec.final.select == "last_val"
    configs = [study.search_config(first_params(study), 0) for study in plan_sweep(spec).studies]
    assert {config.normalize for config in configs} == {"imagenet"}
    assert {config.epochs for config in configs} == {100}
    assert {config.transform for config in configs} == {"spt" if stem.endswith("spt") else "vpt"}
    optimizer = "sgd" if stem.endswith(("vpt", "linear")) else "adamw"
    assert {config.optimizer for config in configs} == {optimizer}
    assert {config.warmup_epochs for config in configs} == {5 if stem.endswith("full") else 10}


@pytest.mark.parametrize("stem", [stem for stem in REPRODUCTIONS if stem.endswith(("vpt", "linear"))])
def test_vpts_learning_rates_are_scaled_with_the_batch(stem: str) -> None:
    # Linear's batch is 1,024 in VPT, more than the images of some tasks.
    lr, batch = load_spec(find_spec(stem)).space["lr"], 64 if stem.endswith("vpt") else 1024
    assert isinstance(lr, Choice)
    base = [50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05]
    assert lr.values == pytest.approx([rate * batch / 256 for rate in base])


@pytest.mark.parametrize("stem", REPRODUCTIONS)
def test_a_reproduction_expects_the_published_numbers_and_no_others(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    (backbone,), (benchmark,) = spec.backbones, spec.tasks
    expected = head_of(find_spec(stem)).partition("Expected: ")[2].partition("Run: ")[0]
    rows = [row for row in published_rows(backbone) if row.method in spec.methods]
    assert all(row.method in METHODS for row in rows)
    numbers = [row.groups[group] for row in rows for group in GROUPS[benchmark] if group in row.groups]
    assert sorted(map(float, re.findall(r"\d+\.\d+", expected))) == sorted(numbers)
    for row in rows:
        told = any(group in row.groups for group in GROUPS[benchmark])
        assert (row.method in expected and row.source in expected) == told
    assert ("none published" in expected) == (len(numbers) == 0)


@pytest.mark.parametrize("stem", STUDIES)
def test_a_studys_numbers_are_published_ones(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    known = {
        value
        for backbone in spec.backbones
        for row in published_rows(backbone)
        if row.method in spec.methods
        for value in (*row.groups.values(), *row.tasks.values())
    }
    expected = head_of(find_spec(stem)).partition("Expected: ")[2].partition("Run: ")[0]
    assert {float(number) for number in re.findall(r"\d+\.\d+", expected)} <= known
    assert "none published" in expected


@pytest.mark.parametrize(("stem", "twin"), [("data_efficiency", 4), ("ablation_prompt_init", 12)])
def test_a_demo_is_its_studys_small_twin(stem: str, twin: int) -> None:
    large, small = load_spec(find_spec(stem)), load_spec(find_spec(f"demo_{stem}"))
    assert set(small.methods) <= set(large.methods) and all(task.startswith("demo/") for task in small.tasks)
    assert small.resources.gpus == 0
    axis = len(small.train_sizes) if stem == "data_efficiency" else num_points(plan_sweep(small).studies[0])
    assert axis == twin
    assert set(small.space) <= set(large.space)
