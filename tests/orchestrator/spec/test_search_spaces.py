"""The lab book: every page asks, prices, expects and says how to run; and what it says is so."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from orchestrator.errors import SpecError
from orchestrator.report.published import published_rows
from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import Choice, FloatRange, IntRange
from trainer.catalog import METHODS
from trainer.config import unused_fields

PAGES = sorted(Path(search_spaces.__path__[0]).glob("*.yaml"))
REPRODUCTIONS = [
    f"{benchmark}_{pretraining}" for benchmark in ("vtab", "fgvc") for pretraining in ("mae", "moco_v3", "supervised")
]
PROTOCOLS: dict[str, dict[str, Any]] = {
    "spt": {"transform": "spt", "optimizer": "adamw", "warmup_epochs": 10, "batch_size": 32},
    "vpt": {"transform": "vpt", "optimizer": "sgd", "warmup_epochs": 10, "batch_size": 64},
    "linear": {"transform": "vpt", "optimizer": "sgd", "warmup_epochs": 10},
    "full": {"transform": "vpt", "optimizer": "adamw", "warmup_epochs": 5, "batch_size": 384},
}
"""What the papers' code does, by the first word of a method."""
VPT_LRS = [50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05]
"""VPT's grid for a batch of 256. Its grid of linear heads on MAE has three more."""
COMPARISONS = ["vtab_methods", "fgvc_methods"]
STUDIES = ["data_efficiency", "ablation_prompt_init", "ablation_prompt_length", "ablation_backbone_size"]
STUDIES += ["ablation_init_task", "nmi"]
ROOT = Path(__file__).parents[3]
DEMOS = ["demo", "demo_methods", "demo_data_efficiency", "demo_ablation_prompt_init"]
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
    assert {path.stem for path in PAGES} == {*REPRODUCTIONS, *COMPARISONS, *STUDIES, *DEMOS}
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
    studies = plan_sweep(spec).studies
    count, final = len(studies), len(spec.final.seeds)
    trials = [*Counter((study.method.partition("_")[0], study.search.trials) for study in studies).items()]
    num_search = sum(study.search.trials for study in studies)
    if len({study.search.trials for study in studies}) == 1:
        search = studies[0].search.trials
        noun = "study" if count == 1 else "studies"
        cost = f"{count} {noun} x ({search} search + {final} final) trials = {num_search} + {count * final}. "
    else:
        # Methods that search with as many trials are one product: 38 x 24 for both SPT variants.
        parts = " + ".join(f"{number} x {search}" for (_, search), number in trials)
        cost = f"{count} studies, {parts} = {num_search} search trials and {count} x {final} = {count * final} final "
    assert f"Cost: {cost}" in head
    # Hours are told where they were measured, and else how to estimate them.
    known = "minutes on two cores" in head
    assert known == (path.stem in DEMOS)
    assert known or f"sptune plan {path.stem} --calibrate" in head


def test_a_grid_has_as_many_points_as_trials(page: tuple[Path, SweepSpec]) -> None:
    _, spec = page
    for study in plan_sweep(spec).studies:
        if study.search.sampler == "grid":
            assert num_points(study) == study.search.trials


def test_search_never_reads_test_and_a_final_trial_learns_from_what_its_page_says(page: tuple[Path, SweepSpec]) -> None:
    path, spec = page
    # VPT's code trains on train alone for FGVC, and so do those built on it.
    train_split = "train" if path.stem.startswith("fgvc_") else "trainval"
    for study in plan_sweep(spec).studies:
        search = study.search_config(first_params(study), 0)
        final = study.final_config(first_params(study), 0, train_on=spec.final.train_on)
        assert (search.train_split, search.eval_split, search.eval_metric) == ("train", "val", "val/accuracy")
        assert (final.train_split, final.eval_split) == (train_split, "test")
        assert not search.measure_peeking


def test_a_page_with_a_real_network_runs_in_bf16_and_says_what_is_known_about_it(page: tuple[Path, SweepSpec]) -> None:
    path, spec = page
    head = head_of(path)
    precisions = {study.search_config(first_params(study), 0).precision for study in plan_sweep(spec).studies}
    if path.stem in DEMOS:
        assert precisions == {"fp32"} and "Precision:" not in head
        return

    assert precisions == {"bf16"}
    evidence = head.partition("Precision: ")[2].partition("Cost: ")[0]
    assert "For fp32, write `precision: fp32` in `fixed`" in evidence and "Not measured" in evidence

    # The numbers are those of the benchmarks.
    measured = (ROOT / "tests/benchmarks/README.md").read_text()
    (row,) = re.findall(r"\| test accuracy after 10 epochs.*", measured)
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", evidence)
    assert len(numbers) == 2 and f"| {numbers[1]} (" in row and f"bf16 {numbers[0]} |" in row


@pytest.mark.parametrize("stem", REPRODUCTIONS)
def test_a_reproduction_has_every_method_under_its_papers_protocol(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    assert spec.final.seeds == [42, 44, 82, 100, 800] and spec.final.select == "last_val"
    assert spec.methods == [name for name in METHODS if name.partition("_")[0] in PROTOCOLS]

    for study in plan_sweep(spec).studies:
        config = study.search_config(first_params(study), 0)
        method = study.method.partition("_")[0]
        assert {name: getattr(config, name) for name in PROTOCOLS[method]} == PROTOCOLS[method], study.key
        assert (config.normalize, config.epochs) == ("imagenet", 100)
        # Only VPT's code for MAE builds the network anew, with a norm and a drop path of its own.
        is_fresh = stem.endswith("mae") and method != "spt"
        assert config.final_norm == ("fresh" if is_fresh else "pretrained")
        assert config.drop_path == (0.1 if is_fresh and method == "full" else 0.0)


@pytest.mark.parametrize("stem", REPRODUCTIONS)
def test_vpts_grids_are_whole_and_scaled_with_the_batch(stem: str) -> None:
    # Linear's batch is 1,024 in VPT, more than the images of some tasks.
    on_mae = [0.025, 0.005, 0.0025] if stem.endswith("mae") else []
    grids = {
        "vpt_deep": [rate * 64 / 256 for rate in VPT_LRS],
        "vpt_shallow": [rate * 64 / 256 for rate in VPT_LRS],
        "linear": [rate * 1024 / 256 for rate in VPT_LRS + on_mae],
        # As VPT's script lists them, before its code scales them; the page says so.
        "full": [0.005, 0.001, 0.0005, 0.0001],
    }
    for study in plan_sweep(load_spec(find_spec(stem))).studies:
        if study.method in grids:
            lr = study.space["lr"]
            decay = study.space["head_weight_decay" if study.method == "linear" else "weight_decay"]
            assert isinstance(lr, Choice) and isinstance(decay, Choice)
            assert lr.values == pytest.approx(grids[study.method])
            assert decay.values == [0.01, 0.001, 0.0001, 0.0]


@pytest.mark.parametrize("stem", [*COMPARISONS, "demo_methods"])
def test_a_comparison_has_all_methods_of_the_catalog(stem: str) -> None:
    assert sorted(load_spec(find_spec(stem)).methods) == sorted(METHODS)


@pytest.mark.parametrize("stem", COMPARISONS)
def test_a_comparison_gives_all_methods_the_same_recipe_and_effort(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    assert spec.final.seeds == load_spec(find_spec("vtab_mae")).final.seeds
    studies = plan_sweep(spec).studies
    assert len({study.search.model_dump_json() for study in studies}) == 1

    own = {name for method in METHODS.values() for name in method.fields} | {"prompt_length", "prompt_init"}
    searched = {"lr", "weight_decay", "head_weight_decay"}
    recipes = set()
    for study in studies:
        config = dataclasses.asdict(study.search_config(first_params(study), 0))
        recipes.add(str({name: config[name] for name in config.keys() - own - searched - {"task", "method"}}))
        # All three are searched, except where a method has no such field.
        assert searched - set(study.space) <= unused_fields(study.method)

        lr = study.space["lr"]
        assert isinstance(lr, FloatRange) and lr.log
        assert (lr.low, lr.high) == (METHODS[study.method].first_lr or (5e-3, 2e-1))
    assert len(recipes) == 1


@pytest.mark.parametrize("stem", REPRODUCTIONS + COMPARISONS)
def test_a_reproduction_expects_the_published_numbers_and_no_others(stem: str) -> None:
    spec = load_spec(find_spec(stem))
    (backbone,), (benchmark,) = spec.backbones, spec.tasks
    expected = head_of(find_spec(stem)).partition("Expected: ")[2].partition("Run: ")[0]
    rows = [row for row in published_rows(backbone) if row.method in spec.methods]
    assert all(row.method in METHODS for row in rows)
    numbers = [row.groups[group] for row in rows for group in GROUPS[benchmark] if group in row.groups]
    assert sorted(map(float, re.findall(r"\d+\.\d+", expected))) == sorted(numbers)
    for row in rows:
        has_number = any(group in row.groups for group in GROUPS[benchmark])
        assert bool(re.search(rf"{row.method} (mean|natural) [^;]*{re.escape(row.source)}", expected)) == has_number
    told = {row.method for row in rows if any(group in row.groups for group in GROUPS[benchmark])}
    assert ("none published" in expected) == (told != {*spec.methods})


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


@pytest.mark.parametrize("stem", REPRODUCTIONS)
@pytest.mark.parametrize("method", ["spt", "vpt", "linear", "full"])
def test_the_name_of_a_page_that_became_a_part_of_another_leads_to_it(stem: str, method: str) -> None:
    with pytest.raises(SpecError) as refused:
        find_spec(f"{stem}_{method}")
    assert f"'{stem}_{method}' is not a spec that ships; did you mean {stem!r}?" in str(refused.value)
