"""`per`: what differs for a method, a backbone or a group of tasks. Later entries win, and every mistake is located."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.loader import parse_recorded_spec, parse_spec
from orchestrator.spec.plan import StudyPlan, plan_studies, plan_sweep
from orchestrator.spec.schema import Search, StudyMatrix, SweepSpec
from orchestrator.spec.searched import searched_parts, searches
from trainer.config import unused_fields

BASE, LARGE = "vit_base_patch16_224.mae", "vit_large_patch16_224.mae"
MATRIX: dict[str, Any] = {
    "tasks": ["vtab/dtd", "vtab/eurosat", "fgvc/cub_200_2011", "own/photos"],
    "backbones": [BASE, LARGE],
    "methods": ["spt_deep", "linear"],
    "fixed": {"batch_size": 32, "warmup_epochs": 1},
    "space": {
        "lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "prompt_length": {"type": "choice", "values": [1, 5]},
    },
}
SEARCH = Search(trials=9, max_concurrent=3)
ENTRIES: list[tuple[dict[str, Any], dict[str, list[str]]]] = [
    (
        {"fixed": {"batch_size": 8}, "search": {"trials": 3}},
        {"method": ["spt_deep", "linear"]},
    ),
    # What was searched is fixed.
    ({"fixed": {"batch_size": 16, "lr": 0.5}}, {"group": ["vtab"]}),
    # What was fixed is searched, on one task of a group that another entry has in whole.
    (
        {"space": {"batch_size": {"type": "choice", "values": [4, 5]}}, "search": {"sampler": "random", "trials": 4}},
        {"backbone": [LARGE], "group": ["natural", "own/photos"]},
    ),
    (
        {
            "space": {"lr": {"type": "choice", "values": [1.0]}, "prompt_length": {"type": "choice", "values": [2]}},
            "search": {"pruner": {"type": "median", "min_epochs": 3}},
        },
        {"method": ["linear"], "group": ["fgvc", "vtab/eurosat"]},
    ),
]
"""What changes, and for which studies."""
TASKS_OF = {
    "vtab": ["vtab/dtd", "vtab/eurosat"],
    "natural": ["vtab/dtd"],
    "fgvc": ["fgvc/cub_200_2011"],
    "vtab/eurosat": ["vtab/eurosat"],
    "own/photos": ["own/photos"],
}


def is_selected(selectors: dict[str, list[str]], study: StudyPlan) -> bool:
    tasks = [task for name in selectors.get("group", ()) for task in TASKS_OF[name]]
    return (
        study.method in selectors.get("method", [study.method])
        and study.backbone in selectors.get("backbone", [study.backbone])
        and ("group" not in selectors or study.task in tasks)
    )


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))], ids=str)
def test_of_all_entries_that_select_a_study_the_last_one_gives_each_name_its_value(order: tuple[int, ...]) -> None:
    entries = [ENTRIES[index] for index in order]
    matrix = StudyMatrix.model_validate(MATRIX | {"per": [change | selectors for change, selectors in entries]})
    studies = [*plan_studies(matrix, SEARCH)]
    assert len(studies) == 4 * 2 * 2

    for study in studies:
        # The spec itself is the first entry of all, and its space and its fixed values have no name in common.
        parts = [MATRIX, *(change for change, selectors in entries if is_selected(selectors, study))]
        for name in ("lr", "batch_size", "warmup_epochs", "prompt_length"):
            if name in unused_fields(study.method):
                assert name not in study.fixed and name not in study.space
                continue
            last = [part for part in parts if name in part.get("fixed", {}) or name in part.get("space", {})][-1]
            if name in last.get("fixed", {}):
                assert (study.fixed[name], name in study.space) == (last["fixed"][name], False), (
                    "what is fixed is not searched"
                )
            else:
                dimension = study.space[name].model_dump(exclude_defaults=True)
                assert (dimension, name in study.fixed) == (last["space"][name], False)

        changes = [part["search"] for part in parts if "search" in part]
        merged = {name: value for change in changes for name, value in change.items()}
        assert study.search == Search.model_validate(SEARCH.model_dump() | merged)


def test_a_name_that_stays_searched_keeps_its_place_in_the_space(raw_spec: dict[str, Any]) -> None:
    # Samplers draw in this order, so another order would be another sweep.
    raw_spec["per"] = [{"method": "spt_deep", "space": {"lr": {"type": "choice", "values": [0.1]}}}]
    deep = next(plan for plan in plan_sweep(parse_spec(raw_spec, "a test")).studies if plan.method == "spt_deep")
    assert [*deep.space] == [*raw_spec["space"]]


def test_a_name_or_a_list_of_one_is_the_same(raw_spec: dict[str, Any]) -> None:
    one = raw_spec | {"per": [{"method": "linear", "group": "demo/digits", "fixed": {"batch_size": 8}}]}
    many = raw_spec | {"per": [{"method": ["linear"], "group": ["demo/digits"], "fixed": {"batch_size": 8}}]}
    assert parse_spec(one, "a test") == parse_spec(many, "a test")


LINEAR = {"method": "linear"}
FIXED = {"fixed": {"batch_size": 8}}
CHOICE = {"type": "choice", "values": [0.1, 1.0]}
GRID = {"method": "linear", "space": {"lr": CHOICE}, "search": {"sampler": "grid", "trials": 2}}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([FIXED], "per.0: selects nothing; give it a method, a backbone or a group."),
        ([{}], "per.0: selects nothing; give it a method, a backbone or a group."),
        ([LINEAR | FIXED, {"method": "linear"}], "per.1: changes nothing; give it fixed, space or search."),
        ([{"method": "lineer"} | FIXED], "per.0.method.0: 'lineer' is not a method; did you mean 'linear'?"),
        ([{"method": []} | FIXED], "per.0.method: must be a list with at least 1 entry, got []."),
        ([{"method": ["linear", "full"]} | FIXED],
         "per.0.method: 'full' is not a method of this spec; there are spt_deep, linear."),
        ([{"backbone": BASE} | FIXED],
         f"per.0.backbone: '{BASE}' is not a backbone of this spec; did you mean 'vit_nano_patch4_32.mae'?"),
        ([{"group": "demo/shapes_ori"} | FIXED],
         "per.0.group: 'demo/shapes_ori' is not a task or group of this spec; did you mean 'demo/shapes_loc'?"),
        ([{"group": "natrual"} | FIXED], "per.0.group.0: 'natrual' is not a task or group; did you mean 'natural'?"),
        ([LINEAR | FIXED | {"metod": "full"}], "per.0.metod: 'metod' is not a key here; did you mean 'method'?"),
        ([LINEAR | {"search": {"trails": 9}}],
         "per.0.search.trails: 'trails' is not a key here; did you mean 'trials'?"),
        ([LINEAR | {"search": {"trials": 0}}],
         "per.0.search.trials: must be at least 1, got 0."),
        ([LINEAR | {"search": {"pruner": {"type": "asha", "min_epoch": 2, "min_epochs": 2}}}],
         "per.0.search.pruner.min_epoch: 'min_epoch' is not a key here; did you mean 'min_epochs'?"),
        ([LINEAR | FIXED, LINEAR | {"space": {"lr": {"type": "float", "low": "1e-4", "high": 1.0}}}],
         "per.1.space.lr.low: must be a number, got the text '1e-4' (write 1.0e-4: YAML reads 1e-4 as text)."),
        ([LINEAR | {"space": {"lr": {"type": "float", "low": 0.1, "high": 1.0, "logs": True}}}],
         "per.0.space.lr.logs: 'logs' is not a key here; did you mean 'log'?"),
        ([LINEAR | {"space": {"lrr": CHOICE}}],
         "per.0.space.lrr: 'lrr' is not a TrainConfig field; did you mean 'lr'?"),
        ([LINEAR | {"fixed": {"seed": 1}}],
         "per.0.fixed.seed: the sweep sets it itself; use search.seed and final.seeds."),
        ([LINEAR | {"fixed": {"prompt_length": 5}}],
         "per.0.fixed.prompt_length: without effect on linear; leave it out."),
        ([LINEAR | {"fixed": {"lr": 0.1}, "space": {"lr": CHOICE}}],
         "per.0.space.lr: is fixed too; keep one of the two."),
        ([LINEAR | FIXED, {"group": "demo", "fixed": {"batch_size": 16}}],
         "per.0.fixed.batch_size: later entries replace it in every study; put this entry below them."),
        ([LINEAR | {"search": {"trials": 3}}, {"group": "demo", "search": {"trials": 4}}],
         "per.0.search.trials: later entries replace it in every study; put this entry below them."),
        # The corners of the merged space, at the key that gave the value.
        ([{"method": "spt_deep", "space": {"prompt_length": {"type": "choice", "values": [65]}}}],
         "per.0.space.prompt_length: 65 exceeds the 64 patch tokens of vit_nano_patch4_32.mae; mean_pool and max_pool "
         "need one token per prompt. Use prompt_init random or kmeans, or prompt_length <= 64."),
        ([LINEAR | {"fixed": {"epochs": 5}}, {"group": "demo/digits", "fixed": {"warmup_epochs": 7}}],
         "per.1.fixed.warmup_epochs: must be at least 0 and below epochs=5, got 7."),
        ([LINEAR | {"search": {"pruner": {"type": "asha", "min_epochs": 9}}}],
         "per.0.search.pruner.min_epochs: must be below epochs=9, or no trial is ever stopped; got 9."),
        ([LINEAR | {"fixed": {"epochs": 5, "warmup_epochs": 0},
                    "search": {"pruner": {"type": "median", "min_epochs": 5}}}],
         "per.0.search.pruner.min_epochs: must be below epochs=5, or no trial is ever stopped; got 5."),
        # A grid needs points, in the merged space.
        ([LINEAR | {"search": {"sampler": "grid", "trials": 2}}],
         "space.lr: sampler grid tries every value, and a float range has infinitely many; "
         "list some: {type: choice, values: [...]}."),
        ([GRID | {"search": {"sampler": "grid", "trials": 3}}],
         "per.0.search.trials: 3 exceed the 2 points of the grid; use at most 2, or list more values."),
        ([GRID | {"search": {"sampler": "grid"}}],
         "search.trials: 8 exceed the 2 points of the grid; use at most 2, or list more values."),
        # A condition is judged in the space of each study.
        ([{"method": "spt_deep", "space": {"init_images": CHOICE | {"when": {"prompt_init": "kmeans"}}}}],
         "per.0.space.init_images.when: prompt_init is never 'kmeans', but one of random, mean_pool."),
        ([{"method": "spt_deep", "space": {"init_images": CHOICE | {"when": {"prompt_init": "random"}}}},
          {"method": "spt_deep", "fixed": {"prompt_init": "mean_pool"}}],
         "per.0.space.init_images.when: prompt_init is fixed at 'mean_pool' and never 'random': "
         "leave init_images out."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_its_cure(
    raw_spec: dict[str, Any], entries: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec | {"per": entries}, "draft.yaml")
    first, *others = refused.value.problems
    assert first == problem
    # An entry that is empty lacks both.
    assert others == (["per.0: changes nothing; give it fixed, space or search."] if entries == [{}] else [])


def test_a_condition_may_hold_in_one_study_and_not_in_another(raw_spec: dict[str, Any]) -> None:
    raw_spec["methods"] = ["spt_deep", "spt_shallow"]
    raw_spec["space"]["init_images"] = CHOICE | {"when": {"prompt_init": "mean_pool"}}
    raw_spec["per"] = [{"method": "spt_shallow", "fixed": {"prompt_init": "random"}}]
    deep, shallow = (plan for plan in plan_sweep(parse_spec(raw_spec, "a test")).studies if plan.task == "demo/digits")
    assert deep.space["init_images"].is_active({"prompt_init": "mean_pool"})
    assert not shallow.space["init_images"].is_active(shallow.fixed)


def test_what_every_study_overrides_may_stay_in_the_spec(raw_spec: dict[str, Any]) -> None:
    raw_spec["per"] = [{"method": ["spt_deep", "linear"], "space": {"lr": CHOICE}, "search": {"trials": 2}}]
    assert {study.search.trials for study in plan_sweep(parse_spec(raw_spec, "a test")).studies} == {2}


def test_a_grid_and_a_float_range_go_together_if_no_study_has_both(raw_spec: dict[str, Any]) -> None:
    spec = parse_spec(raw_spec | {"per": [GRID]}, "a test")
    assert {study.search.sampler for study in plan_sweep(spec).studies} == {"grid", spec.search.sampler}


def test_a_missing_value_may_come_from_an_entry(raw_spec: dict[str, Any]) -> None:
    for name in ("prompt_length", "prompt_init"):
        del raw_spec["space"][name]
    raw_spec["per"] = [{"method": "spt_deep", "fixed": {"prompt_length": 5, "prompt_init": "random"}}]
    parse_spec(raw_spec, "a test")
    raw_spec["per"][0]["group"] = "demo/digits"
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec, "a test")
    # The other task has none.
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "fixed.prompt_length",
        "fixed.prompt_init",
    ]


def test_all_mistakes_are_told_at_once(raw_spec: dict[str, Any]) -> None:
    raw_spec["colour"] = "red"
    raw_spec["fixed"]["batchsize"] = 4
    raw_spec["per"] = [
        {"method": "spt_deep", "space": {"lr": {"type": "float", "low": "1e-3", "high": 1.0}}, "fixed": {"epocs": 5}},
        {"metod": "linear", "fixed": {"batch_size": 8}},
        {"method": "linear", "fixed": {"weight_decy": 0.1}, "search": {"trials": 0}},
        {"group": "demo/digits", "fixed": {"warmup_epochs": 9}},
        {"fixed": {"precision": "bf16"}},
    ]
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec, "a test")
    assert {problem.partition(": ")[0] for problem in refused.value.problems} == {
        "colour",
        "fixed.batchsize",
        "per.0.space.lr.low",
        "per.0.fixed.epocs",
        "per.1.metod",
        "per.2.fixed.weight_decy",
        "per.2.search.trials",
        "per.3.fixed.warmup_epochs",
        "per.4",
    }


@pytest.mark.parametrize("value", ["linear", {"method": "linear"}, [["linear"]], [None]])
def test_what_is_no_list_of_entries_is_refused_in_a_sentence(raw_spec: dict[str, Any], value: object) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec | {"per": value}, "a test")
    assert all(problem.startswith("per") for problem in refused.value.problems)


@pytest.mark.parametrize("part", ["fixed", "space", "search"])
def test_a_part_of_an_entry_that_is_no_mapping_is_refused_in_a_sentence(raw_spec: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(raw_spec | {"per": [LINEAR | FIXED | {part: ["lr"]}]}, "a test")
    (problem,) = refused.value.problems
    assert problem.startswith(f"per.0.{part}: ")


FULL_ENTRIES: list[dict[str, Any]] = [
    LINEAR | {"fixed": {"batch_size": 8}, "search": {"trials": 3, "pruner": {"type": "none"}}},
    {
        "group": ["demo/digits"],
        "backbone": "vit_nano_patch4_32.mae",
        "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0}},
        "search": {"pruner": {"type": "median", "min_epochs": 2}},
    },
]


def test_a_recorded_spec_is_read_as_it_was_written(raw_spec: dict[str, Any]) -> None:
    spec = parse_spec(raw_spec | {"per": FULL_ENTRIES}, "a test")
    recorded = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert parse_recorded_spec(recorded, "the database") == spec == parse_spec(recorded, "the database")
    # The pruner is given, though it is the default of `search`.
    assert spec.per[0].search.values.keys() == {"trials", "pruner"}


def test_what_a_newer_version_wrote_into_an_entry_is_ignored(raw_spec: dict[str, Any]) -> None:
    spec = parse_spec(raw_spec | {"per": FULL_ENTRIES}, "a test")
    raw = spec.model_dump(mode="json")
    for entry in raw["per"]:
        entry["novel"] = {"a": 1}
        entry["search"]["novel"] = 1
        entry["search"]["pruner"]["novel"] = 2
    raw["per"][1]["space"]["lr"] |= {"novel": 3, "float": 4}
    raw["per"].append({"train_size": 0.1, "fixed": {"lr": 0.9}})
    read = parse_recorded_spec(raw, "the database")
    assert plan_sweep(read) == plan_sweep(spec), "an entry whose only selector is unknown selects nothing"


def test_names_that_left_the_catalog_are_read(raw_spec: dict[str, Any]) -> None:
    raw = parse_spec(raw_spec, "a test").model_dump(mode="json")
    raw["tasks"].append("demo/no_more")
    raw["methods"].append("no_more")
    raw["per"] = [{"method": ["no_more"], "group": ["demo/no_more"], "fixed": {"lr": 0.5}}]
    studies = plan_sweep(parse_recorded_spec(raw, "the database")).studies
    assert [study.key.split()[:2] for study in studies if study.fixed.get("lr") == 0.5] == [["demo/no_more", "no_more"]]


def test_what_is_searched_is_told_once_for_all_studies_that_share_it(raw_spec: dict[str, Any]) -> None:
    raw_spec |= {"tasks": ["vtab", "fgvc"], "backbones": [BASE], "methods": ["spt_deep", "spt_shallow", "linear"]}
    raw_spec["per"] = [
        {"method": "linear", "search": {"trials": 40}},
        {"method": "linear", "group": ["fgvc", "vtab/dtd"], "fixed": {"batch_size": 8}},
    ]
    spec: SweepSpec = parse_spec(raw_spec, "a test")
    parts, common = searched_parts(plan_sweep(spec).studies)
    assert common == "epochs 9, warmup_epochs 1"
    natural = [plan.task for plan in plan_sweep(spec).studies if plan.group == "natural" and plan.method == "linear"]
    others = ", ".join(["specialized", "structured"])
    rest = ", ".join(task for task in natural if task != "vtab/dtd")
    told = [(part.studies, part.search, part.space, part.fixed) for part in parts]
    search = "sampler tpe, pruner asha, seed 0"
    assert told == [
        (
            "spt_deep, spt_shallow",
            f"8 trials, {search}",
            "lr 0.001 to 0.1 (log); prompt_length 1, 5 or 64; prompt_init random or mean_pool",
            "",
        ),
        (f"linear ({rest}, {others})", f"40 trials, {search}", "lr 0.001 to 0.1 (log)", ""),
        ("linear (vtab/dtd, fgvc)", f"40 trials, {search}", "lr 0.001 to 0.1 (log)", "batch_size 8"),
    ]


def test_studies_that_search_in_another_way_do_not_look_alike(raw_spec: dict[str, Any]) -> None:
    """Each of these keys changes which trials run, so two rows that differ in nothing visible would be a riddle."""
    raw_spec["per"] = [
        {"method": "linear", "search": {"pruner": {"type": "asha", "min_epochs": 2, "reduction": 3}, "transfer": 2}},
        {"method": "linear", "search": {"max_concurrent": 1, "startup_trials": 1, "eval_every": 2}},
    ]
    plans = plan_sweep(parse_spec(raw_spec, "a test")).studies
    parts, _ = searched_parts(plans)
    texts = [part.search for part in parts]
    assert len({*texts}) == len(texts) == 2
    assert searches(plans) == {part.search: part.studies for part in parts}
    for words in (
        "min_epochs: 2",
        "reduction: 3",
        "transfer 2",
        "max_concurrent 1",
        "startup_trials 1",
        "eval_every 2",
    ):
        assert [words in text for text in texts] == ["linear" in part.studies for part in parts]


def test_searches_of_one_method_are_told_apart_by_their_tasks(raw_spec: dict[str, Any]) -> None:
    raw_spec |= {"tasks": ["vtab/dtd", "vtab/svhn"], "methods": ["linear"], "space": {"lr": raw_spec["space"]["lr"]}}
    raw_spec["per"] = [{"group": "vtab/svhn", "search": {"trials": 3}}]
    names = [*searches(plan_sweep(parse_spec(raw_spec, "a test")).studies).values()]
    assert names == ["linear (vtab/dtd)", "linear (vtab/svhn)"]
