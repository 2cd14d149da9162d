"""Field types and the base model that all parts of a spec share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from trainer.validation import number_problem

RECORDED = {"recorded": True}
"""Validation context of a spec from the study database, whose names were checked when it was launched."""


def is_recorded(info: ValidationInfo) -> bool:
    """Whether the spec comes from the study database. Names that left the catalog are then no mistake of the user."""
    return bool(info.context and info.context.get("recorded"))


def check_number(value: object) -> object:
    """Return a number as it is.

    Raises:
        ValueError: if it is not a number, for instance text such as 1e-4, which YAML does not read as a number.
    """
    problem = number_problem(value)
    if problem:
        raise ValueError(problem)

    return value


Number = Annotated[float, BeforeValidator(check_number)]
Whole = Annotated[int, BeforeValidator(check_number)]


class SpecPart(BaseModel):
    """Base of all parts of a spec: unknown keys are errors, and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
