"""The dimensions of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from orchestrator.spec.fields import Number, SpecPart, Whole


def as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class DimensionBase(SpecPart):
    when: dict[str, Annotated[list[str | int | float], BeforeValidator(as_list)]] = Field(default_factory=dict)
    """Other parameters' values for which this one is searched; without them it keeps its default."""

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Whether it is searched where the other parameters are these."""
        return all(params.get(name) in values for name, values in self.when.items())


class FloatRange(DimensionBase):
    """A real number between two ends."""

    type: Literal["float"]
    """Kind of the dimension."""
    low: Number
    """Lower end, included."""
    high: Number
    """Upper end, included."""
    log: bool = False
    """True if values are drawn on a logarithmic scale."""

    @model_validator(mode="after")
    def _ends(self) -> FloatRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be below high, and above 0 if log; got low={self.low}, high={self.high}.")
        return self


class IntRange(DimensionBase):
    """A whole number between two ends, both included."""

    type: Literal["int"]
    """Kind of the dimension."""
    low: Whole
    """Lower end, included."""
    high: Whole
    """Upper end, included."""
    log: bool = False
    """True if values are drawn on a logarithmic scale."""

    @model_validator(mode="after")
    def _ends(self) -> IntRange:
        if self.low >= self.high or (self.log and self.low < 1):
            raise ValueError(f"low must be below high, and at least 1 if log; got low={self.low}, high={self.high}.")
        return self


class Choice(DimensionBase):
    """One of a few values."""

    type: Literal["choice"]
    """Kind of the dimension."""
    values: list[str | int | float] = Field(min_length=1)
    """The values to choose from."""

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        """Samplers tell values apart by ==, for which 1 is 1.0."""
        for place, value in enumerate(self.values):
            if value in self.values[:place]:
                twin = self.values[self.values.index(value)]
                raise ValueError(f"samplers cannot tell {value!r} from {twin!r}: leave one of them out.")
        return self


Dimension = FloatRange | IntRange | Choice
DimensionField = Annotated[Dimension, Field(discriminator="type")]


def widens(old: Mapping[str, Any], new: Dimension) -> bool:
    """Whether `new` allows all that `old`, a dimension from a record, allowed, on the same scale and condition."""
    was: Dimension = TypeAdapter(DimensionField).validate_python(old)
    if type(was) is not type(new) or was.when != new.when:
        return False
    if isinstance(was, Choice) or isinstance(new, Choice):
        values = [{*map(repr, each.values)} for each in (was, new) if isinstance(each, Choice)]
        return values[0] <= values[1]
    return was.log == new.log and new.low <= was.low and was.high <= new.high
