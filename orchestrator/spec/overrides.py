"""Merge of a spec's `fixed`, `space` and `search` with the entries of `per` that select a study."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.schema import Search, StudyMatrix, StudyOverride
from orchestrator.spec.space import Dimension
from trainer.catalog import METHODS
from trainer.config import unused_fields

Overrides = tuple[tuple[int, StudyOverride], ...]
"""Entries of `per` that select a study, each with its index, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Fixed values and space of a study. A name is in one of the two."""

    fixed: dict[str, Any]
    space: dict[str, Dimension]
    keys: dict[str, str]
    """By name, the path in the spec that gives its value, such as `space.lr` or `per.1.fixed.lr`."""

    def used_by(self, method: str) -> Params:
        """Return the params without what has no effect on a method."""
        # A recorded spec may name a method that the catalog has no longer.
        unused: Collection[str] = unused_fields(method) if method in METHODS else ()

        return Params(
            fixed={name: value for name, value in self.fixed.items() if name not in unused},
            space={name: dimension for name, dimension in self.space.items() if name not in unused},
            keys={name: key for name, key in self.keys.items() if name not in unused},
        )


def overrides_of(spec: StudyMatrix, task: str, backbone: str, method: str) -> Overrides:
    """Return the entries of `per` that select a study."""
    return tuple((index, entry) for index, entry in enumerate(spec.per) if entry.selects(task, backbone, method))


def merge_params(spec: StudyMatrix, overrides: Overrides) -> Params:
    """Return the fixed values and the space of the studies that these entries select. Later entries win."""
    fixed = dict(spec.fixed)
    space = dict(spec.space)
    keys = {name: f"fixed.{name}" for name in fixed} | {name: f"space.{name}" for name in space}

    for index, entry in overrides:
        # A field that was searched may be fixed now, and the other way round. A field that stays searched keeps its
        # place: samplers draw params in the order of the space.
        for name, value in entry.fixed.items():
            space.pop(name, None)
            fixed[name] = value
            keys[name] = f"per.{index}.fixed.{name}"
        for name, dimension in entry.space.items():
            fixed.pop(name, None)
            space[name] = dimension
            keys[name] = f"per.{index}.space.{name}"

    return Params(fixed=fixed, space=space, keys=keys)


def merge_search(search: Search, overrides: Overrides) -> Search:
    """Return the search of the studies that these entries select. Later entries win."""
    values: dict[str, Any] = {}
    for _, entry in overrides:
        values |= entry.search.values

    return search.model_copy(update=values)


def search_key(name: str, overrides: Overrides) -> str:
    """Return the path in the spec that gives a key of a study's search, such as `per.1.search.trials`."""
    indices = [index for index, entry in overrides if name in entry.search.values]
    return f"per.{indices[-1]}.search.{name}" if indices else f"search.{name}"
