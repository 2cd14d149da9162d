"""Field types that all parts of a spec share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from trainer.validation import number_problem


def _number(value: object) -> object:
    if problem := number_problem(value):
        raise ValueError(problem)
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
