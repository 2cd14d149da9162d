"""Reads a `SweepSpec` from a YAML file or from the study database.

All mistakes are reported in one error.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.fields import RECORDED
from orchestrator.spec.notify import Notify
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
from orchestrator.spec.valid_part import Location, invalid_fields, is_kept, parse_matrix, parse_search, valid_part
from orchestrator.spec.validation import config_problems, entry_problems, search_problems
from orchestrator.spec.yaml_file import read_yaml
from trainer.validation import number_problem, short_repr, unknown_name

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

    if not _is_there(Path(spec)):
        raise SpecError(spec, [f"there is no such file, and {unknown_name(spec, shipped, 'a spec that ships')}"])

    return Path(spec)


def _is_there(path: Path) -> bool:
    """Return whether there is such a file, or a folder, which is no spec for a reason of its own."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:
        # A name that no file can have, such as a very long one.
        return False


def load_spec(path: Path, find_missing: MissingCheck = lambda _: ()) -> SweepSpec:
    """Read and check a spec.

    Args:
        find_missing: called with the valid part of the spec, so that its sentences appear with all other problems.

    Raises:
        SpecError: with every problem of the YAML, of keys and types, and of the configs that follow from the spec.
    """
    raw, problems = read_yaml(path)
    if not isinstance(raw, dict):
        raise SpecError(str(path), ["must be a mapping with keys such as name, tasks, methods, space."])

    try:
        spec = parse_spec(raw, str(path), find_missing)
    except SpecError as error:
        raise SpecError(str(path), [*problems, *error.problems]) from None
    if problems:
        raise SpecError(str(path), problems)

    return spec


def load_cluster(path: Path) -> Cluster:
    """Return the `cluster` part of a spec file. It is empty if that part is wrong; `load_spec` then says why."""
    try:
        return parse_cluster(read_yaml(path)[0])
    except SpecError:
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
        problems |= dict.fromkeys(_selector_problems(raw, locations))

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


def _selector_problems(raw: dict[str, Any], invalid: list[Location]) -> Iterator[str]:
    """Yield what else is wrong with entries of `per` whose selectors are wrong."""
    entries = raw.get("per")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not is_kept([location[2:] for location in invalid if location[:2] == ("per", index)]):
            yield from entry_problems(entry, f"per.{index}")


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


def _locations(error: ValidationError) -> list[Location]:
    """Return where the errors are, in the keys of the YAML file."""
    # Pydantic marks an error of a key itself.
    added = {*TAGS, "[key]"}
    return [tuple(part for part in detail["loc"] if part not in added) for detail in error.errors()]


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
    limits = detail.get("ctx", {})

    if kind == "extra_forbidden":
        return unknown_name(str(location[-1]), _part_at(detail["loc"][:-1]).model_fields, "a key here")

    if kind == "missing":
        return "is missing."

    if kind == "model_type":
        return (
            f"must be a mapping with keys such as {', '.join([*_part_at(location).model_fields][:3])}; "
            f"got {short_repr(value)}."
        )

    if kind in ("union_tag_not_found", "model_attributes_type"):
        example = "asha, min_epochs: 10" if "pruner" in location else "float, low: 0.1, high: 1.0"
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

    if kind in ("string_type", "invalid_key"):
        return f"must be text, got {short_repr(value)}{_quotes(value)}."

    for start, rule in RULES.items():
        if kind.startswith(start):
            return f"must be {rule.format(**limits)}, got {short_repr(value)}."

    return f"cannot be {short_repr(value)}."


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


def _part_at(location: Location) -> type[BaseModel]:
    """Return the part of a spec at a location, for its keys. The location may end with the `type` of the part."""
    parts: dict[Location, type[BaseModel]] = {
        (): SweepSpec,
        ("search",): Search,
        ("final",): Final,
        ("resources",): Resources,
        ("cluster",): Cluster,
        ("budget",): Budget,
        ("notify",): Notify,
        ("per",): StudyOverride,
        ("per", "search"): SearchOverride,
    }
    # Entries of a list have the same keys, whatever their number.
    names = tuple(part for part in location if isinstance(part, str))
    if names in parts:
        return parts[names]

    return ResourceOverride if names[:2] == ("resources", "backbones") else TAGS[str(location[-1])]
