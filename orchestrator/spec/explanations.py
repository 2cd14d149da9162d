"""Errors of pydantic in our own words: each as a sentence with its key, the rule, the value and the way out."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.spec.notify import Notify
from orchestrator.spec.resources import Cluster, ResourceOverride, Resources
from orchestrator.spec.schema import (
    Asha,
    Budget,
    Final,
    Hyperband,
    Median,
    NoPruner,
    Search,
    SearchOverride,
    StudyOverride,
    SweepSpec,
)
from orchestrator.spec.space import Choice, FloatRange, IntRange
from orchestrator.spec.valid_part import Location
from trainer.validation import number_problem, short_repr, unknown_name

DIMENSIONS: dict[str, type[BaseModel]] = {"float": FloatRange, "int": IntRange, "choice": Choice}
PRUNERS: dict[str, type[BaseModel]] = {"asha": Asha, "hyperband": Hyperband, "median": Median, "none": NoPruner}
FAMILIES = (DIMENSIONS, PRUNERS)
"""Parts with a `type`, by its value. Each has keys of its own."""


def locations(error: ValidationError) -> list[Location]:
    """Return where the errors are, in the keys of the YAML file."""
    return [without_type(detail["loc"]) for detail in error.errors()]


def without_type(location: Location) -> Location:
    """Return pydantic's location of a value without the `type` that it adds, and without its mark for a key itself."""
    start = 2 if location[:1] == ("per",) else 0
    part = location[start:]
    has_type = part[:1] == ("space",) or part[:2] == ("search", "pruner")
    kept = part[:2] + part[3:] if has_type else part

    return location[:start] + (kept[:-1] if kept[-1:] == ("[key]",) else kept)


def sentences(error: ValidationError) -> list[str]:
    """Return each of pydantic's errors as a sentence with its location."""
    return [
        f"{'.'.join(map(str, location))}: {_explain(detail, location)}"
        for detail, location in zip(error.errors(), locations(error), strict=True)
    ]


def _explain(detail: Any, location: Location) -> str:
    """Return one of pydantic's errors as a sentence with the rule, the value and the way out."""
    kind = detail["type"]
    value = detail["input"]
    limits = detail.get("ctx", {})

    if kind == "extra_forbidden":
        return _unknown_key(detail["loc"])

    if kind == "missing":
        return "is missing."

    if kind == "model_type":
        examples = ", ".join(_keys_of(_part_at(detail["loc"]))[:3])
        return f"must be a mapping with keys such as {examples}; got {short_repr(value)}."

    if kind in ("union_tag_not_found", "model_attributes_type"):
        example = _example(value, location)
        return f"must be a mapping with a `type`, such as {{type: {example}}}; got {short_repr(value)}."

    if kind == "union_tag_invalid":
        return unknown_name(str(limits["tag"]), re.findall(r"'(\w+)'", limits["expected_tags"]), "a type")

    # The sentence of one of our own validators.
    if kind == "value_error":
        return str(limits["error"])

    if kind == "literal_error":
        names = re.findall(r"'(\w+)'", limits["expected"])
        return f"must be {_words(names)}, got {short_repr(value)}."

    # YAML reads 1e-4 as text: say how to write it.
    if isinstance(value, str) and kind.startswith(("int", "float")):
        return str(number_problem(value))

    if kind == "list_type" and isinstance(value, str | int | float):
        return f"must be a list, got {short_repr(value)}: write [{short_repr(value)}]."

    if kind in ("string_type", "invalid_key"):
        return f"must be text, got {short_repr(value)}{_quotes(value)}."

    for start, rule in RULES.items():
        if kind.startswith(start):
            return f"must be {rule.format(**limits)}, got {short_repr(value)}."

    return f"cannot be {short_repr(value)}."


def _example(value: object, location: Location) -> str:
    """Return a pruner or a dimension such as the user may have meant."""
    if "pruner" in location[:3]:
        return "asha, min_epochs: 10"

    return "choice, values: [0.1, 1.0]" if isinstance(value, list) else "float, low: 0.1, high: 1.0"


def _words(names: list[str]) -> str:
    """Return names as `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


RULES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "too_short": "a list with at least {min_length} entry",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
}
"""Rules by the first letters of pydantic's kind of error. The first match counts."""


def _quotes(value: object) -> str:
    """Return the way out where a text that was meant is something else for YAML."""
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false: put the text in quotes"

    return "; put it in quotes" if isinstance(value, int | float) else ""


def _unknown_key(location: Location) -> str:
    """Return the sentence for a key that its part does not have, with those it has.

    Args:
        location: pydantic's, of the key.
    """
    *parents, name = location
    part = _part_at(tuple(parents))
    sentence = unknown_name(str(name), _keys_of(part), "a key here")

    # The key may be right and the type wrong.
    siblings = next((family for family in FAMILIES if part in family.values()), {})
    types = [kind for kind, other in siblings.items() if name in other.model_fields]
    return f"{sentence} It belongs to type {_words(types)}." if types else sentence


def _keys_of(part: type[BaseModel]) -> list[str]:
    """Return the keys of a part: its `type` first, and those that all parts like it have last."""
    # Pydantic lists those of the base class first.
    common = [name for base in part.__bases__ for name in getattr(base, "model_fields", {})]
    return [name for name in part.model_fields if name not in common] + common


def _part_at(location: Location) -> type[BaseModel]:
    """Return the part of a spec at pydantic's location, which has the `type` of a dimension or pruner in it."""
    names = location[2:] if location[:1] == ("per",) else location
    is_entry = names != location
    if names[:1] == ("space",):
        return DIMENSIONS[str(names[2])]
    if names[:2] == ("search", "pruner"):
        return PRUNERS[str(names[2])]
    if names[:2] == ("resources", "backbones"):
        return ResourceOverride

    parts: dict[Location, type[BaseModel]] = {
        (): StudyOverride if is_entry else SweepSpec,
        ("search",): SearchOverride if is_entry else Search,
        ("final",): Final,
        ("resources",): Resources,
        ("cluster",): Cluster,
        ("budget",): Budget,
        ("notify",): Notify,
    }
    return parts[names]
