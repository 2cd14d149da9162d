"""A TrainConfig that exists is valid; one that cannot exist says why, field by field."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from typing import Any

import pytest

from trainer.__main__ import field_docs
from trainer.catalog import BACKBONES, METHODS, PROTOTYPE_INITS
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.prototypes import PROMPT_INITS

VALID: dict[str, Any] = {"task": "demo/digits", "method": "spt_deep", "prompt_length": 10, "prompt_init": "mean_pool"}
PARAMS_OF: dict[str, dict[str, Any]] = {
    "spt_deep": VALID,
    "spt_shallow": VALID | {"method": "spt_shallow", "prompt_length": 100, "prompt_init": "kmeans"},
    "vpt_deep": {"task": "demo/digits", "method": "vpt_deep", "prompt_length": 10},
    "linear": {"task": "demo/digits", "method": "linear"},
}


def problems_of(params: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidConfig) as caught:
        TrainConfig.from_params(params)
    # What is printed is what is reported: a line for each problem.
    assert str(caught.value).splitlines() == [f"{name}: {text}" for name, text in caught.value.problems.items()]
    return caught.value.problems


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_valid_config_and_its_plain_values_make_it_again(method: str) -> None:
    config = TrainConfig.from_params(PARAMS_OF[method])
    assert TrainConfig.from_params(dataclasses.asdict(config)) == config


def test_the_defaults_are_the_published_schedule() -> None:
    config = TrainConfig.from_params(VALID)
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.train_size) == (100, 10, 32, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'lr'"):
        config.lr = 1.0  # type: ignore[misc]


def test_every_broken_rule_is_reported_at_once() -> None:
    broken = {
        "task": "demo/digit", "train_size": 0.0, "epochs": 0, "warmup_epochs": -1, "batch_size": 0, "lr": -1.0,
        "weight_decay": -1.0, "head_weight_decay": math.inf, "seed": -1, "prompt_length": 0, "prompt_init": "uniform",
    }  # fmt: skip
    assert problems_of(VALID | broken).keys() == broken.keys()
    names = {"task": "zzz", "backbone": "zzz", "method": "zzz"}
    assert problems_of(VALID | names).keys() == names.keys()


def test_every_value_of_a_wrong_type_is_reported_at_once() -> None:
    broken = {"task": 3, "lr": "1e-4", "epochs": 2.5, "eval_split": "validation"}
    assert problems_of(VALID | broken).keys() == broken.keys()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("task", "demo/digit", "'demo/digit' is not a task; did you mean 'demo/digits'?"),
        ("task", "shapes_loc", "'shapes_loc' is not a task; did you mean 'demo/shapes_loc'?"),
        ("method", "spt_depe", "'spt_depe' is not a method; did you mean 'spt_deep'?"),
        ("method", "zzz", "'zzz' is not a method; there are " + ", ".join(METHODS) + "."),
        ("backbone", "vit_nano_patch4", "'vit_nano_patch4' is not a backbone; did you mean 'vit_nano_patch4_32.mae'?"),
        ("prompt_lenght", 5, "'prompt_lenght' is not a TrainConfig field; did you mean 'prompt_length'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(field: str, value: object, problem: str) -> None:
    assert problems_of(VALID | {field: value}) == {field: problem}


def test_what_is_missing_is_named() -> None:
    assert problems_of({}) == {"task": "is missing.", "method": "is missing."}
    assert problems_of(PARAMS_OF["vpt_deep"] | {"prompt_length": None}) == {
        "prompt_length": "vpt_deep needs one, such as 10."
    }


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("lr", "1e-4", "must be a number, got the text '1e-4' (write 1.0e-4: YAML reads 1e-4 as text)."),
        ("weight_decay", "5e-3", "must be a number, got the text '5e-3' (write 5.0e-3: YAML reads 1e-4 as text)."),
        ("lr", "2E30", "must be a number, got the text '2E30' (write 2.0e+30: YAML reads 1e-4 as text)."),
        ("lr", "nan", "must be a number, got the text 'nan'."),
        ("epochs", "10", "must be a number, got the text '10' (write 10 without quotes)."),
        ("lr", "fast", "must be a number, got the text 'fast'."),
        ("lr", True, "must be a number, got True."),
        ("lr", None, "must be a number, got None."),
        ("epochs", 2.5, "must be a whole number, got 2.5."),
        ("epochs", True, "must be a number, got True."),
        ("prompt_length", 1.5, "must be a whole number, got 1.5."),
        ("prompt_init", 3, "must be a name, got 3."),
        ("task", None, "must be a name, got None."),
        ("eval_split", "train", "must be one of val, test, got 'train'."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_cure(field: str, value: object, problem: str) -> None:
    assert problems_of(VALID | {field: value}) == {field: problem}


@pytest.mark.parametrize(
    ("field", "values", "rule"),
    [
        ("train_size", (0.0, -0.1, 1.0000001, math.nan, math.inf), "must be in (0, 1], got {}."),
        ("lr", (0.0, -1e-3, 1.1e30, math.nan, math.inf, -math.inf), "must be above 0 and at most 1e30, got {}."),
        ("weight_decay", (-1e-9, math.nan, math.inf), "must be at least 0 and finite, got {}."),
        ("head_weight_decay", (-1e-9, math.nan, math.inf), "must be at least 0 and finite, got {}."),
        ("batch_size", (0, -32), "must be at least 1, got {}."),
        ("prompt_length", (0, -1), "must be at least 1, got {}."),
        ("seed", (-1, 2**32), "must be in 0..2^32-1, got {}."),
        ("warmup_epochs", (-1, 100, 101), "must be at least 0 and below epochs=100, got {}."),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_rule(field: str, values: tuple[float, ...], rule: str) -> None:
    for value in values:
        assert problems_of(VALID | {field: value})[field] == rule.format(value)


def test_a_wrong_type_hides_no_broken_rule() -> None:
    told = problems_of(VALID | {"lr": "1e-4", "epochs": 0, "train_size": "all", "colour": 1, "method": "spt_depe"})
    assert told.keys() >= {"lr", "epochs", "train_size", "colour", "method"}
    assert "did you mean 'spt_deep'" in told["method"]


def test_a_batch_that_no_share_of_the_task_can_fill_is_refused() -> None:
    assert problems_of(VALID | {"task": "demo/digits", "batch_size": 801})["batch_size"] == (
        "801 exceeds the 800 images that demo/digits has at most at train_size=1."
    )
    assert TrainConfig.from_params(VALID | {"task": "demo/digits", "batch_size": 1000, "eval_split": "test"})


def test_equal_configs_have_equal_ids() -> None:
    config = TrainConfig.from_params(VALID | {"lr": 1.0, "weight_decay": 0.0})
    same = dataclasses.replace(config, lr=1), TrainConfig.from_params(VALID | {"lr": 1, "weight_decay": -0.0})
    for twin in same:
        assert (twin, twin.fingerprint()) == (config, config.fingerprint())


@pytest.mark.parametrize("length", [65, 100, 196])
def test_only_pooling_needs_a_patch_token_for_each_prompt(length: int) -> None:
    for init in ("mean_pool", "max_pool"):
        assert problems_of(VALID | {"prompt_length": length, "prompt_init": init}) == {
            "prompt_length": f"{length} exceeds the 64 patch tokens of vit_nano_patch4_32.mae; mean_pool and max_pool "
            "need one token per prompt. Use prompt_init random or kmeans, or prompt_length <= 64."
        }
        assert TrainConfig.from_params(VALID | {"prompt_length": 64, "prompt_init": init}).prompt_length == 64
    for init in ("random", "kmeans"):
        assert TrainConfig.from_params(VALID | {"prompt_length": length, "prompt_init": init}).prompt_length == length


def test_a_method_takes_the_prompt_options_that_it_has_and_no_other() -> None:
    given = {"prompt_length": 10, "prompt_init": "random"}
    assert problems_of(PARAMS_OF["linear"] | given) == dict.fromkeys(given, "linear has no prompts: leave it out.")
    # VPT has one start: it is filled in, and no other is taken.
    assert TrainConfig.from_params(PARAMS_OF["vpt_deep"]).prompt_init == "uniform"
    wrong = problems_of(PARAMS_OF["vpt_deep"] | {"prompt_init": "kmeans"})
    assert wrong == {"prompt_init": "vpt_deep starts from uniform, got 'kmeans'."}
    wrong = problems_of(VALID | {"prompt_init": None})
    assert wrong == {"prompt_init": "spt_deep starts from random | mean_pool | max_pool | kmeans, got None."}
    unused = {method: set(unused_fields(method)) for method in METHODS}
    none: set[str] = set()
    every = {"prompt_length", "prompt_init", "weight_decay"}
    assert unused == {"spt_deep": none, "spt_shallow": none, "vpt_deep": {"prompt_init"}, "linear": every}


def test_the_init_strategies_of_the_methods_are_those_that_exist() -> None:
    assert set(PROTOTYPE_INITS) == PROMPT_INITS.keys()
    assert {init for row in METHODS.values() for init in row.prompt_inits} == PROMPT_INITS.keys() | {"uniform"}


def test_a_fingerprint_depends_on_every_field_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKBONES["vit_nano_patch4_32.mae"]
    monkeypatch.setitem(BACKBONES, "vit_other", dataclasses.replace(row, name="vit_other"))
    other: dict[str, Any] = {
        "task": "demo/shapes_loc", "backbone": "vit_other", "method": "spt_shallow", "prompt_length": 11,
        "prompt_init": "random", "train_size": 0.5, "eval_split": "test", "epochs": 99, "warmup_epochs": 9,
        "batch_size": 31, "lr": 0.04, "weight_decay": 0.0, "head_weight_decay": 0.4, "seed": 43,
    }  # fmt: skip
    assert other.keys() == field_types().keys()  # a new field needs a line here
    config = TrainConfig.from_params(VALID)
    prints = {config.fingerprint()} | {dataclasses.replace(config, **{n: v}).fingerprint() for n, v in other.items()}
    assert len(prints) == 1 + len(other)
    assert all(re.fullmatch("[0-9a-f]{12}", fingerprint) for fingerprint in prints)
    assert TrainConfig.from_params(dict(reversed(VALID.items()))).fingerprint() == config.fingerprint()
    # A record may give a whole number back without its point.
    whole, point = (TrainConfig.from_params(VALID | {"lr": lr}).fingerprint() for lr in (1, 1.0))
    assert whole == point


@pytest.mark.parametrize(("eval_split", "learnt_from"), [("val", "train"), ("test", "trainval")])
def test_what_is_scored_on_is_never_learnt_from(eval_split: str, learnt_from: str) -> None:
    config = TrainConfig.from_params(VALID | {"eval_split": eval_split})
    assert (config.train_split, config.metric) == (learnt_from, f"{eval_split}/accuracy")


def test_every_field_has_a_docstring() -> None:
    assert field_docs().keys() == field_types().keys()
    assert all(text.endswith(".") for text in field_docs().values())


def test_config_and_catalog_need_no_torch_and_give_every_process_the_same_fingerprint() -> None:
    code = (
        "import sys, trainer.catalog, trainer.config; assert not {'torch', 'numpy', 'timm'} & sys.modules.keys(); "
        f"print(trainer.config.TrainConfig.from_params({VALID!r}).fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (TrainConfig.from_params(VALID).fingerprint(), "")
