"""From a YAML file to a `SweepSpec`, or one error with every problem. Only this file sees raw YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

import search_spaces
from orchestrator.errors import SpecError
from orchestrator.spec.resources import Cluster, ResourceOverride, Resources, resource_problems
from orchestrator.spec.schema import Asha, Budget, Final, Search, StudyMatrix, SweepSpec
from orchestrator.spec.space import FloatRange
from orchestrator.spec.validation import config_problems, search_problems
from trainer.validation import number_problem, unknown_name

TAGS = ("float", "int", "choice", "asha", "hyperband", "median", "none")
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
        raise SpecError(spec, [f"is no file, and {unknown_name(spec, shipped, 'a spec that ships')}"])
    return Path(spec)


MissingCheck = Callable[[StudyMatrix], Iterable[str]]
"""What a grid asks for and is not there, as sentences."""


def load_spec(path: Path, find_missing: MissingCheck = lambda _: ()) -> SweepSpec:
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
    return parse_spec(raw, str(path), find_missing)


def load_cluster(path: Path) -> Cluster:
    """Where a spec says that everything is; nothing where it says so wrongly, which `load_spec` tells."""
    try:
        return Cluster.model_validate(yaml.load(path.read_text(), _UniqueKeyLoader)["cluster"])
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, LookupError, TypeError):
        return Cluster()


def parse_spec(raw: dict[str, Any], source: str, find_missing: MissingCheck = lambda _: ()) -> SweepSpec:
    """Check a spec that is already a mapping.

    Raises:
        SpecError: as `load_spec`.
    """
    problems: dict[str, None] = {}
    broken: set[str] = set()
    grid: StudyMatrix | None
    left: dict[str, Any] = {}
    try:
        grid = spec = SweepSpec.model_validate(raw)
        problems |= dict.fromkeys(resource_problems(spec.resources, spec.backbones))
    except ValidationError as error:
        places = []
        for detail in error.errors():
            place = tuple(part for part in detail["loc"] if part not in TAGS)
            problems[f"{'.'.join(map(str, place))}: {_explain(detail, place)}"] = None
            places.append(place)
        broken = {str(place[1]) for place in places if place[0] == "space" and len(place) > 1}
        left = _valid_keys(raw, places, broken)
        grid = _matrix_of(left)
    found = [*config_problems(grid)] if grid else []
    problems |= dict.fromkeys(problem for field, problem in found if field not in broken)
    if grid and not broken and (search := _search_of(raw)) and "epochs" not in {field for field, _ in found}:
        problems |= dict.fromkeys(search_problems(grid, search))
    problems |= dict.fromkeys(find_missing(grid or StudyMatrix.model_construct(**left)))
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


def _explain(detail: Any, place: tuple[int | str, ...]) -> str:
    """What is wrong in one of pydantic's findings, as rule, value and way out."""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        owners: dict[tuple[int | str, ...], type[BaseModel]] = {
            (): SweepSpec,
            ("search",): Search,
            ("search", "pruner"): Asha,
            ("final",): Final,
            ("resources",): Resources,
            ("cluster",): Cluster,
            ("budget",): Budget,
        }
        other = ResourceOverride if place[:2] == ("resources", "backbones") else FloatRange
        return unknown_name(str(place[-1]), owners.get(place[:-1], other).model_fields, "a key here")
    if kind == "missing":
        return "is missing."
    if kind in ("union_tag_not_found", "model_attributes_type"):
        example = "asha, min_epochs: 10" if "pruner" in place else "float, low: 0.1, high: 1.0"
        return f"must be a mapping with a `type`, such as {{type: {example}}}; got {value!r}."
    if kind == "union_tag_invalid":
        return unknown_name(str(detail["ctx"]["tag"]), re.findall(r"'(\w+)'", detail["ctx"]["expected_tags"]), "a type")
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if isinstance(value, str) and (kind.startswith(("int", "float"))):
        return str(number_problem(value))
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {value!r}."


def _valid_keys(raw: dict[str, Any], places: list[tuple[int | str, ...]], broken: set[str]) -> dict[str, Any]:
    """A grid's values without the broken entries, so that the rest is checked too."""
    kept: dict[str, Any] = {"fixed": raw.get("fixed") or {}, "space": raw.get("space") or {}}
    for part in ("tasks", "backbones", "methods", "train_sizes"):
        names = raw.get(part, [1.0] if part == "train_sizes" else None)
        kept[part] = [n for i, n in enumerate(names) if (part, i) not in places] if isinstance(names, list) else []
    if isinstance(kept["space"], dict):
        kept["space"] = {name: entry for name, entry in kept["space"].items() if name not in broken}
    return kept


def _matrix_of(left: dict[str, Any]) -> StudyMatrix | None:
    """The grid of what is left; None if that is too little."""
    try:
        return StudyMatrix.model_validate(left)
    except ValidationError:
        return None


def _search_of(raw: dict[str, Any]) -> Search | None:
    """How it is searched; None if that is wrong by itself."""
    try:
        return Search.model_validate(raw.get("search"))
    except ValidationError:
        return None
