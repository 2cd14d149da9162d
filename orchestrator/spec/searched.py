"""What each study of a sweep searches, in words. Studies that search the same are listed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.labels import format_setting, format_value
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import Search
from orchestrator.spec.space import Choice, Dimension
from trainer.plain_text import counted

SHOWN_IF_DIFFERENT = ("startup_trials", "max_concurrent")
"""Keys of a search that are named only where studies differ in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedPart:
    """Studies with the same search, space and fixed values."""

    studies: str
    """Names of the studies, as short as the sweep allows: `linear`, or `linear (fgvc)`."""
    search: str
    space: str
    fixed: str
    """Fixed values that not all studies of the sweep have."""


def searched_parts(plans: Sequence[StudyPlan]) -> tuple[list[SearchedPart], str]:
    """Return the studies by what they search, and the fixed values that all of them have."""
    plans_by_content: dict[str, list[StudyPlan]] = {}
    for plan in plans:
        # The order of the names is no difference to a reader.
        content = repr((plan.search, sorted(plan.space.items()), sorted(plan.fixed.items())))
        plans_by_content.setdefault(content, []).append(plan)

    parts = [*plans_by_content.values()]
    different = _different_keys(plans)
    common = [name for name in parts[0][0].fixed if _is_common(name, parts)] if parts else []
    searched = [
        SearchedPart(
            studies=_name_studies(part, plans),
            search=_format_search(part[0].search, different),
            space="; ".join(f"{name} {format_dimension(entry)}" for name, entry in part[0].space.items()) or "nothing",
            fixed=_format_fixed({name: value for name, value in part[0].fixed.items() if name not in common}),
        )
        for part in parts
    ]
    return searched, _format_fixed({name: parts[0][0].fixed[name] for name in common})


def searches(plans: Sequence[StudyPlan]) -> dict[str, str]:
    """Return how studies search, each search with the names of its studies. Later studies of a search add no entry."""
    different = _different_keys(plans)
    plans_by_search: dict[str, list[StudyPlan]] = {}
    for plan in plans:
        plans_by_search.setdefault(_format_search(plan.search, different), []).append(plan)

    return {search: _name_studies(part, plans) for search, part in plans_by_search.items()}


def _different_keys(plans: Sequence[StudyPlan]) -> list[str]:
    """Return the keys of `search` that are named only because the studies differ in them."""
    names = [name for name in SHOWN_IF_DIFFERENT if len({getattr(plan.search, name) for plan in plans}) > 1]

    # The settings of pruners of different types need not be known to tell them apart.
    pruners = {repr(plan.search.pruner) for plan in plans}
    if len(pruners) > len({plan.search.pruner.type for plan in plans}):
        names.append("pruner")
    return names


def _format_search(search: Search, different: Sequence[str]) -> str:
    """Return how a study searches, on one line."""
    pruner: str = search.pruner.type
    if "pruner" in different:
        settings = search.pruner.model_dump(exclude={"type"})
        pruner += f" {format_setting(settings)}" if settings else ""

    values = [
        counted(search.trials, "trial"),
        f"sampler {search.sampler}",
        f"pruner {pruner}",
        f"seed {search.seed}",
    ]
    # With it, the first params come from other studies.
    if search.transfer:
        values.append(f"transfer {search.transfer}")
    if search.eval_every > 1:
        values.append(f"eval_every {search.eval_every}")
    values += [f"{name} {getattr(search, name)}" for name in SHOWN_IF_DIFFERENT if name in different]
    return ", ".join(values)


def format_dimension(dimension: Dimension) -> str:
    """Return the values of a dimension in words: `0.001 to 0.5 (log)`, or `20 or 100`."""
    if isinstance(dimension, Choice):
        *others, last = map(format_value, dimension.values)
        text = f"{', '.join(others)} or {last}" if others else last
    else:
        text = f"{dimension.low:g} to {dimension.high:g}{' (log)' if dimension.log else ''}"

    conditions = [f"{name} is {' or '.join(map(format_value, values))}" for name, values in dimension.when.items()]
    return f"{text} if {' and '.join(conditions)}" if conditions else text


def _is_common(name: str, parts: Sequence[Sequence[StudyPlan]]) -> bool:
    """Return whether all studies have the same fixed value."""
    # By repr, so that 1 and 1.0 and True are three values.
    values = {repr(part[0].fixed[name]) if name in part[0].fixed else "" for part in parts}
    return len(values) == 1


def _format_fixed(fixed: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {format_value(value)}" for name, value in fixed.items())


def _name_studies(part: Sequence[StudyPlan], plans: Sequence[StudyPlan]) -> str:
    """Return the methods of some studies, with backbones and tasks if the sweep has more of them."""
    methods_by_scope: dict[str, list[str]] = {}
    for method in dict.fromkeys(plan.method for plan in part):
        of_method = [plan for plan in part if plan.method == method]
        scope: list[str] = []
        if {plan.backbone for plan in of_method} != {plan.backbone for plan in plans}:
            scope += dict.fromkeys(plan.backbone for plan in of_method)
        if {plan.task for plan in of_method} != {plan.task for plan in plans}:
            scope += _name_tasks(of_method, plans)
        methods_by_scope.setdefault(", ".join(scope), []).append(method)

    names = [
        f"{', '.join(methods)} ({scope})" if scope else ", ".join(methods)
        for scope, methods in methods_by_scope.items()
    ]
    return "; ".join(names)


def _name_tasks(part: Sequence[StudyPlan], plans: Sequence[StudyPlan]) -> list[str]:
    """Return the tasks of some studies. A group replaces its tasks if the studies have all of them."""
    tasks = dict.fromkeys(plan.task for plan in part)
    missing = {plan.group for plan in plans if plan.task not in tasks}
    return list(dict.fromkeys(plan.task if plan.group in missing else plan.group for plan in part))
