"""Rules over the values of a spec together: its study matrix, its space and its search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import Search, StudyMatrix, task_names
from orchestrator.spec.space import Choice, Dimension, FloatRange
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.validation import is_full, number_problem, unknown_name

SWEEP_FIELDS = (
    "task",
    "backbone",
    "method",
    "train_size",
    "val_size",
    "draw",
    "eval_split",
    "train_on",
    "measure_peeking",
    "seed",
)
"""Fields of TrainConfig that the sweep sets itself. A spec may neither fix nor search them."""


def config_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the field and a sentence for everything that `TrainConfig` refuses at a corner of a study's space."""
    for name in spec.fixed:
        yield from _name_problems(spec, "fixed", name)
    for name in spec.space:
        yield from _name_problems(spec, "space", name)

    for name, dimension in spec.space.items():
        for condition, values in dimension.when.items():
            for problem in _when_problems(spec, name, condition, values):
                yield condition, f"space.{name}.when: {problem}"

    yield from _corner_problems(spec)


def _name_problems(spec: StudyMatrix, part: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield why a spec may not have this name in `fixed` or in `space`."""
    if name in SWEEP_FIELDS:
        yield name, f"{part}.{name}: the sweep sets it itself; use {_own_key(name)}."
    elif name not in field_types():
        fields = [field for field in field_types() if field not in SWEEP_FIELDS]
        yield name, f"{part}.{name}: {unknown_name(name, fields, 'a TrainConfig field')}"
    elif all(name in unused_fields(method) for method in spec.methods):
        yield name, f"{part}.{name}: without effect on {', '.join(spec.methods)}; leave it out."
    elif part == "space" and name in spec.fixed:
        yield name, f"space.{name}: is fixed too; keep one of the two."


def _own_key(field: str) -> str:
    return {
        "task": "tasks",
        "backbone": "backbones",
        "method": "methods",
        "train_size": "train_sizes",
        "val_size": "val_size",
        "draw": "draws",
        "train_on": "final.train_on",
        "seed": "search.seed and final.seeds",
        "measure_peeking": "final.measure_peeking",
        "eval_split": "nothing: search is judged on val, final trials on test",
    }[field]


def _corner_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the field and a sentence for each config at a corner of a space that `TrainConfig` refuses."""
    tasks = [task for name in spec.tasks for task in task_names(name)]
    axes = list(itertools.product(tasks, spec.train_sizes))

    for backbone, method in itertools.product(spec.backbones, spec.methods):
        fixed, space = spec.params_for(method)
        base = {name: value for name, value in fixed.items() if name in field_types()}
        base |= {"backbone": backbone, "method": method}
        searched = {name: dimension for name, dimension in space.items() if name in field_types()}
        corners = [*_corner_configs(base, searched)]

        # Every corner with the first task and size, and every task and size with the first corner. No rule of
        # TrainConfig connects more than these, and all combinations would be too many.
        combinations = [(axes[0], corner) for corner in corners] + [(axis, corners[0]) for axis in axes[1:]]
        for (task, size), corner in combinations:
            try:
                val_size = "full" if is_full(size) else spec.val_size
                TrainConfig.from_params(base | corner | {"task": task, "train_size": size, "val_size": val_size})
            except InvalidConfig as error:
                for field, problem in error.problems.items():
                    yield field, f"{_key_of(field, searched)}: {problem}"


def _key_of(field: str, searched: dict[str, Dimension]) -> str:
    """Return the key of the spec that gives a field of TrainConfig its value."""
    if field in searched:
        return f"space.{field}"

    return "train_sizes" if field == "train_size" else f"fixed.{field}"


def _when_problems(spec: StudyMatrix, name: str, condition: str, values: list[Any]) -> Iterator[str]:
    """Yield why a parameter cannot be searched only where another one, `condition`, has these values."""
    # A fixed parameter has one value: the condition is always true, or never.
    if condition in spec.fixed:
        fixed = spec.fixed[condition]
        if fixed not in values:
            wanted = " or ".join(map(repr, values))
            yield f"{condition} is fixed at {fixed!r} and never {wanted}: leave {name} out."
        return

    # A searched parameter must be able to take the values.
    dimension = spec.space.get(condition)
    if dimension is None or condition == name:
        names = [param for param in (*spec.space, *spec.fixed) if param != name]
        yield unknown_name(condition, names, "another parameter of this spec")
    elif dimension.when:
        yield f"{condition} is itself searched only at times; name the parameters that it depends on."
    else:
        for value in values:
            if not _contains(dimension, value):
                yield f"{condition} is never {value!r}, but {_describe(dimension)}."


def _contains(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values

    return number_problem(value) is None and dimension.low <= value <= dimension.high


def _describe(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(map(str, dimension.values))}"

    return f"between {dimension.low} and {dimension.high}"


def _corner_configs(fixed: dict[str, Any], space: dict[str, Dimension]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the ends of a space's dimensions, conditional ones only where they are active."""
    # Values that conditions ask for are corners too: otherwise a conditional dimension might never be active.
    condition_values: dict[str, list[Any]] = {}
    for dimension in space.values():
        for name, values in dimension.when.items():
            condition_values.setdefault(name, []).extend(values)

    unconditional = {}
    for name, dimension in space.items():
        if not dimension.when:
            wanted = [value for value in condition_values.get(name, []) if _contains(dimension, value)]
            unconditional[name] = [*_extremes(dimension), *wanted]

    for ends in itertools.product(*unconditional.values()):
        corner = dict(zip(unconditional, ends, strict=True))
        active = {name: _extremes(d) for name, d in space.items() if d.when and d.is_active(fixed | corner)}
        for conditional_ends in itertools.product(*active.values()):
            yield corner | dict(zip(active, conditional_ends, strict=True))


def _extremes(dimension: Dimension) -> list[Any]:
    return dimension.values if isinstance(dimension, Choice) else [dimension.low, dimension.high]


def search_problems(spec: StudyMatrix, search: Search) -> Iterator[str]:
    """Yield a sentence for everything that the sampler or the pruner cannot do with the space."""
    min_epochs = getattr(search.pruner, "min_epochs", 0)
    for study in plan_sweep(spec).studies:
        if min_epochs >= study.epochs:
            rule = f"must be below epochs={study.epochs}, or no trial is ever stopped"
            yield f"search.pruner.min_epochs: {rule}; got {min_epochs}."

    if search.sampler != "grid":
        return

    float_ranges = [name for name, dimension in spec.space.items() if isinstance(dimension, FloatRange)]
    for name in float_ranges:
        yield (
            f"space.{name}: sampler grid tries every value, and a float range has no end of them; "
            "list some: {type: choice, values: [...]}."
        )
    # The number of points of an infinite grid says nothing.
    if float_ranges:
        return

    num_points = max((_num_points(*spec.params_for(method)) for method in spec.methods), default=search.trials)
    if search.trials > num_points:
        cure = f"use at most {num_points}, or list more values"
        yield f"search.trials: {search.trials} exceed the {num_points} points of the grid; {cure}."


def _num_points(fixed: dict[str, Any], space: dict[str, Dimension]) -> int:
    """Return the number of different combinations of values of a space without float ranges."""
    deciding = [name for name in space if any(name in dimension.when for dimension in space.values())]
    independent = [dimension for name, dimension in space.items() if name not in deciding and not dimension.when]

    # The values of the deciding params say which conditional params are active, and so how many points there are.
    num_points = 0
    for values in itertools.product(*(_values(space[name]) for name in deciding)):
        params = fixed | dict(zip(deciding, values, strict=True))
        num_points += math.prod(len(_values(d)) for d in space.values() if d.when and d.is_active(params))

    return num_points * math.prod(len(_values(dimension)) for dimension in independent)


def _values(dimension: Dimension) -> Sequence[Any]:
    assert not isinstance(dimension, FloatRange), "a float range has no list of values"
    return dimension.values if isinstance(dimension, Choice) else range(dimension.low, dimension.high + 1)
