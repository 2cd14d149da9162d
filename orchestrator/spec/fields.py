"""Field types that all parts of a spec share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from trainer.validation import number_problem


def check_number(value: object) -> object:
    if problem := number_problem(value):
        raise ValueError(problem)
    return value


Number = Annotated[float, BeforeValidator(check_number)]
Whole = Annotated[int, BeforeValidator(check_number)]


class SpecPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
