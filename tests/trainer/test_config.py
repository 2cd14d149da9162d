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
from trainer.catalog import BACKBONES, METHODS, PROTOTYPE_INITS, TASKS
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.prompt_init.strategies import PROMPT_INITS

VALID: dict[str, Any] = {"task": "demo/digits", "method": "spt_deep", "prompt_length": 10, "prompt_init": "mean_pool"}
PARAMS_OF: dict[str, dict[str, Any]] = {
    "spt_deep": VALID,
    "spt_shallow": VALID | {"method": "spt_shallow", "prompt_length": 100, "prompt_init": "kmeans"},
    "vpt_deep": {"task": "demo/digits", "method": "vpt_deep", "prompt_length": 10},
    "vpt_shallow": {"task": "demo/digits", "method": "vpt_shallow", "prompt_length": 196},
    "linear": {"task": "demo/digits", "method": "linear"},
    "full": {"task": "demo/digits", "method": "full"},
    "bias": {"task": "demo/digits", "method": "bias"},
    "partial_1": {"task": "demo/digits", "method": "partial_1"},
    "lora": {"task": "demo/digits", "method": "lora", "lora_rank": 4},
    "ssf": {"task": "demo/digits", "method": "ssf"},
    "adapter": {"task": "demo/digits", "method": "adapter", "adapter_dim": 8, "adapter_form": "parallel"},
    "gate_vpt": {"task": "demo/digits", "method": "gate_vpt", "prompt_length": 10, "gate_init": 1.0},
    "gate_vpt_prototypes": VALID | {"method": "gate_vpt_prototypes"},
    "bpt_deep": {"task": "demo/digits", "method": "bpt_deep", "prompt_length": 10, "bpt_rank": 4},
    "bpt_shallow": {"task": "demo/digits", "method": "bpt_shallow", "prompt_length": 10, "bpt_rank": 4},
    "e2vpt_unpruned": {"task": "demo/digits", "method": "e2vpt_unpruned", "prompt_length": 10, "key_value_length": 2},
    "e2vpt_unpruned_prototypes": VALID | {"method": "e2vpt_unpruned_prototypes"},
    "vfpt": {"task": "demo/digits", "method": "vfpt", "prompt_length": 10, "fourier_share": 0.3},
}
SPT = ("spt_deep", "spt_shallow")


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


def test_the_defaults_are_the_published_training() -> None:
    config = TrainConfig.from_params(VALID)
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.train_size) == (100, 10, 32, 1.0)
    assert (config.optimizer, config.lr, config.weight_decay, config.head_weight_decay) == ("adamw", 5e-2, 1e-2, 0.5)
    assert (config.precision, config.drop_path, config.ema_decay, config.nmi) == ("fp32", 0.0, None, False)
    assert (config.init_images, type(config.init_images), config.init_task) == (1.0, float, None)
    assert (config.transform, config.normalize, config.image_size, config.pixels) == ("spt", "backbone", None, 32)
    assert config.backbone_row is BACKBONES["vit_nano_patch4_32.mae"]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'lr'"):
        config.lr = 1.0  # type: ignore[misc]


def test_every_broken_rule_is_reported_at_once() -> None:
    broken = {
        "task": "demo/digit", "train_size": 0.0, "epochs": 0, "warmup_epochs": -1, "batch_size": 0, "lr": -1.0,
        "weight_decay": -1.0, "head_weight_decay": math.inf, "seed": -1, "prompt_length": 0, "prompt_init": "uniform",
        "init_images": 0, "init_task": "zzz", "image_size": 30, "drop_path": 1.0, "ema_decay": 1.0,
    }  # fmt: skip
    assert problems_of(VALID | broken).keys() == broken.keys()
    names = {"task": "zzz", "backbone": "zzz", "method": "zzz"}
    assert problems_of(VALID | names).keys() == names.keys()


def test_every_value_of_a_wrong_type_is_reported_at_once() -> None:
    broken: dict[str, Any] = {
        "task": 3, "backbone": None, "method": 3, "prompt_length": "3", "prompt_init": 3, "init_images": "all",
        "init_task": 3, "train_size": [1.0], "eval_split": "validation", "transform": "SPT", "normalize": 0.5,
        "image_size": 32.0, "epochs": 2.5, "warmup_epochs": None, "batch_size": True, "optimizer": "adam", "lr": "1e-4",
        "weight_decay": "0", "head_weight_decay": {}, "drop_path": False, "ema_decay": "0.999", "precision": "fp16",
        "nmi": 1, "measure_peeking": "yes", "seed": 1.0, "val_size": 1, "draw": 0.0, "train_on": "val",
        "final_norm": "none", "eval_every": "2", "lora_rank": "4", "adapter_dim": 8.0, "adapter_form": "serial",
        "gate_init": "5", "fourier_share": "half", "bpt_rank": 7.5,
        "key_value_length": "5",
    }  # fmt: skip
    assert broken.keys() == field_types().keys()  # a new field needs a value here
    assert problems_of(VALID | broken).keys() == broken.keys()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("task", "demo/digit", "'demo/digit' is not a task; did you mean 'demo/digits'?"),
        ("task", "shapes_loc", "'shapes_loc' is not a task; did you mean 'demo/shapes_loc'?"),
        ("method", "spt_depe", "'spt_depe' is not a method; did you mean 'spt_deep'?"),
        ("method", "zzz", "'zzz' is not a method; there are " + ", ".join(METHODS) + "."),
        ("backbone", "vit_nano_patch4", "'vit_nano_patch4' is not a backbone; did you mean 'vit_nano_patch4_32.mae'?"),
        ("init_task", "demo/shape_loc", "'demo/shape_loc' is not a task; did you mean 'demo/shapes_loc'?"),
        ("init_task", "", "'' is not a task; there are " + ", ".join(TASKS) + "."),
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
        ("weight_decay", "5e-3", "must be a number, got the text '5e-3' (write 5.0e-3: YAML reads 5e-3 as text)."),
        ("lr", "2E30", "must be a number, got the text '2E30' (write 2.0e+30: YAML reads 2E30 as text)."),
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
        ("eval_split", None, "must be one of val, test, got None."),
        ("transform", "VPT", "must be one of spt, vpt, got 'VPT'."),
        ("normalize", "half", "must be one of backbone, imagenet, got 'half'."),
        ("optimizer", "adam", "must be one of adamw, sgd, got 'adam'."),
        ("precision", "fp16", "must be one of fp32, tf32, bf16, got 'fp16'."),
        ("precision", ["bf16"], "must be one of fp32, tf32, bf16, got ['bf16']."),
        ("nmi", 1, "must be true or false, got 1."),
        ("nmi", "true", "must be true or false, got 'true'."),
        ("nmi", None, "must be true or false, got None."),
        ("image_size", 32.0, "must be a whole number, got 32.0."),
        ("image_size", True, "must be a number, got True."),
        ("image_size", "64", "must be a number, got the text '64' (write 64 without quotes)."),
        ("init_images", True, "must be a number, got True."),
        ("init_images", None, "must be a number, got None."),
        ("init_images", "0.1", "must be a number, got the text '0.1' (write 0.1 without quotes)."),
        ("init_task", ["demo/digits"], "must be a name, got ['demo/digits']."),
        ("ema_decay", "9e-1", "must be a number, got the text '9e-1' (write 9.0e-1: YAML reads 9e-1 as text)."),
        ("ema_decay", False, "must be a number, got False."),
        ("drop_path", None, "must be a number, got None."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_cure(field: str, value: object, problem: str) -> None:
    assert problems_of(VALID | {field: value}) == {field: problem}


@pytest.mark.parametrize(
    ("field", "values", "rule"),
    [
        (
            "train_size",
            (0.0, -0.1, 1.0000001, math.nan, math.inf),
            "as a share must be in (0, 1], got {}; a number of images has no point.",
        ),
        ("train_size", (1,), "{} image is fewer than the 10 classes of demo/digits; each needs one at least."),
        ("train_size", (9,), "{} images are fewer than the 10 classes of demo/digits; each needs one at least."),
        ("train_size", (801,), "{} images are more than the 800 of demo/digits."),
        ("train_size", ("81 per class",), "810 images are more than the 800 of demo/digits."),
        (
            "train_size",
            ("all", "5 per clas", "0 per class", "-1 per class", ""),
            "must be a share (0.1), a number of images (200) or of each class (5 per class), got {!r}.",
        ),
        ("lr", (0.0, -1e-3, 1.1e30, math.nan, math.inf, -math.inf), "must be above 0 and at most 1e30, got {}."),
        ("weight_decay", (-1e-9, math.nan, math.inf), "must be at least 0 and finite, got {}."),
        ("head_weight_decay", (-1e-9, math.nan, math.inf), "must be at least 0 and finite, got {}."),
        ("batch_size", (0, -32), "must be at least 1, got {}."),
        ("eval_every", (0, -1), "must be at least 1, got {}."),
        ("eval_every", (2**31,), "must be at most 2147483647, got {}."),
        ("prompt_length", (0, -1), "must be at least 1, got {}."),
        ("seed", (-1, 2**32), "must be in 0..2^32-1, got {}."),
        ("warmup_epochs", (-1, 100, 101), "must be at least 0 and below epochs=100, got {}."),
        ("drop_path", (-1e-9, 1.0, 1.5, math.nan, math.inf), "must be at least 0 and below 1, got {}."),
        (
            "ema_decay",
            (0, 0.0, 1, 1.0, -0.1, 1.1, math.nan, math.inf),
            "must be between 0 and 1, such as 0.999, got {}; leave it out for none.",
        ),
        ("init_images", (0, -1, -200), "as a number of images must be at least 1, got {}."),
        (
            "init_images",
            (0.0, -0.1, 1.0000001, 2.0, 200.0, math.nan, math.inf),
            "as a share must be in (0, 1], got {}; a number of images has no point.",
        ),
        (
            "image_size",
            (-32, 0, 1, 3, 33, 30, 63),
            "must be a multiple of vit_nano_patch4_32.mae's patch size 4, got {}.",
        ),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_rule(field: str, values: tuple[float, ...], rule: str) -> None:
    for value in values:
        assert problems_of(VALID | {field: value})[field] == rule.format(value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("train_size", (0.02, 0.5, 1.0, 32, 800, "4 per class", "80 per class")),
        ("lr", (5e-324, 1, 1e30)),
        ("weight_decay", (0, 0.0, 1e300)),
        ("head_weight_decay", (0, 0.0, 1e300)),
        ("batch_size", (1, 2, 800)),
        ("eval_every", (1, 3, 100, 101, 2**31 - 1)),
        ("seed", (0, 2**32 - 1)),
        ("warmup_epochs", (0, 99)),
        ("drop_path", (0, 0.0, 0.1, 1 - 1e-9)),
        ("ema_decay", (None, 1e-9, 0.9999, 1 - 1e-9)),
        ("init_images", (1, 200, 10**9, 1.0, 1e-9)),
        ("init_task", (None, *TASKS)),
        ("image_size", (None, 28, 32, 36, 64, 224)),
        ("nmi", (False, True)),
    ],
)
def test_a_number_at_the_end_of_its_range_is_taken_as_it_is(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(TrainConfig.from_params(VALID | {field: value}), field) == value


def test_a_whole_number_of_images_stays_one_and_a_share_stays_a_share() -> None:
    one, everything = (TrainConfig.from_params(VALID | {"init_images": images}) for images in (1, 1.0))
    assert (type(one.init_images), type(everything.init_images)) == (int, float)
    assert one.fingerprint() != everything.fingerprint()


@pytest.mark.parametrize(
    ("backbone", "own", "good", "bad"),
    [
        ("vit_nano_patch4_32.mae", 32, (4, 8, 224, 512), (6, 225)),
        ("vit_base_patch16_224.augreg_in21k", 224, (16, 32, 384, 448), (8, 200, 378)),
        ("vit_huge_patch14_224.mae", 224, (14, 28, 378, 518), (7, 384, 512)),
    ],
)
def test_the_square_is_cut_into_whole_patches(
    backbone: str, own: int, good: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    patch = BACKBONES[backbone].patch_size
    given: dict[str, Any] = {"task": "demo/digits", "method": "linear", "backbone": backbone}
    assert TrainConfig.from_params(given).pixels == own
    for size in good:
        assert TrainConfig.from_params(given | {"image_size": size}).pixels == size
        assert BACKBONES[backbone].num_patches(size) == (size // patch) ** 2
    for size in bad:
        rule = f"must be a multiple of {backbone}'s patch size {patch}, got {size}."
        assert problems_of(given | {"image_size": size}) == {"image_size": rule}


def test_a_wrong_type_hides_no_broken_rule() -> None:
    told = problems_of(VALID | {"lr": "1e-4", "epochs": 0, "train_size": "all", "colour": 1, "method": "spt_depe"})
    assert told.keys() >= {"lr", "epochs", "train_size", "colour", "method"}
    assert "did you mean 'spt_deep'" in told["method"]


def test_a_batch_that_no_share_of_the_task_can_fill_is_refused() -> None:
    assert problems_of(VALID | {"task": "demo/digits", "batch_size": 801})["batch_size"] == (
        "801 exceeds the 800 images that demo/digits has at train_size=1.0. Use a smaller one."
    )
    assert TrainConfig.from_params(VALID | {"task": "demo/digits", "batch_size": 1000, "eval_split": "test"})
    # However small the share, each class gives an image or two.
    assert TrainConfig.from_params(VALID | {"train_size": 1e-9, "batch_size": 10})
    assert problems_of(VALID | {"train_size": 1e-9, "batch_size": 32}) == {
        "batch_size": "32 exceeds the 21 images that demo/digits has at train_size=1e-09. Use a smaller one."
    }


def test_equal_configs_have_equal_ids() -> None:
    config = TrainConfig.from_params(VALID | {"lr": 1.0, "weight_decay": 0.0})
    same = dataclasses.replace(config, lr=1), TrainConfig.from_params(VALID | {"lr": 1, "weight_decay": -0.0})
    for twin in same:
        assert (twin, twin.fingerprint()) == (config, config.fingerprint())


@pytest.mark.parametrize(("image_size", "patches"), [(None, 64), (32, 64), (4, 1), (20, 25), (64, 256)])
@pytest.mark.parametrize("method", SPT)
def test_only_pooling_needs_a_patch_token_for_each_prompt(method: str, image_size: int | None, patches: int) -> None:
    given = VALID | {"method": method, "image_size": image_size}
    tokens = "1 patch token" if patches == 1 else f"{patches} patch tokens"
    for length in (patches + 1, 1000):
        for init in ("mean_pool", "max_pool"):
            assert problems_of(given | {"prompt_length": length, "prompt_init": init}) == {
                "prompt_length": f"{length:,} exceeds the {tokens} of vit_nano_patch4_32.mae; "
                "mean_pool and max_pool need one token per prompt. "
                f"Use prompt_init random or kmeans, or prompt_length <= {patches}."
            }
            most = TrainConfig.from_params(given | {"prompt_length": patches, "prompt_init": init})
            assert most.prompt_length == patches
        for init in ("random", "kmeans"):
            assert TrainConfig.from_params(given | {"prompt_length": length, "prompt_init": init})


def test_a_method_takes_the_prompt_options_that_it_has_and_no_other() -> None:
    given = {"prompt_length": 10, "prompt_init": "random", "init_task": "demo/digits"}
    for method in ("linear", "full"):
        told = dict.fromkeys(given, f"{method} has no prompts: leave it out.")
        assert problems_of(PARAMS_OF[method] | given) == told
        told = {"nmi": f"{method} has no prompts to measure: leave it out."}
        assert problems_of(PARAMS_OF[method] | {"nmi": True}) == told
    # VPT has one start: it is filled in, and no other is taken; nor are images to start from.
    for method in ("vpt_deep", "vpt_shallow"):
        assert TrainConfig.from_params(PARAMS_OF[method] | {"nmi": True}).prompt_init == "uniform"
        told = {"prompt_init": f"{method} starts from uniform, got 'kmeans'."}
        assert problems_of(PARAMS_OF[method] | {"prompt_init": "kmeans"}) == told
        for name in ("demo/shapes_loc", "zzz"):
            told = {"init_task": f"{method} starts without prototypes: leave it out."}
            assert problems_of(PARAMS_OF[method] | {"init_task": name}) == told
    for method in SPT:
        for init, got in ((None, "none is given"), ("uniform", "got 'uniform'")):
            told = {"prompt_init": f"{method} starts from random | mean_pool | max_pool | kmeans, {got}."}
            assert problems_of(PARAMS_OF[method] | {"prompt_init": init}) == told


def test_a_space_is_not_searched_along_what_has_no_effect() -> None:
    start, prompt = {"prompt_init", "init_images", "init_task"}, {"prompt_length", "nmi"}
    lora, adapter, gate, fourier = {"lora_rank"}, {"adapter_dim", "adapter_form"}, {"gate_init"}, {"fourier_share"}
    bilinear, key_value = {"bpt_rank"}, {"key_value_length"}
    others = lora | adapter | gate | fourier | bilinear | key_value
    assert {method: set(unused_fields(method)) for method in METHODS} == {
        "spt_deep": others,
        "spt_shallow": others,
        "vpt_deep": start | others,
        "vpt_shallow": start | others,
        "linear": start | prompt | others | {"weight_decay"},
        "full": start | prompt | others,
        "bias": start | prompt | others | {"weight_decay"},
        "partial_1": start | prompt | others,
        "lora": start | prompt | others - lora,
        "ssf": start | prompt | others | {"weight_decay"},
        "adapter": start | prompt | others - adapter,
        "gate_vpt": start | others - gate,
        "gate_vpt_prototypes": others - gate,
        "vfpt": start | others - fourier,
        "bpt_deep": start | others - bilinear,
        "bpt_shallow": start | others - bilinear,
        "e2vpt_unpruned": start | others - key_value,
        "e2vpt_unpruned_prototypes": others - key_value,
    }


def test_the_init_strategies_of_the_methods_are_those_that_exist() -> None:
    assert set(PROTOTYPE_INITS) == PROMPT_INITS.keys()
    assert {init for row in METHODS.values() for init in row.prompt_inits} == PROMPT_INITS.keys() | {"uniform"}


def config_that_has(name: str, config: TrainConfig) -> TrainConfig:
    """Return the config, or one of a method that has a field if it is that of few methods."""
    owners = [method.name for method in METHODS.values() if name in method.fields]
    if not owners:
        return config

    params = PARAMS_OF[owners[0]]
    return TrainConfig.from_params({key: params[key] for key in params.keys() - METHODS[owners[0]].fields})


def test_a_fingerprint_depends_on_every_field_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKBONES["vit_nano_patch4_32.mae"]
    monkeypatch.setitem(BACKBONES, "vit_other", dataclasses.replace(row, name="vit_other"))
    other: dict[str, Any] = {
        "task": "demo/shapes_loc", "backbone": "vit_other", "method": "spt_shallow", "prompt_length": 11,
        "prompt_init": "random", "init_images": 1, "init_task": "demo/digits", "train_size": 0.5, "eval_split": "test",
        "transform": "vpt", "normalize": "imagenet", "image_size": 64, "epochs": 99, "warmup_epochs": 9,
        "batch_size": 31, "optimizer": "sgd", "lr": 0.04, "weight_decay": 0.0, "head_weight_decay": 0.4,
        "drop_path": 0.1, "ema_decay": 0.9, "precision": "bf16", "nmi": True, "measure_peeking": True, "seed": 43,
        "val_size": "same", "draw": 1, "train_on": "train", "eval_every": 2, "final_norm": "fresh",
        "lora_rank": 4, "adapter_dim": 8, "adapter_form": "parallel", "gate_init": 1.0, "fourier_share": 0.3,
        "bpt_rank": 5, "key_value_length": 6,
    }  # fmt: skip
    assert other.keys() == field_types().keys()  # a new field needs a line here
    config = TrainConfig.from_params(VALID)
    needs: dict[str, dict[str, Any]] = {name: {"eval_split": "test"} for name in ("measure_peeking", "train_on")}
    needs |= {name: {"train_size": 0.5} for name in ("val_size", "draw")}
    changed = [dataclasses.replace(config_that_has(n, config), **needs.get(n, {}), **{n: v}) for n, v in other.items()]
    prints = {config.fingerprint()} | {each.fingerprint() for each in changed}
    assert len(prints) == 1 + len(other)
    assert all(re.fullmatch("[0-9a-f]{12}", fingerprint) for fingerprint in prints)
    assert TrainConfig.from_params(dict(reversed(VALID.items()))).fingerprint() == config.fingerprint()
    # A record may give a whole number back without its point, and a size may be the one that is taken anyway.
    whole, point = (TrainConfig.from_params(VALID | {"lr": lr}).fingerprint() for lr in (1, 1.0))
    assert whole == point
    assert dataclasses.replace(config, image_size=32).fingerprint() == config.fingerprint()


def test_a_newer_field_at_its_default_leaves_the_ids_of_old_trials_as_they_are() -> None:
    # The id that version 0.1.0 gave to this config, which had none of the newer fields.
    assert TrainConfig.from_params(VALID).fingerprint() == "3d1ab00de41d"


def test_every_purpose_epoch_and_seed_has_a_stream_of_random_numbers_of_its_own() -> None:
    purposes = ("head", "prompt", "adaptation", "prototypes", "prototype crops", "nmi", "order", "crops", "dropout")
    seeds = [
        TrainConfig.from_params(VALID | {"seed": seed}).stream_seed(purpose, epoch)
        for seed in (0, 1, 2, 10, 42, 2**32 - 1)
        for purpose in purposes
        for epoch in (0, 1, 2, 10, 11, 100)
    ]
    assert len(set(seeds)) == len(seeds) == 6 * 9 * 6
    assert all(0 <= seed < 2**63 for seed in seeds), "torch takes no others"
    config = TrainConfig.from_params(VALID)
    assert config.stream_seed("head") == config.stream_seed("head", 0)
    # The seed alone decides: configs that differ elsewhere start from the same head and see the same order.
    assert dataclasses.replace(config, lr=1.0, method="spt_shallow").stream_seed("head") == config.stream_seed("head")


@pytest.mark.parametrize(
    ("splits", "learnt_from"),
    [
        ({"eval_split": "val"}, "train"),
        ({"eval_split": "test"}, "trainval"),
        ({"eval_split": "test", "train_on": "train"}, "train"),
    ],
)
def test_what_is_scored_on_is_never_learnt_from(splits: dict[str, str], learnt_from: str) -> None:
    config = TrainConfig.from_params(VALID | splits)
    assert (config.train_split, config.eval_metric) == (learnt_from, f"{splits['eval_split']}/accuracy")


@pytest.mark.parametrize(
    ("eval_every", "scored"),
    [(1, [*range(1, 11)]), (2, [2, 4, 6, 8, 10]), (4, [4, 8, 10]), (9, [9, 10]), (10, [10]), (11, [10]), (1000, [10])],
)
def test_a_search_run_is_scored_at_every_kth_epoch_and_at_the_last(eval_every: int, scored: list[int]) -> None:
    config = TrainConfig.from_params(VALID | {"epochs": 10, "warmup_epochs": 1, "eval_every": eval_every})
    assert [epoch for epoch in range(1, 11) if config.is_scored(epoch)] == scored


def test_a_final_run_is_scored_at_its_end_and_takes_no_other_interval() -> None:
    final = VALID | {"epochs": 10, "warmup_epochs": 1, "eval_split": "test"}
    config = TrainConfig.from_params(final)
    assert [epoch for epoch in range(1, 11) if config.is_scored(epoch)] == [10]
    for peeks in (False, True):
        assert problems_of(final | {"eval_every": 2, "measure_peeking": peeks}) == {
            "eval_every": "is for runs that are scored on val, and a run on test is scored after its last epoch; "
            "got 2. Leave it out, or set eval_split: val."
        }


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
