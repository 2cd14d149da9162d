"""Field types and the base model that all parts of a spec share."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from trainer.validation import MOST, number_problem, short_repr

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


def at_most(most: int, text: str = "") -> AfterValidator:
    """Return a validator of the largest value. What was recorded before there was a limit must stay readable.

    Args:
        text: the limit in words, if its digits say less.
    """

    def check(value: int, info: ValidationInfo) -> int:
        if value > most and not is_recorded(info):
            raise ValueError(f"must be at most {text or most}, got {short_repr(value)}.")

        return value

    return AfterValidator(check)


def _check_finite(value: float, info: ValidationInfo) -> float:
    if not math.isfinite(value) and not is_recorded(info):
        raise ValueError(f"must be a finite number, got {value}.")

    return value


def _check_exact(value: int, info: ValidationInfo) -> int:
    # Optuna keeps whole numbers as floats.
    if abs(value) > 2**53 and not is_recorded(info):
        raise ValueError(f"must be between -2^53 and 2^53, got {short_repr(value)}.")

    return value


Number = Annotated[float, BeforeValidator(check_number), AfterValidator(_check_finite)]
Whole = Annotated[int, BeforeValidator(check_number), AfterValidator(_check_exact)]
Count = Annotated[int, BeforeValidator(check_number), at_most(MOST)]
"""A number of things."""
Seed = Annotated[int, BeforeValidator(check_number), Field(ge=0), at_most(2**32 - 1, "2^32-1")]
"""A seed that numpy, torch and Optuna take."""


class SpecPart(BaseModel):
    """Base of all parts of a spec: unknown keys are errors, and values cannot change.

    No value is converted: `yes` is no number, and `"4"` is text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
