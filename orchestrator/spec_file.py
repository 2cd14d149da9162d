"""From a YAML file to a `SweepSpec`, or one error with every problem. Only this file sees raw YAML."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

import search_spaces
from orchestrator.errors import SpecError
from orchestrator.spec import (
    Asha,
    Choice,
    Final,
    FloatRange,
    Grid,
    IntRange,
    Resources,
    Search,
    SweepSpec,
    task_names,
)
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.rules import no_such, number_problem

SWEEP_FIELDS = ("task", "backbone", "method", "train_size", "eval_split", "seed")
"""Fields of TrainConfig that the sweep sets itself; a spec may neither fix nor search them."""
TAGS = ("float", "int", "choice", "asha", "median", "none")
"""Values of `type`, which pydantic puts into the place of a finding."""


def find_spec(spec: str) -> Path:
    """The file of a spec given by path, or by name if it is one of those that ship.

    Raises:
        SpecError: if there is no such file.
    """
    shipped = {path.stem: path for path in sorted(Path(search_spaces.__path__[0]).glob("*.yaml"))}
    if spec in shipped:
        return shipped[spec]
    if not Path(spec).is_file():
        raise SpecError(spec, [f"is no file, and {no_such(spec, shipped, 'a spec that ships')}"])
    return Path(spec)


Needs = Callable[[Grid], Iterable[str]]
"""What a grid asks for and is not there, as sentences."""


def load_spec(path: Path, needs: Needs = lambda _: ()) -> SweepSpec:
    """Read and check a spec.

    Args:
        needs: asked of as much of the grid as is right, so that what is missing is told with all else.

    Raises:
        SpecError: with every problem: of the YAML, of its keys and types, and of the configs it would lead to.
    """
    try:
        raw = yaml.load(path.read_text(), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise SpecError(str(path), ["must be a mapping with keys such as name, tasks, methods, space."])
    return parse_spec(raw, str(path), needs)


def parse_spec(raw: dict[str, Any], source: str, needs: Needs = lambda _: ()) -> SweepSpec:
    """Check a spec that is already a mapping.

    Raises:
        SpecError: as `load_spec`.
    """
    problems: dict[str, None] = {}
    broken: set[str] = set()
    grid: Grid | None
    left: dict[str, Any] = {}
    try:
        grid = spec = SweepSpec.model_validate(raw)
    except ValidationError as error:
        places = []
        for detail in error.errors():
            place = tuple(part for part in detail["loc"] if part not in TAGS)
            problems[f"{'.'.join(map(str, place))}: {_sentence(detail, place)}"] = None
            places.append(place)
        broken = {str(place[1]) for place in places if place[0] == "space" and len(place) > 1}
        left = _left(raw, places, broken)
        grid = _grid_of(left)
    for field, problem in _config_problems(grid) if grid else ():
        if field not in broken:
            problems[problem] = None
    problems |= dict.fromkeys(needs(grid or Grid.model_construct(**left)))
    if problems:
        raise SpecError(source, list(problems))
    return spec


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, which PyYAML would silently answer with the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of YAML.

        Raises:
            yaml.MarkedYAMLError: if a key is there twice, with the line.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.MarkedYAMLError(
                problem=f"{', '.join(map(str, twice))} given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def _sentence(detail: Any, place: tuple[int | str, ...]) -> str:
    """What is wrong in one of pydantic's findings, as rule, value and way out."""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        owners: dict[tuple[int | str, ...], type[BaseModel]] = {
            (): SweepSpec,
            ("search",): Search,
            ("search", "pruner"): Asha,
            ("final",): Final,
            ("resources",): Resources,
        }
        return no_such(str(place[-1]), owners.get(place[:-1], FloatRange).model_fields, "a key here")
    if kind == "missing":
        return "is missing."
    if kind in ("union_tag_not_found", "model_attributes_type"):
        example = "asha, min_epochs: 10" if "pruner" in place else "float, low: 0.1, high: 1.0"
        return f"must be a mapping with a `type`, such as {{type: {example}}}; got {value!r}."
    if kind == "union_tag_invalid":
        return no_such(str(detail["ctx"]["tag"]), re.findall(r"'(\w+)'", detail["ctx"]["expected_tags"]), "a type")
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if isinstance(value, str) and (kind.startswith(("int", "float"))):
        return str(number_problem(value))
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {value!r}."


def _left(raw: dict[str, Any], places: list[tuple[int | str, ...]], broken: set[str]) -> dict[str, Any]:
    """A grid's values without the broken entries, so that the rest is checked too."""
    kept: dict[str, Any] = {"fixed": raw.get("fixed") or {}, "space": raw.get("space") or {}}
    for part in ("tasks", "backbones", "methods", "train_sizes"):
        names = raw.get(part, [1.0] if part == "train_sizes" else None)
        kept[part] = [n for i, n in enumerate(names) if (part, i) not in places] if isinstance(names, list) else []
    if isinstance(kept["space"], dict):
        kept["space"] = {name: entry for name, entry in kept["space"].items() if name not in broken}
    return kept


def _grid_of(left: dict[str, Any]) -> Grid | None:
    """The grid of what is left; None if that is too little."""
    try:
        return Grid.model_validate(left)
    except ValidationError:
        return None


def _config_problems(spec: Grid) -> Iterator[tuple[str, str]]:
    """Field and sentence of everything that `TrainConfig` would refuse at a corner of some study's space."""
    for part, names in (("fixed", spec.fixed), ("space", spec.space)):
        for name in names:
            if name in SWEEP_FIELDS:
                yield name, f"{part}.{name}: the sweep sets it itself; use {_own_key(name)}."
            elif name not in field_types():
                fields = [field for field in field_types() if field not in SWEEP_FIELDS]
                yield name, f"{part}.{name}: {no_such(name, fields, 'a TrainConfig field')}"
            elif all(name in unused_fields(method) for method in spec.methods):
                yield name, f"{part}.{name}: without effect on {', '.join(spec.methods)}; leave it out."
            elif part == "space" and name in spec.fixed:
                yield name, f"space.{name}: is fixed too; keep one of the two."
    tasks = [task for name in spec.tasks for task in task_names(name)]
    places = list(itertools.product(tasks, spec.train_sizes))
    for backbone, method in itertools.product(spec.backbones, spec.methods):
        fixed, space = spec.params_of(method)
        base = {name: value for name, value in fixed.items() if name in field_types()}
        base |= {"backbone": backbone, "method": method}
        known = {name: dimension for name, dimension in space.items() if name in field_types()}
        corners = [dict(zip(known, ends, strict=True)) for ends in itertools.product(*map(_ends, known.values()))]
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
        "eval_split": "nothing: search is judged on val, final trials on test",
    }[field]


def _ends(dimension: FloatRange | IntRange | Choice) -> list[Any]:
    return dimension.values if isinstance(dimension, Choice) else [dimension.low, dimension.high]
