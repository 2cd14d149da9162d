"""The spec reference: every key is explained, and every example is valid."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.spec.examples import EXAMPLES, FIELD_EXAMPLES
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.reference import field_docs, render_reference, sections
from orchestrator.spec.schema import SweepSpec
from trainer.config import TrainConfig

KEYS = [section.key(name) for section in sections() for name in section.model.model_fields]
COMPLETE: dict[str, dict[str, Any]] = {
    "float": {"type": "float", "low": 0.001, "high": 1.0},
    "int": {"type": "int", "low": 1, "high": 100},
    "choice": {"type": "choice", "values": [0.1]},
    "asha": {"type": "asha", "min_epochs": 1},
    "hyperband": {"type": "hyperband", "min_epochs": 1},
    "median": {"type": "median", "min_epochs": 1},
    "none": {"type": "none"},
}
"""The smallest valid mapping of each type."""


def spec_with(key: str, value: Any) -> dict[str, Any]:
    """Return a small valid spec with a value at a key's path."""
    spec: dict[str, Any] = {
        "name": "a",
        "tasks": ["demo/digits"],
        "backbones": ["vit_base_patch16_224.mae", "vit_large_patch16_224.mae"],
        "methods": ["linear"],
        "fixed": {"warmup_epochs": 0},
        "space": {"optimizer": {"type": "choice", "values": ["sgd", "adamw"]}},
        "search": {"trials": 2},
        "final": {"seeds": [42]},
    }
    path, _, last = key.rpartition(".")
    path, _, tag = path.partition(", type ")
    # An entry of `per` selects the studies of a backbone, and changes something.
    entry: dict[str, Any] = {"backbone": "vit_base_patch16_224.mae", "fixed": {"lr": 0.1}}
    if path.startswith("per"):
        spec["methods"] = ["linear", "full"]
        spec["tasks"] = ["demo/digits", "fgvc"]
        spec["per"] = [entry]
        mapping = entry if path == "per" else entry.setdefault("search", {})
        # A name is in `fixed` or in `space`.
        if last == "space":
            del entry["fixed"]
        mapping[last] = value
        return spec
    if path.startswith("space"):
        path = path.replace("NAME", "epochs" if tag == "int" else "lr")

    mapping = spec
    for part in path.replace("NAME", "vit_large_patch16_224:mae").split(".") if path else ():
        mapping = mapping.setdefault(part.replace(":", "."), {})
    mapping |= COMPLETE.get(tag, {})
    mapping[last] = value
    return spec


def test_every_key_has_one_example_and_no_example_lacks_its_key() -> None:
    assert sorted(KEYS) == sorted(EXAMPLES)
    assert FIELD_EXAMPLES.keys() <= {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("key", KEYS)
def test_every_example_is_valid_where_it_stands(key: str) -> None:
    assert isinstance(parse_spec(spec_with(key, EXAMPLES[key]), "spec"), SweepSpec)


@pytest.mark.parametrize(("field", "value"), FIELD_EXAMPLES.items())
def test_every_example_of_a_training_field_is_valid(field: str, value: object) -> None:
    assert isinstance(parse_spec(spec_with("fixed", {field: value}), "spec"), SweepSpec)


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_field_of_a_training_run_is_explained(field: dataclasses.Field[Any]) -> None:
    assert field_docs(TrainConfig)[field.name]


def test_every_key_is_explained_in_five_cells() -> None:
    rows = [line for line in render_reference().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split(" | ")] for row in rows]
    assert {len(row) for row in cells} == {5}
    assert [row[0] for row in cells if not row[3]] == []
