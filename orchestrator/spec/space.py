"""Dimensions of a search space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from orchestrator.spec.fields import Number, SpecPart, Whole
from trainer.validation import short_repr


def _check_plain(value: object) -> object:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"must be a number, text, true, false or null; got {short_repr(value)}.")

    return value


Plain = Annotated[bool | int | float | str | None, BeforeValidator(_check_plain)]
"""A value of a field of TrainConfig."""


def as_list(value: object) -> object:
    """Return a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]


class DimensionBase(SpecPart):
    """Keys that all dimensions have."""

    when: dict[str, Annotated[list[Plain], BeforeValidator(as_list)]] = Field(default_factory=dict)
    """Values of other parameters for which this one is searched; for other values it keeps its default. Without
    `when` it is always searched. Example: {optimizer: [sgd]}."""

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameter is searched together with these values of the other parameters."""
        return all(params.get(name) in values for name, values in self.when.items())


class FloatRange(DimensionBase):
    """A real number between two ends."""

    type: Literal["float"]
    """Kind of the dimension."""
    low: Number
    """Smallest value, such as 1.0e-4."""
    high: Number
    """Largest value, such as 0.1."""
    log: bool = False
    """Draw the logarithm of the value uniformly instead of the value. For ranges over several powers of ten."""

    @model_validator(mode="after")
    def _check_ends(self) -> FloatRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be below high, and above 0 if log; got low={self.low}, high={self.high}.")

        # Samplers draw from the width of a range.
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"high minus low must be a finite number, got low={self.low}, high={self.high}.")

        return self


class IntRange(DimensionBase):
    """A whole number between two ends, both included."""

    type: Literal["int"]
    """Kind of the dimension."""
    low: Whole
    """Smallest value, such as 1."""
    high: Whole
    """Largest value, such as 100."""
    log: bool = False
    """Draw the logarithm of the value uniformly instead of the value."""

    @model_validator(mode="after")
    def _check_ends(self) -> IntRange:
        if self.low >= self.high or (self.log and self.low < 1):
            raise ValueError(f"low must be below high, and at least 1 if log; got low={self.low}, high={self.high}.")

        return self


class Choice(DimensionBase):
    """One of a few values."""

    type: Literal["choice"]
    """Kind of the dimension."""
    values: list[Plain] = Field(min_length=1)
    """The values, such as [16, 32, 64]. Fields that may be left out take null, too: [null, 0.999]."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Choice:
        # Samplers compare values with ==, and 1 == 1.0.
        for index, value in enumerate(self.values):
            if value in self.values[:index]:
                twin = self.values[self.values.index(value)]
                raise ValueError(
                    f"samplers cannot tell {short_repr(value)} from {short_repr(twin)}: leave one of them out."
                )

        return self


Dimension = FloatRange | IntRange | Choice
DimensionField = Annotated[Dimension, Field(discriminator="type")]


def widens(stored: Mapping[str, Any], new: Dimension) -> bool:
    """Whether `new` allows all values of a stored dimension, on the same scale and under the same condition.

    Args:
        stored: a dimension as the study database has it.
    """
    old: Dimension = TypeAdapter(DimensionField).validate_python(stored)

    if type(old) is not type(new) or old.when != new.when:
        return False

    if isinstance(old, Choice) and isinstance(new, Choice):
        # By repr, so that 1 and 1.0 and "1" are three values.
        return {*map(repr, old.values)} <= {*map(repr, new.values)}

    assert not isinstance(old, Choice), "both have the same type"
    assert not isinstance(new, Choice), "both have the same type"
    return old.log == new.log and new.low <= old.low and old.high <= new.high
