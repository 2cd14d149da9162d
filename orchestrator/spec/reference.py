"""Reference of the spec's keys, generated from the schema for `search_spaces/README.md`.

Types, defaults and limits come from pydantic, meanings from the docstrings below the fields. `make docs` refreshes
the page; a test compares it with `render_reference`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.spec.examples import EXAMPLES, FIELD_EXAMPLES
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.shipped import SHIPPED_SPECS
from orchestrator.spec.validation import SWEEP_FIELDS
from trainer.catalog import METHODS
from trainer.config import TrainConfig, field_types, unused_fields

BEGIN = "<!-- Generated from the schema by `make docs`. Do not edit below this line. -->"


@dataclass(frozen=True, slots=True)
class Section:
    """Keys of one mapping of the spec."""

    path: str
    """Path of the mapping, empty for the top level. NAME stands for a name that the user chooses."""
    model: type[BaseModel]

    def key(self, field: str) -> str:
        """Return the path of one key."""
        return f"{self.path}.{field}" if self.path else field


def sections() -> list[Section]:
    """Return the mappings of a spec in the order of the schema, depth first.

    Mappings of one kind are listed where they are nearest to the top level: `per` has dimensions and pruners, too.
    """
    everywhere = [*_sections(SweepSpec, "")]
    nearest: dict[type[BaseModel], Section] = {}
    for section in sorted(everywhere, key=lambda section: section.path.count(".")):
        nearest.setdefault(section.model, section)

    return [section for section in everywhere if nearest[section.model] is section]


def _sections(model: type[BaseModel], path: str) -> Iterator[Section]:
    yield Section(path, model)

    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        if typing.get_origin(_plain(field.annotation)) is dict:
            key += ".NAME"

        models = [*_models(field.annotation)]
        for child in models:
            # The alternatives of a union are told apart by their `type`.
            tag = f", type {_tag(child)}" if len(models) > 1 else ""
            yield from _sections(child, key + tag)


def render_reference() -> str:
    """Return the reference of all keys as Markdown."""
    lines: list[str] = []

    for section in sections():
        title = f"`{section.path}`".replace(", type ", "`, type `") if section.path else "Top level"
        lines += [f"### {title}", "", _paragraph(inspect.getdoc(section.model) or ""), ""]
        rows = [_spec_row(section, name, field) for name, field in section.model.model_fields.items()]
        lines += [*_table(rows), ""]

    # The values of these two mappings are checked by the trainer, not by the schema.
    lines += [
        "### Fields of `fixed` and `space`",
        "",
        "`fixed` gives a value to a field of the training configuration, `space` searches it. "
        "A field without effect on a method is left out of that method's studies.",
        "",
        *_table([_config_row(field) for field in dataclasses.fields(TrainConfig) if field.name not in SWEEP_FIELDS]),
        "",
    ]
    return "\n".join(lines)


def refresh(page: Path) -> None:
    """Replace the generated part of the page."""
    written_by_hand = page.read_text(encoding="utf-8").partition(BEGIN)[0]
    page.write_text(f"{written_by_hand}{BEGIN}\n\n{render_reference()}", encoding="utf-8")


@functools.cache
def field_docs(owner: type) -> dict[str, str]:
    """Return the docstring below each field of a class and of its bases."""
    docs: dict[str, str] = {}

    # Fields of a base come first, as in pydantic's own order, and a subclass may document them anew.
    for base in reversed(owner.__mro__):
        module = sys.modules[base.__module__]
        if not base.__module__.startswith(("orchestrator.", "trainer.")):
            continue
        # Python does not keep docstrings of fields, so read them from the source.
        tree = ast.parse(inspect.getsource(module))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == base.__name__)
        for field, follower in itertools.pairwise(body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
                docs[field.target.id] = _paragraph(str(follower.value.value))
    return docs


def describe_type(annotation: Any) -> str:
    """Return a type in words: `whole number or text`."""
    annotation = _plain(annotation)
    origin = typing.get_origin(annotation)

    if origin is Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (Union, types.UnionType):
        models = [*_models(annotation)]
        if len(models) > 1:
            return "mapping with a `type`"
        parts = [describe_type(part) for part in typing.get_args(annotation) if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    if origin is list:
        # A list of mappings reads better in the plural; a list of text does not.
        entry = describe_type(typing.get_args(annotation)[0])
        return f"list of {'mappings' if entry == 'mapping' else entry}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}.get(annotation, "any value")


def _spec_row(section: Section, name: str, field: FieldInfo) -> list[str]:
    models = [*_models(field.annotation)]
    meaning = field_docs(section.model).get(name, "")

    # A key that holds a mapping may leave its explanation to the class of that mapping.
    if not meaning and len(models) == 1:
        meaning = _paragraph(inspect.getdoc(models[0]) or "")

    example = EXAMPLES.get(section.key(name))
    limits = "".join(f", {limit}" for limit in _limits(field))
    default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
    return [f"`{name}`", describe_type(field.annotation) + limits, default, meaning, _code({name: example})]


def _config_row(field: dataclasses.Field[Any]) -> list[str]:
    name = field.name
    default = "required" if field.default is dataclasses.MISSING else _default(field.default)

    meaning = field_docs(TrainConfig).get(name, "")
    ignoring = [method for method in METHODS if name in unused_fields(method)]
    using = [method for method in METHODS if method not in ignoring]
    if ignoring:
        # The shorter list of the two.
        start, methods = ("Only for", using) if len(using) < len(ignoring) else ("No effect on", ignoring)
        meaning += f" {start} {', '.join(f'`{method}`' for method in methods)}."

    example = FIELD_EXAMPLES.get(name, _shipped_examples().get(name, field.default))
    return [f"`{name}`", describe_type(field_types()[name]), default, meaning, _code({name: example})]


@functools.cache
def _shipped_examples() -> dict[str, Any]:
    """Return a value or a dimension for each field that a shipped spec fixes or searches, the first one found."""
    examples: dict[str, Any] = {}

    # Shipped specs are valid and realistic, and name fields that this package must not know.
    for page in sorted(SHIPPED_SPECS.glob("*.yaml")):
        spec = yaml.safe_load(page.read_text(encoding="utf-8"))
        # Most specs give what one method needs in `per`.
        for part in (spec, *spec.get("per", ())):
            for name, value in {**part.get("space", {}), **part.get("fixed", {})}.items():
                examples.setdefault(name, value)
    return examples


def _limits(field: FieldInfo) -> Iterator[str]:
    # Validators of our own are in the metadata too, and have none of these attributes.
    for rule in field.metadata:
        if (least := getattr(rule, "ge", None)) is not None:
            yield f"at least {least}"
        if (bound := getattr(rule, "gt", None)) is not None:
            yield f"above {bound}"
        if (length := getattr(rule, "min_length", None)) is not None:
            yield f"at least {length} of them"


def _default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        value = value or None
    return "all defaults" if value is None else f"`{_flow(value)}`"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the parts of a spec that a type holds."""
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _plain(annotation: Any) -> Any:
    """Return a type without its validators."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _tag(model: type[BaseModel]) -> str:
    return str(typing.get_args(model.model_fields["type"].annotation)[0])


def _paragraph(text: str) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def _code(entry: dict[str, Any]) -> str:
    return f"`{_flow(entry)[1:-1]}`"


def _flow(value: object) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    # PyYAML marks the end of a document that is a plain value.
    return text.removesuffix("\n...\n").rstrip("\n")


def _table(rows: list[list[str]]) -> list[str]:
    header = ["Key", "Type", "Default", "Meaning", "Example"]
    # A bar would end the cell.
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *escaped]]


if __name__ == "__main__":
    refresh(SHIPPED_SPECS / "README.md")
