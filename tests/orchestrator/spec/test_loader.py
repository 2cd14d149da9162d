"""Bad specs get one error with every problem, each with its way out; good ones get exactly their studies."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from orchestrator.errors import SpecError
from orchestrator.spec.loader import find_spec, load_spec, parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.space import Choice

SHIPPED = sorted(Path(search_spaces.__path__[0]).glob("*.yaml"))


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as refused:
        parse_spec(raw, "draft.yaml")
    count = len(refused.value.problems)
    assert str(refused.value).startswith(f"draft.yaml has {count} problem")
    return refused.value.problems


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("name", "My Sweep", "name: must be lower-case letters, digits, - and _, got 'My Sweep'."),
        ("tasks", ["demo/digit"], "tasks.0: 'demo/digit' is not a task or group; did you mean 'demo/digits'?"),
        ("tasks", [], "tasks: must be a list with at least 1 entry, got []."),
        ("tasks", "demo/digits", "tasks: must be a list, got 'demo/digits': write ['demo/digits']."),
        ("final.seeds", 3, "final.seeds: must be a list, got 3: write [3]."),
        ("methods", ["spt_deeep"], "methods.0: 'spt_deeep' is not a method; did you mean 'spt_deep'?"),
        ("train_sizes", [1.5],
         "train_sizes: as a share must be in (0, 1], got 1.5; a number of images has no point."),
        ("train_sizes", [{"each": 4}],
         "train_sizes.0: must be a share, a number of images, or {per_class: 5}, got {'each': 4}."),
        ("train_sizes", ["5 per clas"],
         "train_sizes: must be a share (0.1), a number of images (200) or of each class (5 per class), "
         "got '5 per clas'."),
        ("serach", {}, "serach: 'serach' is not a key here; did you mean 'search'?"),
        ("search.trials", "many", "search.trials: must be a number, got the text 'many'."),
        ("search.tirals", 3, "search.tirals: 'tirals' is not a key here; did you mean 'trials'?"),
        ("search.pruner", {"type": "ahsa"}, "search.pruner: 'ahsa' is not a type; did you mean 'asha'?"),
        ("space.lr.low", "1e-4",
         "space.lr.low: must be a number, got the text '1e-4' (write 1.0e-4: YAML reads 1e-4 as text)."),
        ("space.lr.high", 0.0001, "space.lr: low must be below high, and above 0 if log; got low=0.001, high=0.0001."),
        ("space.lr", 0.1,
         "space.lr: must be a mapping with a `type`, such as {type: float, low: 0.1, high: 1.0}; got 0.1."),
        ("space.prompt_lenght", {"type": "choice", "values": [1]},
         "space.prompt_lenght: 'prompt_lenght' is not a TrainConfig field; did you mean 'prompt_length'?"),
        ("space.seed", {"type": "choice", "values": [1]},
         "space.seed: the sweep sets it itself; use search.seed and final.seeds."),
        ("fixed.lr", 0.1, "space.lr: is fixed too; keep one of the two."),
        ("fixed.weight_decay", "1e-2",
         "fixed.weight_decay: must be a number, got the text '1e-2' (write 1.0e-2: YAML reads 1e-2 as text)."),
        ("fixed.warmup_epochs", 9, "fixed.warmup_epochs: must be at least 0 and below epochs=9, got 9."),
        ("space.prompt_length.values", [1, 65],
         "space.prompt_length: 65 exceeds the 64 patch tokens of vit_nano_patch4_32.mae; mean_pool and max_pool need "
         "one token per prompt. Use prompt_init random or kmeans, or prompt_length <= 64."),
        ("space.lr.high", -1, "space.lr: low must be below high, and above 0 if log; got low=0.001, high=-1.0."),
        ("search.sampler", "tpee",
         "search.sampler: must be tpe, gp, cmaes, random or grid, got 'tpee'."),
        ("search.transfer", -1, "search.transfer: must be at least 0, got -1."),
        ("search.pruner", {"type": "hyperband", "min_epochs": 0},
         "search.pruner.min_epochs: must be at least 1, got 0."),
        ("search.pruner", {"type": "hyperband", "min_epochs": 9},
         "search.pruner.min_epochs: must be below epochs=9, or no trial is ever stopped; got 9."),
        ("search.pruner", {"type": "asha", "min_epochs": 10},
         "search.pruner.min_epochs: must be below epochs=9, or no trial is ever stopped; got 10."),
        ("search.pruner", {"type": "hyperband", "min_epoch": 1, "min_epochs": 1},
         "search.pruner.min_epoch: 'min_epoch' is not a key here; did you mean 'min_epochs'?"),
        ("search.eval_every", 0, "search.eval_every: must be at least 1, got 0."),
        ("search.eval_every", 4,
         "search.eval_every: must divide the pruner's min_epochs=1, so that there is a score where the pruner decides; "
         "got 4. Use 1, or another min_epochs."),
        ("fixed.eval_every", 3, "fixed.eval_every: the sweep sets it itself; use search.eval_every."),
        ("space.eval_every", {"type": "choice", "values": [1, 3]},
         "space.eval_every: the sweep sets it itself; use search.eval_every."),
        ("search.sampler", "grid",
         "space.lr: sampler grid tries every value, and a float range has infinitely many; "
         "list some: {type: choice, values: [...]}."),
        ("budget", {"max_trials": 0}, "budget.max_trials: must be at least 1, got 0."),
        ("budget", {"max_hours": 0}, "budget.max_hours: must be above 0, got 0."),
        ("budget", {"max_gpu_hours": -2}, "budget.max_gpu_hours: must be above 0, got -2."),
        ("budget", {"max_trial": 9}, "budget.max_trial: 'max_trial' is not a key here; did you mean 'max_trials'?"),
        ("keep", "bset", "keep: must be best, final or all, got 'bset'."),
        ("pause_after", 1, "pause_after: must be at least 2, got 1."),
        ("lost_after_minutes", 0, "lost_after_minutes: must be above 0, got 0."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_its_cure(
    raw_spec: dict[str, Any], place: str, value: object, problem: str
) -> None:
    *parents, key = place.split(".")
    part = raw_spec
    for parent in parents:
        part = part[parent]
    part[key] = value
    assert problems(raw_spec) == [problem]


SHARE = {"type": "float", "low": 0.1, "high": 1.0}


@pytest.mark.parametrize(
    ("when", "problem"),
    [
        ({"prompt_int": "mean_pool"},
         "'prompt_int' is not another parameter of this spec; did you mean 'prompt_init'?"),
        ({"init_images": 0.5},
         "'init_images' is not another parameter of this spec; there are lr, prompt_length, prompt_init, "
         "head_weight_decay, epochs, warmup_epochs."),
        ({"prompt_init": "mean_pol"}, "prompt_init is never 'mean_pol', but one of random, mean_pool."),
        ({"prompt_init": ["mean_pool", "kmeans"]}, "prompt_init is never 'kmeans', but one of random, mean_pool."),
        ({"prompt_length": 10}, "prompt_length is never 10, but one of 1, 5, 64."),
        ({"lr": 1.0}, "lr is never 1.0, but between 0.001 and 0.1."),
        ({"lr": "high"}, "lr is never 'high', but between 0.001 and 0.1."),
        ({"epochs": [5, 10]}, "epochs is fixed at 9 and never 5 or 10: leave init_images out."),
        ({"head_weight_decay": 0.1},
         "head_weight_decay is itself searched only at times; name the parameters that it depends on."),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_come_true_is_refused(
    raw_spec: dict[str, Any], when: dict[str, object], problem: str
) -> None:
    raw_spec["space"]["head_weight_decay"] = {**SHARE, "when": {"prompt_length": 5}}
    raw_spec["space"]["init_images"] = {**SHARE, "when": when}
    assert problems(raw_spec) == [f"space.init_images.when: {problem}"]


def test_what_a_misspelt_method_may_need_is_no_second_problem(raw_spec: dict[str, Any]) -> None:
    raw_spec["methods"] = ["spt_dep", "vpt_deep"]
    assert problems(raw_spec) == ["methods.0: 'spt_dep' is not a method; did you mean 'spt_deep'?"]
    raw_spec["methods"] = ["vpt_deep"]
    assert problems(raw_spec) == ["space.prompt_init: without effect on vpt_deep; leave it out."]


@pytest.mark.parametrize(
    "when", [{"prompt_init": "mean_pool"}, {"prompt_length": [1, 64]}, {"lr": 0.01}, {"epochs": 9}]
)
def test_a_condition_that_can_come_true_is_accepted(raw_spec: dict[str, Any], when: dict[str, object]) -> None:
    raw_spec["space"]["init_images"] = {**SHARE, "when": when}
    assert parse_spec(raw_spec, "a test").space["init_images"].when.keys() == when.keys()


@pytest.mark.parametrize(
    ("where", "part", "keys"),
    [
        ("space.lr", {"type": "choice", "vals": [0.1]}, "'vals' is not a key here; did you mean 'values'?"),
        ("space.lr", {"type": "int", "low": 1, "high": 2, "loww": 3}, "did you mean 'low'?"),
        (
            "search.pruner",
            {"type": "median", "min_epochs": 1, "reduction": 4},
            "'reduction' is not a key here; there are type, min_epochs. It belongs to type asha or hyperband.",
        ),
        (
            "space.lr",
            {"type": "float", "values": [0.1]},
            "'values' is not a key here; there are type, low, high, log, when. It belongs to type choice.",
        ),
        (
            "space.lr",
            {"type": "choice", "values": [1], "log": True},
            "'log' is not a key here; there are type, values, when. It belongs to type float or int.",
        ),
        ("space.lr", {"type": "int", "low": 1, "high": 2, "step": 3}, "; there are type, low, high, log, when."),
        ("space.lr", [0.1, 0.2], "such as {type: choice, values: [0.1, 1.0]}; got [0.1, 0.2]."),
        # A name that is also a type keeps its place.
        ("space.float", {"type": "float", "low": 1}, "float.high: is missing."),
        ("search.none", 3, "none: 'none' is not a key here; there are trials, sampler, "),
        ("search", 3, "must be a mapping with keys such as trials, sampler, startup_trials; got 3."),
    ],
)
def test_the_keys_that_a_message_names_belong_to_the_type_of_the_part(
    raw_spec: dict[str, Any], where: str, part: object, keys: str
) -> None:
    for prefix in ("", "per.0."):
        spec = copy.deepcopy(raw_spec)
        holder: dict[str, Any] = spec
        if prefix:
            spec["per"] = [{"method": "linear"}]
            holder = spec["per"][0]
        *parents, name = where.split(".")
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[name] = part

        assert any(problem.startswith(f"{prefix}{where}") and keys in problem for problem in problems(spec))


def test_a_condition_on_a_parameter_that_is_wrong_itself_is_told_once(raw_spec: dict[str, Any]) -> None:
    raw_spec["space"]["prompt_init"]["values"] = []
    raw_spec["space"]["init_images"] = {**SHARE, "when": {"prompt_init": "mean_pool"}}
    assert all("when" not in problem for problem in problems(raw_spec))


def test_a_conditional_parameter_is_checked_only_where_it_is_searched(raw_spec: dict[str, Any]) -> None:
    # 65 tokens are more than there are patches, which only pooling minds.
    raw_spec["methods"] = ["spt_deep"]
    raw_spec["space"] |= {
        "prompt_length": {"type": "choice", "values": [1, 65], "when": {"prompt_init": "random"}},
        "prompt_init": {"type": "choice", "values": ["random"]},
    }
    parse_spec(raw_spec, "a test")
    raw_spec["space"]["prompt_length"]["when"] = {"prompt_init": "mean_pool"}
    raw_spec["space"]["prompt_init"]["values"] = ["mean_pool"]
    assert len(problems(raw_spec)) == 1
    assert "65 exceeds" in problems(raw_spec)[0]
    # Where it is not searched it has no value, and a method with prompts needs a length.
    raw_spec["space"]["prompt_init"]["values"] = ["random", "mean_pool"]
    raw_spec["space"]["prompt_length"] |= {"values": [1, 64]}
    assert problems(raw_spec) == ["space.prompt_length: spt_deep needs one, such as 10."]


@pytest.mark.parametrize(
    ("when", "points"),
    [
        ({}, 3 * 2 * 4),
        ({"prompt_init": "mean_pool"}, 3 * (4 + 1)),
        ({"prompt_init": "mean_pool", "prompt_length": [1, 5]}, 2 * 4 + 4),
    ],
)
def test_a_grid_has_no_more_trials_than_points(raw_spec: dict[str, Any], when: dict[str, object], points: int) -> None:
    del raw_spec["space"]["lr"]
    raw_spec["space"]["init_images"] = {"type": "int", "low": 1, "high": 4, "when": when}
    # The linear method has fewer: its repeated points are answered from the record.
    raw_spec["space"]["head_weight_decay"] = {"type": "choice", "values": [0.5]}
    raw_spec["search"] |= {"sampler": "grid", "trials": points}
    parse_spec(raw_spec, "a test")
    raw_spec["search"]["trials"] += 1
    cure = f"use at most {points}, or list more values."
    assert problems(raw_spec) == [f"search.trials: {points + 1} exceed the {points} points of the grid; {cure}"]


def test_all_mistakes_are_told_at_once(raw_spec: dict[str, Any]) -> None:
    raw_spec["tasks"].append("vtab/nothing")
    raw_spec["space"]["lr"]["low"] = "1e-3"
    raw_spec["space"]["prompt_length"]["values"] = [500]
    raw_spec["fixed"]["batchsize"] = 4
    raw_spec["colour"] = "red"
    del raw_spec["final"]
    told = "\n".join(problems(raw_spec))
    for word in (
        "vtab/nothing",
        "space.lr.low",
        "500 exceeds",
        "did you mean 'batch_size'",
        "colour",
        "final: is missing",
    ):
        assert word in told


def test_an_option_without_effect_is_refused(raw_spec: dict[str, Any]) -> None:
    raw_spec["methods"] = ["linear"]
    assert [problem.partition(":")[0] for problem in problems(raw_spec)] == ["space.prompt_length", "space.prompt_init"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [", "is not valid YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: a\nname: b\n", "name given twice"),
        ("", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_in_a_sentence(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "draft.yaml").write_text(text)
    with pytest.raises(SpecError, match=problem):
        load_spec(tmp_path / "draft.yaml")


def test_an_unknown_spec_is_answered_with_the_three_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.yaml").write_text("")
    for name, nearest in (
        ("vtab", ("vtab_mae", "vtab_methods", "vtab_moco_v3")),
        # Files beside it count, too.
        ("photo.yaml", ("photos.yaml",)),
        ("x" * 5000, ()),
    ):
        with pytest.raises(SpecError) as refused:
            find_spec(name)
        told = str(refused.value).rpartition("; ")[2]
        assert told.startswith(f"did you mean {nearest[0]!r}? " if nearest else "did you mean ")
        assert all(repr(each) in told for each in nearest)
        assert told.count("'") == 6
        assert told.endswith("`sptune new` writes a spec.")


def test_a_task_of_ones_own_needs_its_prefix(raw_spec: dict[str, Any]) -> None:
    raw_spec["tasks"] = ["photos", "demo/digit", "CUB"]
    own, *others = problems(raw_spec)
    assert own.endswith("A task of your own is 'own/photos'.")
    assert not any("own" in problem for problem in others)


def test_a_spec_is_found_by_the_name_it_ships_under_or_by_its_path(tmp_path: Path) -> None:
    assert find_spec("demo") == find_spec(str(find_spec("demo")))
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        find_spec("demos")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_spec_is_valid_and_a_page_of_a_lab_book(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem.replace("_", "-")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "?" in head[0], "its first line asks a question"
    assert any(line.startswith("# Cost:") for line in head)
    assert f"# Run:  sptune launch {path.stem}" in head


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_search_trials_never_touch_the_test_split(path: Path) -> None:
    spec = load_spec(path)
    for study in plan_sweep(spec).studies:
        params = {
            name: dimension.values[0] if isinstance(dimension, Choice) else dimension.low
            for name, dimension in study.space.items()
        }
        search = study.search_config(params, 0)
        final = study.final_config(params, 1, train_on=spec.final.train_on)
        assert (search.train_split, search.eval_split) == ("train", "val")
        assert (final.train_split, final.eval_split) == (spec.final.train_on, "test")


def test_a_group_stands_for_its_tasks_and_each_study_is_there_once(raw_spec: dict[str, Any]) -> None:
    raw_spec["tasks"] = ["demo", "demo/digits"]
    raw_spec["train_sizes"] = [0.5, 1.0]
    plans = plan_sweep(parse_spec(raw_spec, "a test")).studies
    assert len({plan.key for plan in plans}) == len(plans) == 3 * 2 * 2
    linear = next(plan for plan in plans if plan.method == "linear")
    assert list(linear.space) == ["lr"], "a method searches only what has an effect on it"


def test_checking_a_spec_is_quick(raw_spec: dict[str, Any]) -> None:
    raw_spec["tasks"] = ["demo"]
    started = time.perf_counter()
    parse_spec(raw_spec, "a test")
    assert time.perf_counter() - started < 1


def test_a_train_size_is_a_share_a_number_or_a_number_of_each_class(raw_spec: dict[str, Any]) -> None:
    raw_spec["train_sizes"] = [0.5, 100, {"per_class": 5}, "6 per class", 1.0]
    sizes = list(dict.fromkeys(plan.train_size for plan in plan_sweep(parse_spec(raw_spec, "here")).studies))
    assert sizes == [0.5, 100, "5 per class", "6 per class", 1.0]
    assert [type(size) for size in sizes] == [float, int, str, str, float]


def test_every_task_of_a_group_is_checked_with_every_size(raw_spec: dict[str, Any]) -> None:
    # 12 images are enough for ten digits and too few for sixteen shapes.
    raw_spec |= {"tasks": ["demo"], "train_sizes": [12]}
    raw_spec["fixed"] |= {"batch_size": 8}
    assert problems(raw_spec) == [
        f"train_sizes: 12 images are fewer than the 16 classes of demo/shapes_{which}; each needs one at least."
        for which in ("loc", "ori")
    ]


EPOCHS = "fixed.epochs: must be at least 1, got 0."
LATE = "search.pruner.min_epochs: must be below epochs=9, or no trial is ever stopped; got 20."
RARE = "search.eval_every: must divide the pruner's min_epochs=3"
TRIALS = "search.trials: must be at least 1, got 0."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"search.pruner.min_epochs": 20, "space.lr.low": 2}, ["space.lr: low must be below high", LATE]),
        ({"search.pruner.min_epochs": 20, "search.trials": 0}, [TRIALS, LATE]),
        ({"search.pruner.min_epochs": 20, "search.pruner.colour": 1}, ["search.pruner.colour", LATE]),
        ({"search.pruner.min_epochs": 3, "search.eval_every": 2, "fixed.epochs": 0},
         [EPOCHS, "fixed.warmup_epochs", RARE]),
        ({"search.sampler": "grid", "search.trials": 0}, [TRIALS, "space.lr: sampler grid tries every value"]),
        # One task, backbone or method, and it is misspelt: the others are still read.
        ({"tasks": ["demo/digit"], "search.pruner.min_epochs": 20}, ["tasks.0: 'demo/digit'", LATE]),
        ({"tasks": ["demo/digit"], "space.prompt_length.values": [0]}, ["tasks.0", "space.prompt_length: must be at"]),
        ({"backbones": ["vit"], "fixed.drop_path": 2}, ["backbones.0", "fixed.drop_path: must be at least 0"]),
        ({"methods": ["spt"], "fixed.epochs": 0}, ["methods.0: 'spt'", EPOCHS, "fixed.warmup_epochs"]),
        ({"tasks": [], "fixed.colour": 1}, ["tasks: must be a list", "fixed.colour: 'colour' is not a TrainConfig"]),
    ],
)  # fmt: skip
def test_problems_of_the_search_and_of_params_are_told_together(
    raw_spec: dict[str, Any], changes: dict[str, Any], expected: list[str]
) -> None:
    for place, value in changes.items():
        *parents, key = place.split(".")
        part = raw_spec
        for parent in parents:
            part = part[parent]
        part[key] = value
    found = problems(raw_spec)
    assert len(found) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_what_depends_on_something_wrong_is_not_guessed(raw_spec: dict[str, Any]) -> None:
    # The length of a trial, the points of a grid, and what a wrong entry of `per` would have changed.
    raw_spec["fixed"]["epochs"] = "many"
    raw_spec["search"]["pruner"]["min_epochs"] = 200
    assert [problem.partition(":")[0] for problem in problems(raw_spec)] == ["fixed.epochs"]

    raw_spec["fixed"]["epochs"] = 9
    raw_spec["space"]["lr"] = {"type": "choice"}
    raw_spec["search"] = {"trials": 100, "sampler": "grid"}
    assert problems(raw_spec) == ["space.lr.values: is missing."]

    raw_spec["space"]["lr"] = {"type": "float", "low": 0.1, "high": 1.0}
    raw_spec["per"] = [{"method": ["spt_deep", "linear"], "search": {"sampler": "tpe", "trials": 0}}]
    assert problems(raw_spec) == ["per.0.search.trials: must be at least 1, got 0."]
