"""What a spec says: the typed values of one YAML file. `spec_file.py` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainer.catalog import BACKBONES, METHODS, OWN, TASKS
from trainer.config import unused_fields
from trainer.rules import no_such, number_problem


def _number(value: object) -> object:
    if problem := number_problem(value):
        raise ValueError(problem)
    return value


def _in(table: Mapping[str, object], what: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in table:
            raise ValueError(no_such(str(value), table, what))
        return value

    return BeforeValidator(check)


def task_names(name: str) -> list[str]:
    """The tasks that a name stands for: itself, or all of its group or benchmark; users' own stand for themselves."""
    if name.startswith(OWN):
        return [name]
    return [task.name for task in TASKS.values() if name in (task.name, task.group, task.name.partition("/")[0])]


def _task(value: object) -> object:
    if not task_names(str(value)):
        raise ValueError(no_such(str(value), [*TASKS, *{task.group for task in TASKS.values()}], "a task or group"))
    return value


def _name(value: object) -> object:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", str(value)):
        raise ValueError(f"must be lower-case letters, digits, - and _, got {value!r}.")
    return value


def _train_size(value: object) -> object:
    """As TrainConfig has it; `{per_class: 5}` becomes the words `5 per class`."""
    if isinstance(value, Mapping):
        if [*value] != ["per_class"]:
            raise ValueError(f"must be a share, a number of images, or {{per_class: 5}}, got {dict(value)!r}.")
        return f"{value['per_class']} per class"
    if not isinstance(value, str) and (problem := number_problem(value)):
        raise ValueError(problem)
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FloatRange(_Part):
    """A real number between two ends."""

    type: Literal["float"]
    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _ends(self) -> FloatRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be below high, and above 0 if log; got low={self.low}, high={self.high}.")
        return self


class IntRange(_Part):
    """A whole number between two ends, both included."""

    type: Literal["int"]
    low: Whole
    high: Whole
    log: bool = False

    @model_validator(mode="after")
    def _ends(self) -> IntRange:
        if self.low >= self.high or (self.log and self.low < 1):
            raise ValueError(f"low must be below high, and at least 1 if log; got low={self.low}, high={self.high}.")
        return self


class Choice(_Part):
    """One of a few values."""

    type: Literal["choice"]
    values: list[str | int | float] = Field(min_length=1)


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class Asha(_Part):
    """Asynchronous successive halving (Li et al., MLSys 2020): stop what is not in the best 1/reduction at a rung."""

    type: Literal["asha"]
    min_epochs: int = Field(ge=1)
    reduction: int = Field(default=4, ge=2)


class Median(_Part):
    """Stop what is below the median of the finished trials at the same epoch."""

    type: Literal["median"]
    min_epochs: int = Field(ge=1)


class NoPruner(_Part):
    """Every trial runs to its end."""

    type: Literal["none"]


class Search(_Part):
    """How a study looks for its best parameters."""

    trials: int = Field(ge=1)
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(default=10, ge=1)
    """Trials drawn at random before TPE has seen enough."""
    max_concurrent: int = Field(default=4, ge=1)
    """Trials of one study under way at once. Trial k learns from trials 0..k-max_concurrent, and from no other,
    so that the same spec gives the same trials however fast each of them is."""
    seed: int = Field(default=0, ge=0)
    pruner: Annotated[Asha | Median | NoPruner, Field(discriminator="type")] = NoPruner(type="none")


class Final(_Part):
    """How a study's best parameters are scored on test."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class Resources(_Part):
    """What one trial occupies."""

    cpus: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)


class Grid(_Part):
    """The part of a spec that decides which configs there are."""

    tasks: list[Annotated[str, BeforeValidator(_task)]] = Field(min_length=1)
    backbones: list[Annotated[str, _in(BACKBONES, "a backbone")]] = Field(min_length=1)
    methods: list[Annotated[str, _in(METHODS, "a method")]] = Field(min_length=1)
    train_sizes: list[Annotated[float | int | str, BeforeValidator(_train_size)]] = Field(default=[1.0], min_length=1)
    """Shares (0.1, 1.0), numbers of images (200), or numbers of each class ({per_class: 5})."""
    fixed: dict[str, Any] = {}
    space: dict[str, Dimension] = {}

    def params_of(self, method: str) -> tuple[dict[str, Any], dict[str, FloatRange | IntRange | Choice]]:
        """The fixed values and the space that have an effect on a method."""
        unused = unused_fields(method)
        fixed = {name: value for name, value in self.fixed.items() if name not in unused}
        return fixed, {name: dimension for name, dimension in self.space.items() if name not in unused}


class SweepSpec(Grid):
    """All that a sweep is asked for."""

    name: Annotated[str, BeforeValidator(_name)]
    search: Search
    final: Final
    resources: Resources = Resources()
    retries: int = Field(default=2, ge=0)
    """How often a trial that failed for a reason that may pass is run again."""
