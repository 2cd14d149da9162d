"""Rules over the values of a spec together: its study matrix, its space and its search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.spec.labels import format_value
from orchestrator.spec.override_rules import override_problems, study_kinds
from orchestrator.spec.overrides import Params, merge_params, merge_search, search_key
from orchestrator.spec.plan import longest_trial
from orchestrator.spec.schema import Search, StudyMatrix, StudyOverride, task_names
from orchestrator.spec.space import Choice, Dimension, FloatRange
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.plain_text import counted, format_train_size
from trainer.validation import is_full, number_problem, short_repr, type_problem, unknown_name

SWEEP_FIELDS = (
    "task",
    "backbone",
    "method",
    "train_size",
    "val_size",
    "draw",
    "eval_split",
    "train_on",
    "eval_every",
    "measure_peeking",
    "seed",
)
"""Fields of TrainConfig that the sweep sets itself. A spec may neither fix nor search them."""


MAX_STUDIES = 100_000
"""Most studies of a sweep."""
MAX_CORNERS = 10_000
"""Most configs of one kind of study that are checked with every value of every dimension."""
MAX_GRID_VALUES = 100_000
"""Most values of a whole number in a grid, which Optuna lists."""


def config_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the field and a sentence for everything that `TrainConfig` refuses at a corner of a study's space."""
    yield from _matrix_problems(spec)
    yield from _name_problems(spec, "", spec.methods)
    # An entry selects nothing where no name of a list is valid.
    if spec.tasks and spec.backbones and spec.methods:
        yield from override_problems(spec)
    for index, entry in enumerate(spec.per):
        methods = [name for name in spec.methods if entry.method is None or name in entry.method]
        yield from _name_problems(entry, f"per.{index}.", methods)

    yield from _condition_problems(spec)
    yield from _corner_problems(spec)


def _matrix_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield why the studies cannot be told apart, or are too many."""
    # Names of studies have six digits of a share.
    sizes_by_name: dict[str, float | int | str] = {}
    for size in spec.train_sizes:
        twin = sizes_by_name.setdefault(format_train_size(size), size)
        if repr(twin) != repr(size):
            yield "train_size", f"train_sizes: {size} and {twin} have the same name; leave one of them out."

    num_tasks = len({task for name in spec.tasks for task in task_names(name)})
    num_sets = sum(1 if is_full(size) else spec.draws for size in spec.train_sizes)
    num_studies = num_tasks * len({*spec.backbones}) * len({*spec.methods}) * num_sets
    if num_studies > MAX_STUDIES:
        yield "draw", f"draws: the spec has {counted(num_studies, 'study')}, and a sweep at most {MAX_STUDIES:,}."


def _name_problems(part: StudyMatrix | StudyOverride, path: str, methods: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield why a spec may not have these names in `fixed` or in `space`.

    Args:
        part: the spec, or an entry of its `per`.
        path: where the part is in the spec.
        methods: the methods of the studies that the part is for.
    """
    for where, name in [*(("fixed", name) for name in part.fixed), *(("space", name) for name in part.space)]:
        key = f"{path}{where}.{name}"
        if name in SWEEP_FIELDS or name not in field_types():
            yield name, f"{key}: {_not_a_field(name)}"
        elif methods and all(name in unused_fields(method) for method in methods):
            yield name, f"{key}: without effect on {', '.join(methods)}; leave it out."
        elif where == "space" and name in part.fixed:
            yield name, f"{key}: is fixed too; keep one of the two."


def entry_problems(entry: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with the fields of an entry of `per` whose studies are not known, as its selectors are wrong.

    Args:
        entry: as YAML gives it.
        path: where the entry is in the spec.
    """
    for where in ("fixed", "space"):
        part = entry.get(where) if isinstance(entry, dict) else None
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in SWEEP_FIELDS or name not in field_types():
                yield f"{path}.{where}.{name}: {_not_a_field(str(name))}"
            elif where == "fixed" and (problem := type_problem(field_types()[name], value)):
                yield f"{path}.{where}.{name}: {problem}"


def _not_a_field(name: str) -> str:
    """Return why a spec may not have this name."""
    if name in SWEEP_FIELDS:
        return f"the sweep sets it itself; use {_own_key(name)}."

    fields = [field for field in field_types() if field not in SWEEP_FIELDS]
    return unknown_name(name, fields, "a TrainConfig field")


def _own_key(field: str) -> str:
    return {
        "task": "tasks",
        "backbone": "backbones",
        "method": "methods",
        "train_size": "train_sizes",
        "val_size": "val_size",
        "draw": "draws",
        "train_on": "final.train_on",
        "eval_every": "search.eval_every",
        "seed": "search.seed and final.seeds",
        "measure_peeking": "final.measure_peeking",
        "eval_split": "nothing: search is judged on val, final trials on test",
    }[field]


def _condition_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the field and a sentence for each condition that no study can fulfil."""
    # A condition is judged in the merged space of each study. What is never searched in one study is in another.
    problems_by_condition: dict[tuple[str, str], list[list[str]]] = {}
    for overrides in {kind.indices: kind.overrides(spec) for kind in study_kinds(spec)}.values():
        params = merge_params(spec, overrides)
        for name, dimension in params.space.items():
            for condition, values in dimension.when.items():
                key = params.keys[name]
                searched = params.space.get(condition)
                if searched is not None and searched.when and condition != name:
                    cure = "is itself searched only at times; name the parameters that it depends on."
                    yield condition, f"{key}.when: {condition} {cure}"
                    continue

                problems = [*_when_problems(params, name, condition, values)]
                problems_by_condition.setdefault((key, condition), []).append(problems)

    for (key, condition), problems_by_study in problems_by_condition.items():
        if all(problems_by_study):
            for problem in itertools.chain(*problems_by_study):
                yield condition, f"{key}.when: {problem}"


def _corner_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the field and a sentence for each config at a corner of a space that `TrainConfig` refuses."""
    for kind in study_kinds(spec):
        params = merge_params(spec, kind.overrides(spec)).used_by(kind.method)
        base = {name: value for name, value in params.fixed.items() if name in field_types()}
        base |= {"backbone": kind.backbone, "method": kind.method}
        searched = {name: dimension for name, dimension in params.space.items() if name in field_types()}
        corners = [*_corner_configs(base, searched)]

        # Every corner with the first task and size, and every task and size with the first corner. No rule of
        # TrainConfig connects more than these, and all combinations would be too many.
        axes = list(itertools.product(kind.tasks, spec.train_sizes))
        combinations = [(axes[0], corner) for corner in corners] + [(axis, corners[0]) for axis in axes[1:]]
        for (task, size), corner in combinations:
            try:
                val_size = "full" if is_full(size) else spec.val_size
                TrainConfig.from_params(base | corner | {"task": task, "train_size": size, "val_size": val_size})
            except InvalidConfig as error:
                for field, problem in error.problems.items():
                    # Reported with the names themselves.
                    if field in ("task", "backbone", "method"):
                        continue
                    key = "train_sizes" if field == "train_size" else params.keys.get(field, f"fixed.{field}")
                    yield field, f"{key}: {problem}"


def _when_problems(params: Params, name: str, condition: str, values: list[Any]) -> Iterator[str]:
    """Yield why a parameter cannot be searched only where another one, `condition`, has these values."""
    # A fixed parameter has one value: the condition is always true, or never.
    if condition in params.fixed:
        fixed = params.fixed[condition]
        if fixed not in values:
            wanted = " or ".join(map(short_repr, values))
            yield f"{condition} is fixed at {short_repr(fixed)} and never {wanted}: leave {name} out."
        return

    # A searched parameter must be able to take the values.
    dimension = params.space.get(condition)
    if dimension is None or condition == name:
        names = [param for param in (*params.space, *params.fixed) if param != name]
        yield unknown_name(condition, names, "another parameter of this spec")
    else:
        for value in values:
            if not _contains(dimension, value):
                yield f"{condition} is never {short_repr(value)}, but {_describe(dimension)}."


def _contains(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values

    return number_problem(value) is None and dimension.low <= value <= dimension.high


def _describe(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(map(format_value, dimension.values))}"

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

    for ends in _combinations([*unconditional.values()]):
        corner = dict(zip(unconditional, ends, strict=True))
        active = {name: _extremes(d) for name, d in space.items() if d.when and d.is_active(fixed | corner)}
        for conditional_ends in _combinations([*active.values()]):
            yield corner | dict(zip(active, conditional_ends, strict=True))


def _combinations(values: Sequence[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield every combination of values; if they are too many, each value with the first ones of the others."""
    if math.prod(map(len, values)) <= MAX_CORNERS:
        yield from itertools.product(*values)
        return

    first = [options[0] for options in values]
    for index, options in enumerate(values):
        for value in options:
            yield (*first[:index], value, *first[index + 1 :])


def _extremes(dimension: Dimension) -> list[Any]:
    return dimension.values if isinstance(dimension, Choice) else [dimension.low, dimension.high]


def search_problems(spec: StudyMatrix, search: Search, *, has_epochs: bool, has_space: bool) -> Iterator[str]:
    """Yield a sentence for everything that a sampler or a pruner cannot do with the space of its studies.

    Args:
        has_epochs: whether the number of epochs is valid.
        has_space: whether the spaces are complete, so that their points can be counted.
    """
    # By the key that gives the number of trials: a method with fewer points than another repeats some.
    num_points_by_key: dict[str, tuple[int, int]] = {}

    for kind in study_kinds(spec):
        overrides = kind.overrides(spec)
        params = merge_params(spec, overrides).used_by(kind.method)
        merged = merge_search(search, overrides)

        min_epochs = getattr(merged.pruner, "min_epochs", 0)
        epochs = longest_trial(params.fixed, params.space) if has_epochs else math.inf
        if min_epochs >= epochs:
            rule = f"must be below epochs={epochs}, or no trial is ever stopped"
            yield f"{search_key('pruner', overrides)}.min_epochs: {rule}; got {min_epochs}."
        # Rungs are multiples of min_epochs, so each of them has a score then, and none is judged together with another.
        if min_epochs % merged.eval_every:
            rule = (
                f"must divide the pruner's min_epochs={min_epochs}, so that there is a score where the pruner decides"
            )
            cure = f"Use {math.gcd(min_epochs, merged.eval_every)}, or another min_epochs."
            yield f"{search_key('eval_every', overrides)}: {rule}; got {merged.eval_every}. {cure}"

        if merged.sampler != "grid":
            continue

        float_ranges = [name for name, dimension in params.space.items() if isinstance(dimension, FloatRange)]
        for name in float_ranges:
            yield (
                f"{params.keys[name]}: sampler grid tries every value, and a float range has infinitely many; "
                "list some: {type: choice, values: [...]}."
            )

        long_ranges = [name for name, dimension in params.space.items() if _num_values(dimension) > MAX_GRID_VALUES]
        for name in long_ranges:
            yield f"{params.keys[name]}: sampler grid tries every value, and at most {MAX_GRID_VALUES:,} of them."

        # The number of points of an infinite grid says nothing.
        if has_space and not float_ranges and not long_ranges:
            key = search_key("trials", overrides)
            num_points = max(_num_points(params.fixed, params.space), num_points_by_key.get(key, (0, 0))[1])
            num_points_by_key[key] = merged.trials, num_points

    for key, (trials, num_points) in num_points_by_key.items():
        if trials > num_points:
            cure = f"use at most {num_points}, or list more values"
            yield f"{key}: {trials} exceed the {counted(num_points, 'point')} of the grid; {cure}."


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


def _num_values(dimension: Dimension) -> int:
    """Return the number of values of a dimension, 0 for the infinitely many of a float range."""
    if isinstance(dimension, FloatRange):
        return 0

    return len(dimension.values) if isinstance(dimension, Choice) else dimension.high - dimension.low + 1


def _values(dimension: Dimension) -> Sequence[Any]:
    assert not isinstance(dimension, FloatRange), "a float range has no list of values"
    return dimension.values if isinstance(dimension, Choice) else range(dimension.low, dimension.high + 1)
