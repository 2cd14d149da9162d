"""Reads a `SweepSpec` from a YAML file or from the study database.

All mistakes are reported in one error.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.redaction import redact
from orchestrator.spec.explanations import locations, sentences, without_type
from orchestrator.spec.fields import RECORDED
from orchestrator.spec.resources import Cluster, resource_problems
from orchestrator.spec.schema import StudyMatrix, SweepSpec
from orchestrator.spec.shipped import SUFFIXES, shipped_specs
from orchestrator.spec.valid_part import Location, invalid_fields, is_kept, parse_matrix, parse_search, valid_part
from orchestrator.spec.validation import config_problems, entry_problems, search_problems
from orchestrator.spec.yaml_file import read_yaml
from trainer.validation import short_repr

MissingCheck = Callable[[StudyMatrix], Iterable[str]]
"""Returns a sentence for each thing that a spec needs and that is missing, such as a task without data."""


def find_spec(spec: str) -> Path:
    """Return the file of a spec that is given by its path, or by its name if it comes with sptune.

    Raises:
        SpecError: if there is no such file.
    """
    # The name comes first: a file `demo` in the working directory must not hide the spec that ships.
    shipped = shipped_specs()
    if spec in shipped:
        return shipped[spec]

    if not _is_there(Path(spec)):
        names = [*shipped, *_specs_beside(Path(spec))]
        nearest, second, third = map(repr, difflib.get_close_matches(spec.lower(), names, n=3, cutoff=0.0))
        problem = f"there is no such file, and {short_repr(spec)} is not a spec that ships; did you mean {nearest}?"
        raise SpecError(spec, [f"{problem} The next are {second} and {third}. `sptune new` writes a spec."])

    return Path(spec)


def _specs_beside(path: Path) -> list[str]:
    """Return the YAML files of the folder that a path is in."""
    try:
        return [str(file) for file in path.parent.iterdir() if file.suffix in SUFFIXES]
    except OSError:
        return []


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
        find_missing: called with the valid part of a spec that has mistakes, so that its sentences appear with them.
            Of a spec without mistakes the caller checks more (`environment/requirements.py`).

    Raises:
        SpecError: with every problem of the YAML, of keys and types, and of the configs that follow from the spec.
    """
    file = read_yaml(path)
    if not isinstance(file.values, dict):
        problem = file.text.locate("must be a mapping with keys such as name, tasks, methods, space.")
        raise SpecError(str(path), [problem])

    missing: list[str] = []

    def keep_missing(matrix: StudyMatrix) -> list[str]:
        missing.extend(find_missing(matrix))
        return missing

    try:
        spec = parse_spec(file.values, str(path), keep_missing)
    except SpecError as error:
        # What is missing elsewhere is no mistake in a line of the file.
        elsewhere = {*map(redact, missing)}
        located = [problem if problem in elsewhere else file.text.locate(problem) for problem in error.problems]
        raise SpecError(str(path), [*file.problems, *located]) from None
    if file.problems:
        raise SpecError(str(path), [*file.problems, *find_missing(spec)])

    return spec


def load_cluster(path: Path) -> Cluster:
    """Return the `cluster` part of a spec file. It is empty if that part is wrong; `load_spec` then says why."""
    try:
        return parse_cluster(read_yaml(path).values)
    except SpecError:
        return Cluster()


def load_name(path: Path) -> str:
    """Return the `name` in a spec file, whatever else is wrong with the file.

    Raises:
        SpecError: as `load_spec`, if it has none.
    """
    raw = read_yaml(path).values
    name = raw.get("name") if isinstance(raw, dict) else None
    return name if isinstance(name, str) else load_spec(path).name


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
    wrong: list[Location] = []
    invalid: set[str] = set()
    valid: dict[str, Any] = {}
    matrix: StudyMatrix | None

    # First keys and types.
    try:
        spec = SweepSpec.model_validate(raw)
        matrix = spec
        problems |= dict.fromkeys(resource_problems(spec.resources, spec.backbones))
    except ValidationError as error:
        problems |= dict.fromkeys(sentences(error))
        wrong = locations(error)
        invalid = invalid_fields(raw, wrong)
        valid = valid_part(raw, wrong)
        matrix = parse_matrix(valid)
        problems |= dict.fromkeys(_selector_problems(raw, wrong))

    # Then the configs of what is valid so far, so that the user sees all problems at once.
    field_problems = [*config_problems(matrix)] if matrix else []
    problems |= dict.fromkeys(problem for field, problem in field_problems if field not in invalid)

    # Then the search, as far as it does not depend on what is wrong. What a wrong entry of `per` changes is not known.
    search = parse_search(raw, wrong)
    if matrix and search and not any(name.startswith("per.") for name in invalid):
        has_epochs = "epochs" not in invalid | {field for field, _ in field_problems}
        problems |= dict.fromkeys(search_problems(matrix, search, has_epochs=has_epochs, has_space=not invalid))

    if problems:
        problems |= dict.fromkeys(find_missing(matrix or StudyMatrix.model_construct(**valid)))
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
                raise SpecError(source, sentences(error)) from None

            for location in unknown:
                _delete_key(values, location)


def _delete_key(values: Any, location: Location) -> None:
    """Delete a value of a spec in place. The location is pydantic's."""
    *parents, key = without_type(location)
    for parent in parents:
        values = values[parent]

    del values[key]
