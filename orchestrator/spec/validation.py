"""What a spec's values may not be together: rules over the grid, its space and how it is searched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import Search, StudyMatrix, task_names
from orchestrator.spec.space import Choice, Dimension, FloatRange
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.validation import number_problem, unknown_name

SWEEP_FIELDS = ("task", "backbone", "method", "train_size", "eval_split", "measure_peeking", "seed")
"""Fields of TrainConfig that the sweep sets itself; a spec may neither fix nor search them."""


def config_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Field and sentence of everything that `TrainConfig` would refuse at a corner of some study's space."""
    for part, names in (("fixed", spec.fixed), ("space", spec.space)):
        for name in names:
            if name in SWEEP_FIELDS:
                yield name, f"{part}.{name}: the sweep sets it itself; use {_own_key(name)}."
            elif name not in field_types():
                fields = [field for field in field_types() if field not in SWEEP_FIELDS]
                yield name, f"{part}.{name}: {unknown_name(name, fields, 'a TrainConfig field')}"
            elif all(name in unused_fields(method) for method in spec.methods):
                yield name, f"{part}.{name}: without effect on {', '.join(spec.methods)}; leave it out."
            elif part == "space" and name in spec.fixed:
                yield name, f"space.{name}: is fixed too; keep one of the two."
    for name, dimension in spec.space.items():
        for other, values in dimension.when.items():
            yield from ((other, f"space.{name}.when: {text}") for text in _when_problems(spec, name, other, values))
    tasks = [task for name in spec.tasks for task in task_names(name)]
    places = list(itertools.product(tasks, spec.train_sizes))
    for backbone, method in itertools.product(spec.backbones, spec.methods):
        fixed, space = spec.params_for(method)
        base = {name: value for name, value in fixed.items() if name in field_types()}
        base |= {"backbone": backbone, "method": method}
        known = {name: dimension for name, dimension in space.items() if name in field_types()}
        corners = [*_corner_configs(base, known)]
        # Every corner at the first place, and every place at the first corner: rules join no more than these.
        for (task, size), corner in [*((places[0], c) for c in corners), *((p, corners[0]) for p in places[1:])]:
            try:
                TrainConfig.from_params(base | corner | {"task": task, "train_size": size})
            except InvalidConfig as error:
                for field, problem in error.problems.items():
                    part = "space" if field in known else "train_sizes" if field == "train_size" else "fixed"
                    yield field, f"{part}.{field}: {problem}" if part != "train_sizes" else f"train_sizes: {problem}"


def _own_key(field: str) -> str:
    return {
        "task": "tasks",
        "backbone": "backbones",
        "method": "methods",
        "train_size": "train_sizes",
        "seed": "search.seed and final.seeds",
        "measure_peeking": "final.measure_peeking",
        "eval_split": "nothing: search is judged on val, final trials on test",
    }[field]


def _when_problems(spec: StudyMatrix, name: str, other: str, values: list[Any]) -> Iterator[str]:
    """Why a parameter cannot be searched only where another has these values."""
    if other in spec.fixed:
        if (fixed := spec.fixed[other]) not in values:
            wanted = " or ".join(map(repr, values))
            yield f"{other} is fixed at {fixed!r} and never {wanted}: leave {name} out."
        return
    dimension = spec.space.get(other)
    if dimension is None or other == name:
        others = [one for one in (*spec.space, *spec.fixed) if one != name]
        yield unknown_name(other, others, "another parameter of this spec")
    elif dimension.when:
        yield f"{other} is itself searched only at times; name the parameters that it depends on."
    else:
        for value in values:
            if not _contains(dimension, value):
                yield f"{other} is never {value!r}, but {_describe(dimension)}."


def _contains(dimension: Dimension, value: Any) -> bool:
    """Whether a value lies in a dimension."""
    if isinstance(dimension, Choice):
        return value in dimension.values
    return number_problem(value) is None and dimension.low <= value <= dimension.high


def _describe(dimension: Dimension) -> str:
    """A dimension in words."""
    if isinstance(dimension, Choice):
        return f"one of {', '.join(map(str, dimension.values))}"
    return f"between {dimension.low} and {dimension.high}"


def _corner_configs(fixed: dict[str, Any], space: dict[str, Dimension]) -> Iterator[dict[str, Any]]:
    """The ends of a space's dimensions in every combination, conditional ones where they are searched at all."""
    asked: dict[str, list[Any]] = {}
    for dimension in space.values():
        for other, values in dimension.when.items():
            asked.setdefault(other, []).extend(values)
    free = {
        name: [*_extremes(dimension), *(value for value in asked.get(name, []) if _contains(dimension, value))]
        for name, dimension in space.items()
        if not dimension.when
    }
    for ends in itertools.product(*free.values()):
        corner = dict(zip(free, ends, strict=True))
        active = {name: _extremes(d) for name, d in space.items() if d.when and d.is_active(fixed | corner)}
        for more in itertools.product(*active.values()):
            yield corner | dict(zip(active, more, strict=True))


def _extremes(dimension: Dimension) -> list[Any]:
    return dimension.values if isinstance(dimension, Choice) else [dimension.low, dimension.high]


def search_problems(spec: StudyMatrix, search: Search) -> Iterator[str]:
    """What the sampler or the pruner cannot do with the space."""
    for study in plan_sweep(spec).studies:
        least = getattr(search.pruner, "min_epochs", 0)
        if least >= study.epochs:
            rule = f"must be below epochs={study.epochs}, or no trial is ever stopped"
            yield f"search.pruner.min_epochs: {rule}; got {least}."
    if search.sampler != "grid":
        return
    endless = [name for name, dimension in spec.space.items() if isinstance(dimension, FloatRange)]
    for name in endless:
        yield (
            f"space.{name}: sampler grid tries every value, and a float range has no end of them; "
            "list some: {type: choice, values: [...]}."
        )
    points = {method: _num_points(*spec.params_for(method)) for method in spec.methods} if not endless else {}
    if points and search.trials > (most := max(points.values())):
        cure = f"use at most {most}, or list more values"
        yield f"search.trials: {search.trials} exceed the {most} points of the grid; {cure}."


def _num_points(fixed: dict[str, Any], space: dict[str, Dimension]) -> int:
    """How many different combinations of values a space without real numbers has."""
    deciding = [name for name in space if any(name in dimension.when for dimension in space.values())]
    free = [dimension for name, dimension in space.items() if name not in deciding and not dimension.when]
    points = 0
    for values in itertools.product(*(_values(space[name]) for name in deciding)):
        params = fixed | dict(zip(deciding, values, strict=True))
        points += math.prod(len(_values(d)) for d in space.values() if d.when and d.is_active(params))
    return points * math.prod(len(_values(dimension)) for dimension in free)


def _values(dimension: Dimension) -> Sequence[Any]:
    """Every value of a dimension without real numbers."""
    assert not isinstance(dimension, FloatRange), "real numbers have no end"
    return dimension.values if isinstance(dimension, Choice) else range(dimension.low, dimension.high + 1)
