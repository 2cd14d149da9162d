"""The valid part of a spec with mistakes. It is checked too, so that the user sees all problems at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.schema import Search, StudyMatrix
from trainer.catalog import BUNDLED, METHODS
from trainer.config import unused_fields

Location = tuple[int | str, ...]
"""Keys and indices that lead to a value of a spec."""
PLACEHOLDERS = {"tasks": ["demo/digits"], "backbones": [BUNDLED], "methods": ["linear"]}
"""Names that pass pydantic's check where a list has no valid one."""


def invalid_fields(raw: dict[str, Any], invalid: Sequence[Location]) -> set[str]:
    """Return the fields of TrainConfig that are wrong or were removed, and the paths of wrong entries of `per`.

    Further problems of these are not reported, because the removal may have caused them.

    Args:
        invalid: where the spec is wrong.
    """
    fields = {str(location[1]) for location in invalid if location[0] == "space" and location[1:]}

    for index, entry in enumerate(_entries(raw)):
        locations = [location[2:] for location in invalid if location[:2] == ("per", index)]
        if not locations:
            continue

        fields.add(f"per.{index}")
        fields |= {str(location[1]) for location in locations if location[:1] == ("space",) and location[1:]}
        if not is_kept(locations) and isinstance(entry, dict):
            fields |= _names(entry)

    if any(location[0] == "methods" for location in invalid):
        # A misspelt method may be the one that they are for.
        methods = raw.get("methods")
        known = (
            [name for name in methods if isinstance(name, str) and name in METHODS] if isinstance(methods, list) else []
        )
        fields |= {name for name in _names(raw) if known and all(name in unused_fields(method) for method in known)}

    return fields


def _names(part: dict[str, Any]) -> set[str]:
    """Return the names that stand in `fixed` and `space` of a spec, or of an entry of `per`."""
    tables = [part.get(key) for key in ("fixed", "space")]
    return {str(name) for table in tables if isinstance(table, dict) for name in table}


def valid_part(raw: dict[str, Any], invalid: Sequence[Location]) -> dict[str, Any]:
    """Return the values of a study matrix without the wrong ones.

    Args:
        invalid: where the spec is wrong.
    """
    valid: dict[str, Any] = {"fixed": raw.get("fixed") or {}}

    for key in ("tasks", "backbones", "methods", "train_sizes"):
        names = raw.get(key, [1.0] if key == "train_sizes" else None)
        valid[key] = []
        if isinstance(names, list):
            valid[key] = [name for index, name in enumerate(names) if (key, index) not in invalid]
    # Every number is then checked with all images.
    valid["train_sizes"] = valid["train_sizes"] or [1.0]

    valid["space"] = _without_invalid(raw.get("space") or {}, [rest for first, *rest in invalid if first == "space"])
    valid["per"] = [
        _valid_entry(entry, [location[2:] for location in invalid if location[:2] == ("per", index)])
        for index, entry in enumerate(_entries(raw))
    ]
    return valid


def parse_matrix(values: dict[str, Any]) -> StudyMatrix | None:
    """Return a study matrix, or None if it is still wrong. A list without a valid name is empty in it."""
    empty: dict[str, Any] = {key: [] for key in PLACEHOLDERS if not values[key]}
    try:
        matrix = StudyMatrix.model_validate(values | {key: PLACEHOLDERS[key] for key in empty})
    except ValidationError:
        return None
    return matrix.model_copy(update=empty)


def parse_search(raw: dict[str, Any], invalid: Sequence[Location]) -> Search | None:
    """Return the `search` of a spec without what is wrong in it, or None if nothing is left of it.

    Args:
        invalid: where the spec is wrong.
    """
    search = raw.get("search")
    if not isinstance(search, dict):
        return None

    locations = [location[1:] for location in invalid if location[0] == "search"]
    wrong = {location[0] for location in locations if location}
    # One trial is never too many.
    valid = {"trials": 1} | {name: value for name, value in search.items() if name not in wrong}

    pruner = search.get("pruner")
    if isinstance(pruner, dict):
        wrong_keys = {location[1] for location in locations if location[0] == "pruner" and location[1:]}
        rest = {name: value for name, value in pruner.items() if name not in wrong_keys}
        with contextlib.suppress(ValidationError):
            return Search.model_validate(valid | {"pruner": rest})
    with contextlib.suppress(ValidationError):
        return Search.model_validate(valid)
    return None


def _entries(raw: dict[str, Any]) -> list[Any]:
    entries = raw.get("per")
    return entries if isinstance(entries, list) else []


def _valid_entry(entry: Any, invalid: Sequence[Location]) -> Any:
    """Return an entry of `per` without what is wrong in it, given the locations within the entry."""
    # An empty entry selects nothing, and keeps the numbers of those after it.
    if not is_kept(invalid):
        return {}

    valid = dict(entry)
    if invalid:
        valid["space"] = _without_invalid(
            valid.get("space", {}), [rest for first, *rest in invalid if first == "space"]
        )
        if any(location[0] == "search" for location in invalid):
            valid.pop("search", None)
    return valid


def is_kept(invalid: Sequence[Location]) -> bool:
    """Return whether the rest of an entry is kept: only some of its dimensions, or its search, are wrong."""
    return all(
        location and (location[0] == "search" or (location[0] == "space" and location[1:])) for location in invalid
    )


def _without_invalid(space: Any, invalid: Sequence[Sequence[int | str]]) -> Any:
    """Return a space without its wrong dimensions. What is no mapping is returned as it is."""
    names = {location[0] for location in invalid if location}
    return {name: entry for name, entry in space.items() if name not in names} if isinstance(space, dict) else space
