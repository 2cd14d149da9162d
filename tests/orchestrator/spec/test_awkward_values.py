"""Whatever stands in a spec: it is accepted, or refused in our own words. Keys that are added later are held to it."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.spec.examples import EXAMPLES
from orchestrator.spec.loader import load_spec, parse_recorded_spec, parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.reference import sections
from orchestrator.spec.searched import searched_parts
from tests.orchestrator.conftest import RAW_SPEC
from trainer.config import TrainConfig

AWKWARD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 1000, 2**31, 2**32, 2**53 + 1, 2**63, 10**400, 10**4000, -(10**20),
    0.0, -0.5, 0.5, 1.0, 1.5, 5e-324, 1e300, math.nan, math.inf, -math.inf,
    "", " ", "x", "x" * 5000, "1e-3", "042", "1_000", "nan", "\x00", "\n", "é", "e\u0301", "\udcff", "..", "-a",
    "[red]", "{}", "%s", "auto", "none", "float", "demo/digits", "linear", "natural", "5 per class",
    "9" * 5000 + " per class",
    [], [[]], [None], [1, 1.0], [True, 1], ["x"], {}, {"x": 1}, {1: 2}, {None: None}, {"type": "float"}, {"type": []},
    {"type": "choice", "values": [None, True, 0.5, "x", 3]}, {"type": "choice", "values": [{}]},
    {"type": "float", "low": -1e308, "high": 1e308}, {"type": "float", "low": 0, "high": 1, "log": True},
    {"type": "int", "low": 0, "high": 2**60}, {"type": "int", "low": 1, "high": 10**4000}, {"per_class": 2.5},
    {"per_class": 10**30}, datetime.date(2024, 1, 1), b"bytes", {1, 2}, (1, 2), object,
]  # fmt: skip

# What pydantic says where we forgot to say it ourselves.
FOREIGN = (
    "nput should",
    "alid string",
    "alid integer",
    "alid number",
    "pydantic",
    "validation",
    "nable to parse",
    "items",
)


def places() -> Iterator[tuple[Any, ...]]:
    """Where a value can stand in a spec: each key of each mapping, and fields of a training run in each part."""
    for section in sections():
        for name in section.model.model_fields:
            path = section.key(name).replace("NAME", "lr" if section.path.startswith("space") else "vit_x.mae")
            yield tuple(part.partition(", ")[0] for part in path.replace("vit_x.mae", "vit_x mae").split("."))

    fields = [field.name for field in dataclasses.fields(TrainConfig)] + ["colour"]
    for part in ("fixed", "space"):
        yield from ((part, name) for name in fields)
        yield from (("per", part, name) for name in ("lr", "epochs", "prompt_init", "nmi", "seed", "colour"))


PLACES = sorted({*places()})


# One study with few corners: there are thousands of cases.
SMALL = RAW_SPEC | {
    "tasks": ["demo/digits"],
    "methods": ["linear"],
    "fixed": {"epochs": 9, "warmup_epochs": 1},
    "space": {"lr": RAW_SPEC["space"]["lr"]},
}


def spoilt(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a spec that is valid but for a value at a place."""
    raw = copy.deepcopy(SMALL)
    part: Any = raw
    for index, key in enumerate(place[:-1]):
        step = key.replace("vit_x mae", "vit_nano_patch4_32.mae")
        part = part.setdefault(step, [{"method": "linear"}] if step == "per" else {})
        if isinstance(part, list):
            part = part[0]
        # The keys of a dimension or a pruner belong to its type.
        if index == len(place) - 2 and step in ("lr", "pruner"):
            part.setdefault("type", "float")
    part[place[-1]] = value
    return raw


def answer(raw: dict[str, Any]) -> str:
    """Return the answer to a spec: its problems, or nothing if it is accepted. What follows from it is made."""
    try:
        spec = parse_spec(raw, "draft.yaml")
    except SpecError as refused:
        return str(refused)

    plan = plan_sweep(spec)
    searched_parts(plan.studies)
    parse_recorded_spec(spec.model_dump(mode="json"), "the record")
    yaml.safe_dump(spec.model_dump(mode="json"))
    return ""


def test_every_key_of_a_spec_is_tried() -> None:
    assert len(PLACES) > len(EXAMPLES)


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_no_value_of_a_key_ends_in_a_stack_trace(place: tuple[Any, ...]) -> None:
    for value in AWKWARD:
        raw = spoilt(place, value)
        try:
            told = answer(raw)
        except Exception as error:
            pytest.fail(f"{'.'.join(place)} = {value!r:.60}: {type(error).__name__}: {error!s:.200}")

        assert not any(word in told for word in FOREIGN), f"{'.'.join(place)} = {type(value)!s}: {told:.500}"
        assert len(told) < 5000, f"{'.'.join(place)}: a message of {len(told)} characters"


def test_several_awkward_values_at_once_end_in_no_stack_trace() -> None:
    order = random.Random(19)
    for trial in range(300):
        raw = copy.deepcopy(SMALL)
        chosen = order.sample(PLACES, 3)
        values = [order.choice(AWKWARD) for _ in chosen]
        for place, value in zip(chosen, values, strict=True):
            single = spoilt(place, value)
            raw |= {place[0]: single[place[0]]}
        try:
            told = answer(raw)
        except Exception as error:
            pytest.fail(f"{trial}: {chosen} = {values!s:.200}: {type(error).__name__}: {error!s:.200}")
        assert not any(word in told for word in FOREIGN), told


BASE = yaml.safe_dump(RAW_SPEC)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "must be a mapping"),
        (b"# only a comment\n", "must be a mapping"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"just words", "must be a mapping"),
        (b"name: a\n---\nname: b\n", "several documents"),
        (b"name:\n\t- a\n", "indent with spaces"),
        (b"name: [", "is not valid YAML"),
        (b"name: 'a", "is not valid YAML"),
        (b"name: a\nname: b\n", "draft.yaml:2:1: name given twice; keep one of them. The first is in line 1."),
        (b"search: {trials: 1, trials: 2}\n", "draft.yaml:1:21: trials given twice; keep one of them."),
        (b"\xff\xfe\x00\x01", "must be a mapping"),
        (b"name: \xe9\n", "is not a text file in UTF-8; save it as UTF-8."),
        (b"name: a\x00b\n", "is not a text file in UTF-8"),
        (bytes(range(256)), "is not a text file in UTF-8"),
        (b"name: !!python/object/apply:os.system [ls]\n", "the tag !!python/object/apply:os.system is not read"),
        (b"name: !secret a\n", "the tag !secret is not read"),
        (b"tasks: !!set {a, b}\n", "the tag !!set is not read"),
        (b"? [a, b]\n: c\n", "draft.yaml:1:3: is not valid YAML: a key is a list or a mapping."),
        (b"a: &a [*a]\n", "draft.yaml:1:4: is not valid YAML: an alias stands inside of its own anchor."),
        (b"a: *nothing\n", "undefined alias"),
        (b"<<: 3\n", "<< needs a mapping"),
        (b"seeds: " + b"9" * 5000, "draft.yaml:1:8: is not valid YAML: no key takes a number of 5,000 digits."),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "is nested more than 30 levels deep"),
        (b"a: " + b"{a: " * 40 + b"1" + b"}" * 40, "is nested more than 30 levels deep"),
        (b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10)) for c in range(ord("b"), ord("j"))),
         "aliases make it more than 100,000 values"),
        (b"a: " + b"x" * 2_000_000, "has 2,000,003 bytes"),
        (b"final: {seeds: [042]}", 'draft.yaml:1:17: YAML reads 042 as 34; write 42, or "042" if it is text.'),
        (b"final: {seeds: [-017]}", "draft.yaml:1:17: YAML reads -017 as -15; write -17"),
        (b"final: {seeds: [0_10]}", "draft.yaml:1:17: YAML reads 0_10 as 8; write 10"),
        (b"budget: {max_hours: 1:30}", "draft.yaml:1:21: YAML reads 1:30 as a number in base sixty"),
        (b"budget: {max_hours: 1:30.5}", "draft.yaml:1:21: YAML reads 1:30.5 as a number in base sixty"),
        (b"final: {seeds: [08]}", "final.seeds.0: must be a number, got the text '08' (write 8 without quotes)."),
        (b"final: {seeds: [0o17]}", "final.seeds.0: must be a number, got the text '0o17'."),
        (b"final: {seeds: [1e3]}", "final.seeds.0: must be a number, got the text '1e3' (write 1.0e+3"),
        (b"budget: {max_trials: 0b_}", "draft.yaml:1:22: is not valid YAML: 0b_ is a number without digits."),
        (b"keep: no", "keep: must be best, final or all, got False."),
        (b"name: on", "name: must be text, got True; YAML reads yes, no, on and off as true and false: put the text"),
        (b"name: 2024", "name: must be text, got 2024; put it in quotes."),
        (b"name: ~", "name: must be text, got None."),
        (b"1: 2", "1: must be text, got 1; put it in quotes."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_spec_is_refused_in_a_sentence(tmp_path: Path, text: bytes, problem: str) -> None:
    file = tmp_path / "draft.yaml"
    file.write_bytes(text)
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert problem in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_spec_is_read_in_the_encodings_of_editors(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "draft.yaml"
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    file.write_bytes(f"{mark}# é\n{BASE}".encode(encoding))
    assert load_spec(file) == parse_spec(RAW_SPEC, "a test")


def test_anchors_and_merge_keys_work_and_a_key_beside_them_wins(tmp_path: Path) -> None:
    file = tmp_path / "draft.yaml"
    file.write_text(
        BASE.replace("final:", "final: &final").replace("fixed:", "fixed:\n  <<: {epochs: 50, batch_size: 16}")
        + "per:\n- &first {method: linear, fixed: {lr: 0.5}}\n- {<<: *first, method: spt_deep}\n"
    )
    spec = load_spec(file)
    assert spec.fixed == {"epochs": 9, "batch_size": 16, "warmup_epochs": 1}
    assert [(entry.method, entry.fixed) for entry in spec.per] == [
        (["linear"], {"lr": 0.5}),
        (["spt_deep"], {"lr": 0.5}),
    ]


def test_a_date_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "draft.yaml"
    file.write_text(BASE.replace("name: small", "name: 2024-01-31"))
    assert load_spec(file).name == "2024-01-31"


def test_what_yaml_reads_as_something_else_is_told_with_all_other_problems(tmp_path: Path) -> None:
    file = tmp_path / "draft.yaml"
    file.write_text(BASE.replace("trials: 8", "trials: 010").replace("- linear", "- linaer") + "colour: red\n")
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    told = str(refused.value)
    assert all(word in told for word in ("reads 010 as 8", "did you mean 'linear'", "colour"))


@pytest.mark.parametrize("place", ["a folder", "nothing", "a long name"])
def test_a_place_without_a_spec_is_named(tmp_path: Path, place: str) -> None:
    path = {"a folder": tmp_path, "nothing": tmp_path / "x.yaml", "a long name": tmp_path / ("x" * 5000)}[place]
    with pytest.raises(SpecError, match="is a folder" if place == "a folder" else "cannot be read"):
        load_spec(path)


RANGES: list[tuple[str, Any, Any]] = [
    ("search.seed", 2**32 - 1, 2**32),
    ("final.seeds", [0, 2**32 - 1], [2**32]),
    ("search.trials", 2**31 - 1, 2**31),
    ("search.startup_trials", 2**31 - 1, 2**31),
    ("search.max_concurrent", 2**31 - 1, 2**31),
    ("budget.max_trials", 2**31 - 1, 2**63),
    ("budget.max_hours", 1e-9, math.inf),
    ("budget.max_gpu_hours", 1e300, math.nan),
    ("lost_after_minutes", 0.5, math.inf),
    ("retries", 0, 2**31),
    ("draws", 1000, 1001),
    ("name", "x" * 128, "x" * 129),
    ("resources.cpus", 10_000, 10_001),
    ("resources.gpus", 8, 1.5),
    ("resources.gpus", 0.0001, 0.00001),
    ("resources.gpus", 1 / 3, math.inf),
    ("resources.accelerator_type", "A100", ""),
    ("cluster.address", "auto", "\n"),
    ("cluster.workers", 10_000, 0),
    ("space.lr.low", 5e-324, -1.0),
    ("space.lr.high", 1e30, math.inf),
    ("space.batch_size", {"type": "int", "low": 1, "high": 64}, {"type": "int", "low": 1, "high": 2**53 + 1}),
    ("fixed.epochs", 2**31 - 1, 2**31),
    ("fixed.image_size", 64, 8196),
    ("train_sizes", [0.1, 0.1], [0.1, 0.10000001]),
]


@pytest.mark.parametrize(("place", "good", "bad"), RANGES)
def test_a_value_is_refused_where_what_uses_it_would_fail(place: str, good: Any, bad: Any) -> None:
    path = tuple(place.split("."))
    assert answer(spoilt(path, good)) == ""
    assert place.rsplit(".", maxsplit=1)[-1] in answer(spoilt(path, bad))


@pytest.mark.parametrize(
    ("place", "good", "bad"), [case for case in RANGES if case[0].split(".")[0] in ("search", "final", "name", "draws")]
)
def test_what_was_recorded_before_a_limit_existed_stays_readable(place: str, good: Any, bad: Any) -> None:
    assert parse_recorded_spec(spoilt(tuple(place.split(".")), bad), "the record")


def test_a_prompt_needs_as_many_tokens_as_its_images_have() -> None:
    # 64 patch tokens an image.
    for images, good, bad in ((1, 64, 65), (200, 12_800, 12_801)):
        raw = copy.deepcopy(RAW_SPEC) | {"methods": ["spt_deep"]}
        raw["fixed"] |= {"init_images": images, "prompt_init": "random", "prompt_length": good}
        raw["space"] = {"lr": raw["space"]["lr"]}
        assert answer(raw) == ""
        raw["fixed"]["prompt_length"] = bad
        assert f"{bad:,} exceeds the {good:,} patch tokens of the images" in answer(raw)


def test_a_sweep_has_no_more_studies_than_can_be_listed() -> None:
    raw = RAW_SPEC | {"tasks": ["vtab", "fgvc"], "train_sizes": [0.1, 0.2, 0.3, 200], "draws": 1000}
    assert "a sweep at most 100,000" in answer(raw)


def test_a_choice_of_many_values_is_checked_quickly() -> None:
    choice = {"type": "choice", "values": [number / 1000 for number in range(1, 500)]}
    raw = copy.deepcopy(RAW_SPEC) | {"methods": ["linear"], "tasks": ["demo/digits"]}
    raw["space"] = dict.fromkeys(("lr", "drop_path", "ema_decay", "head_weight_decay"), choice)
    assert answer(raw) == ""
    raw["space"] |= {"drop_path": choice | {"values": [*choice["values"], 7.0]}}
    assert "space.drop_path: must be at least 0 and below 1, got 7.0." in answer(raw)


def test_a_wrong_selector_hides_no_other_mistake_of_its_entry() -> None:
    entry = {"method": "linaer", "fixed": {"lr": "1e-3", "colour": 1, "seed": 3}, "space": {"depth": {"type": "int"}}}
    told = answer(RAW_SPEC | {"per": [entry]})
    for word in (
        "'linaer'",
        "fixed.lr: must be a number",
        "fixed.colour",
        "fixed.seed",
        "space.depth",
        "space.depth.low",
    ):
        assert f"per.0.{word}" in told or word in told
