"""Reads a `SweepSpec` from a YAML file or from the study database.

All mistakes are reported in one error. Only this module handles raw YAML.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.fields import RECORDED
from orchestrator.spec.resources import Cluster, ResourceOverride, Resources, resource_problems
from orchestrator.spec.schema import (
    Asha,
    Budget,
    Final,
    Hyperband,
    Median,
    NoPruner,
    Search,
    SearchOverride,
    StudyMatrix,
    StudyOverride,
    SweepSpec,
)
from orchestrator.spec.space import Choice, FloatRange, IntRange
from orchestrator.spec.valid_part import Location, invalid_fields, parse_matrix, parse_search, valid_part
from orchestrator.spec.validation import config_problems, search_problems
from trainer.validation import number_problem, unknown_name

SHIPPED_SPECS = Path(__file__).parents[2] / "search_spaces"
"""Folder of the specs that come with sptune. Its place is fixed: another package may have its name."""
TAGS: dict[str, type[BaseModel]] = {
    "float": FloatRange,
    "int": IntRange,
    "choice": Choice,
    "asha": Asha,
    "hyperband": Hyperband,
    "median": Median,
    "none": NoPruner,
}
"""Values of `type`, with the keys that belong to them. Pydantic adds them to the location of an error, though they are
no keys of the YAML file."""

MissingCheck = Callable[[StudyMatrix], Iterable[str]]
"""Returns a sentence for each thing that a spec needs and that is missing, such as a task without data."""


def find_spec(spec: str) -> Path:
    """Return the file of a spec that is given by its path, or by its name if it comes with sptune.

    Raises:
        SpecError: if there is no such file.
    """
    # The name comes first: a file `demo` in the working directory must not hide the spec that ships.
    shipped = {path.stem: path for path in sorted(SHIPPED_SPECS.glob("*.yaml"))}
    if spec in shipped:
        return shipped[spec]

    if not Path(spec).is_file():
        raise SpecError(spec, [f"there is no such file, and {unknown_name(spec, shipped, 'a spec that ships')}"])

    return Path(spec)


def load_spec(path: Path, find_missing: MissingCheck = lambda _: ()) -> SweepSpec:
    """Read and check a spec.

    Args:
        find_missing: called with the valid part of the spec, so that its sentences appear with all other problems.

    Raises:
        SpecError: with every problem of the YAML, of keys and types, and of the configs that follow from the spec.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None

    if not isinstance(raw, dict):
        raise SpecError(str(path), ["must be a mapping with keys such as name, tasks, methods, space."])

    return parse_spec(raw, str(path), find_missing)


def load_cluster(path: Path) -> Cluster:
    """Return the `cluster` part of a spec file. It is empty if that part is wrong; `load_spec` then says why."""
    try:
        return parse_cluster(yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return Cluster()


def parse_cluster(raw: Any) -> Cluster:
    """Return the `cluster` part of a mapping. It is empty if that part is wrong; `parse_spec` then says why."""
    try:
        return Cluster.model_validate(raw["cluster"])
    except (ValidationError, LookupError, TypeError):
        return Cluster()


def parse_spec(raw: dict[str, Any], source: str, find_missing: MissingCheck = lambda _: ()) -> SweepSpec:
    """Check a spec that is already a mapping.

    Args:
        source: where the spec comes from, for the error.
        find_missing: as in `load_spec`.

    Raises:
        SpecError: as in `load_spec`.
    """
    # A dict instead of a list, because one mistake may be found twice.
    problems: dict[str, None] = {}
    invalid: set[str] = set()
    valid: dict[str, Any] = {}
    matrix: StudyMatrix | None

    # First keys and types.
    try:
        spec = SweepSpec.model_validate(raw)
        matrix = spec
        problems |= dict.fromkeys(resource_problems(spec.resources, spec.backbones))
    except ValidationError as error:
        problems |= dict.fromkeys(_sentences(error))
        locations = _locations(error)
        invalid = invalid_fields(raw, locations)
        valid = valid_part(raw, locations)
        matrix = parse_matrix(valid)

    # Then the configs of what is valid so far, so that the user sees all problems at once.
    field_problems = [*config_problems(matrix)] if matrix else []
    problems |= dict.fromkeys(problem for field, problem in field_problems if field not in invalid)

    # Then the search, if the space and the number of epochs are right.
    search = parse_search(raw)
    has_valid_epochs = "epochs" not in {field for field, _ in field_problems}
    if matrix and search and not invalid and has_valid_epochs:
        problems |= dict.fromkeys(search_problems(matrix, search))

    problems |= dict.fromkeys(find_missing(matrix or StudyMatrix.model_construct(**valid)))

    if problems:
        raise SpecError(source, list(problems))

    return spec


def parse_recorded_spec(raw: dict[str, Any], source: str) -> SweepSpec:
    """Return a spec from the study database, for reading its sweep or deleting it.

    Unknown keys are ignored: another version of sptune may have written them. Names that left the catalog are
    accepted, and the configs that follow from the spec are not checked again. To run trials, use `parse_spec`.

    Raises:
        SpecError: if a known key is missing or has a value that this version cannot read.
    """
    values = copy.deepcopy(raw)

    # Delete the keys that pydantic reports as unknown until none is left. One round is usually enough.
    while True:
        try:
            return SweepSpec.model_validate(values, context=RECORDED)
        except ValidationError as error:
            unknown = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
            if not unknown:
                raise SpecError(source, _sentences(error)) from None

            for location in unknown:
                _delete_key(values, location)


def _delete_key(values: Any, location: Location) -> None:
    """Delete a value of a spec in place."""
    *parents, key = location
    tagged: Any = None

    for parent in parents:
        # The location of a value in a part with a `type` has the type in it, once, before the key.
        if isinstance(values, dict) and values.get("type") == parent and values is not tagged:
            tagged = values
        else:
            values = values[parent]

    del values[key]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a key given twice. PyYAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping of the YAML file.

        Raises:
            yaml.MarkedYAMLError: if a key is given twice, with the line.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}

        if repeated:
            raise yaml.MarkedYAMLError(
                problem=f"{', '.join(map(str, repeated))} given twice", problem_mark=node.start_mark
            )

        return super().construct_mapping(node, deep)


def _locations(error: ValidationError) -> list[Location]:
    """Return where the errors are, in the keys of the YAML file."""
    return [tuple(part for part in detail["loc"] if part not in TAGS) for detail in error.errors()]


def _sentences(error: ValidationError) -> list[str]:
    """Return each of pydantic's errors as a sentence with its location."""
    return [
        f"{'.'.join(map(str, location))}: {_explain(detail, location)}"
        for detail, location in zip(error.errors(), _locations(error), strict=True)
    ]


def _explain(detail: Any, location: Location) -> str:
    """Return one of pydantic's errors as a sentence with the rule, the value and the way out."""
    kind = detail["type"]
    value = detail["input"]

    if kind == "extra_forbidden":
        return unknown_name(str(location[-1]), _part_at(detail["loc"][:-1]).model_fields, "a key here")

    if kind == "missing":
        return "is missing."

    if kind == "model_type":
        return (
            f"must be a mapping with keys such as {', '.join([*_part_at(location).model_fields][:3])}; got {value!r}."
        )

    if kind in ("union_tag_not_found", "model_attributes_type"):
        example = "asha, min_epochs: 10" if "pruner" in location else "float, low: 0.1, high: 1.0"
        return f"must be a mapping with a `type`, such as {{type: {example}}}; got {value!r}."

    if kind == "union_tag_invalid":
        return unknown_name(str(detail["ctx"]["tag"]), re.findall(r"'(\w+)'", detail["ctx"]["expected_tags"]), "a type")

    # The sentence of one of our own validators.
    if kind == "value_error":
        return str(detail["ctx"]["error"])

    # YAML reads 1e-4 as text: say how to write it.
    if isinstance(value, str) and (kind.startswith(("int", "float"))):
        return str(number_problem(value))

    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {value!r}."


def _part_at(location: Location) -> type[BaseModel]:
    """Return the part of a spec at a location, for its keys. The location may end with the `type` of the part."""
    parts: dict[Location, type[BaseModel]] = {
        (): SweepSpec,
        ("search",): Search,
        ("final",): Final,
        ("resources",): Resources,
        ("cluster",): Cluster,
        ("budget",): Budget,
        ("per",): StudyOverride,
        ("per", "search"): SearchOverride,
    }
    # Entries of a list have the same keys, whatever their number.
    names = tuple(part for part in location if isinstance(part, str))
    if names in parts:
        return parts[names]

    return ResourceOverride if names[:2] == ("resources", "backbones") else TAGS[str(location[-1])]
