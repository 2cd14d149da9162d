"""What a spec says: the typed values of one YAML file. `spec_file.py` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.spec.fields import SpecPart
from orchestrator.spec.resources import Cluster, Resources
from orchestrator.spec.space import Dimension, DimensionField
from trainer.catalog import BACKBONES, METHODS, TASKS, is_own
from trainer.config import unused_fields
from trainer.validation import number_problem, unknown_name


def _one_of(table: Mapping[str, object], what: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in table:
            raise ValueError(unknown_name(str(value), table, what))
        return value

    return BeforeValidator(check)


def task_names(name: str) -> list[str]:
    """The tasks that a name stands for: itself, or all of its group or benchmark; users' own stand for themselves."""
    if is_own(name):
        return [name]
    return [task.name for task in TASKS.values() if name in (task.name, task.group, task.name.partition("/")[0])]


def _check_task(value: object) -> object:
    if not task_names(str(value)):
        raise ValueError(
            unknown_name(str(value), [*TASKS, *{task.group for task in TASKS.values()}], "a task or group")
        )
    return value


def _check_name(value: object) -> object:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", str(value)):
        raise ValueError(f"must be lower-case letters, digits, - and _, got {value!r}.")
    return value


def _parse_train_size(value: object) -> object:
    """As TrainConfig has it; `{per_class: 5}` becomes the words `5 per class`."""
    if isinstance(value, Mapping):
        if [*value] != ["per_class"]:
            raise ValueError(f"must be a share, a number of images, or {{per_class: 5}}, got {dict(value)!r}.")
        return f"{value['per_class']} per class"
    if not isinstance(value, str) and (problem := number_problem(value)):
        raise ValueError(problem)
    return value


Select = Literal["last_val", "simplest_tied"]


class Asha(SpecPart):
    """Asynchronous successive halving (Li et al., MLSys 2020): stop what is not in the best 1/reduction at a rung."""

    type: Literal["asha"]
    """Kind of the pruner."""
    min_epochs: int = Field(ge=1)
    """Epochs that every trial trains before it can be pruned."""
    reduction: int = Field(default=4, ge=2)
    """Only the best 1/reduction of the trials continue after a rung."""


class Hyperband(SpecPart):
    """Several halvings that begin to stop at different epochs (Li et al., JMLR 2018)."""

    type: Literal["hyperband"]
    """Kind of the pruner."""
    min_epochs: int = Field(ge=1)
    """Epochs that every trial trains before it can be pruned."""
    reduction: int = Field(default=3, ge=2)
    """Only the best 1/reduction of the trials continue after a rung."""


class Median(SpecPart):
    """Stop what is below the median of the finished trials at the same epoch."""

    type: Literal["median"]
    """Kind of the pruner."""
    min_epochs: int = Field(ge=1)
    """Epochs that every trial trains before it can be pruned."""


class NoPruner(SpecPart):
    """Every trial runs to its end."""

    type: Literal["none"]
    """Kind of the pruner."""


class Search(SpecPart):
    """How a study looks for its best parameters."""

    trials: int = Field(ge=1)
    """Number of search trials of each study."""
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe"
    """Optuna sampler that proposes params: tree-structured Parzen estimator, Gaussian process, CMA-ES, random, or
    every combination of a finite space once."""
    startup_trials: int = Field(default=10, ge=1)
    """Trials drawn at random before the sampler has seen enough."""
    transfer: int = Field(default=0, ge=0)
    """Trials that repeat the best params of other tasks' studies, before the sampler has its turn."""
    max_concurrent: int = Field(default=4, ge=1)
    """Trials of one study under way at once. Trial k learns from trials 0..k-max_concurrent, and from no other,
    so that the same spec gives the same trials however fast each of them is."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampler."""
    pruner: Annotated[Asha | Hyperband | Median | NoPruner, Field(discriminator="type")] = NoPruner(type="none")
    """Rule that stops trials early."""


class Final(SpecPart):
    """How a study's parameters are chosen, and scored on test."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Seeds of the final trials: the chosen params are trained once with each."""
    select: Select = "last_val"
    """last_val: the best val accuracy at the last epoch, of equals the earliest. simplest_tied: of the trials that
    val cannot tell from that one (`significance.tied`), the one that learns the fewest parameters."""
    measure_peeking: bool = False
    """Score test after every epoch of a final trial too, to report apart what choosing an epoch on it would gain."""

    @model_validator(mode="after")
    def _distinct(self) -> Final:
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(
                f"seeds must differ, got {', '.join(map(str, self.seeds))}: the same seed is the same trial."
            )
        return self


class Budget(SpecPart):
    """Where a sweep stops starting trials; those under way are finished."""

    max_trials: int | None = Field(default=None, ge=1)
    """Search and final trials, each once however often it was tried."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours that drivers were at work on it."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Hours of trials, times their share of a GPU."""

    def exhausted(self, hours: float, gpu_hours: float) -> str | None:
        """Which of its hours are over, if any."""
        if self.max_hours is not None and hours >= self.max_hours:
            return f"budget: max_hours {self.max_hours:g} are over"
        if self.max_gpu_hours is not None and gpu_hours >= self.max_gpu_hours:
            return f"budget: max_gpu_hours {self.max_gpu_hours:g} are used"
        return None


class StudyMatrix(SpecPart):
    """The part of a spec that decides which configs there are."""

    tasks: list[Annotated[str, BeforeValidator(_check_task)]] = Field(min_length=1)
    """Tasks, or groups and benchmarks that stand for their tasks: vtab, natural, specialized, structured, fgvc,
    demo."""
    backbones: list[Annotated[str, _one_of(BACKBONES, "a backbone")]] = Field(min_length=1)
    """Full timm names of the frozen networks. `sptune backbones` lists them."""
    methods: list[Annotated[str, _one_of(METHODS, "a method")]] = Field(min_length=1)
    """spt_deep, spt_shallow, vpt_deep, vpt_shallow, linear or full."""
    train_sizes: list[Annotated[float | int | str, BeforeValidator(_parse_train_size)]] = Field(
        default=[1.0], min_length=1
    )
    """Shares (0.1, 1.0), numbers of images (200), or numbers of each class ({per_class: 5})."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Fields of TrainConfig with one value for all trials."""
    space: dict[str, DimensionField] = Field(default_factory=dict)
    """Fields of TrainConfig that are searched, each with its dimension."""

    def params_for(self, method: str) -> tuple[dict[str, Any], dict[str, Dimension]]:
        """The fixed values and the space that have an effect on a method."""
        unused = unused_fields(method)
        fixed = {name: value for name, value in self.fixed.items() if name not in unused}
        return fixed, {name: dimension for name, dimension in self.space.items() if name not in unused}


class SweepSpec(StudyMatrix):
    """All that a sweep is asked for."""

    name: Annotated[str, BeforeValidator(_check_name)]
    """Name of the sweep, in lower-case letters, digits, - and _. Commands and MLflow use it."""
    search: Search
    """How a study searches its params."""
    final: Final
    """How params are chosen, and trained and tested again."""
    resources: Resources = Resources()
    """What a trial occupies on a machine."""
    cluster: Cluster = Cluster()
    """Addresses, if one machine is not enough."""
    budget: Budget = Budget()
    """Limits after which no more trials start."""
    retries: int = Field(default=2, ge=0)
    """How often a trial that failed for a reason that may pass is run again."""
    pause_after: int = Field(default=5, ge=2)
    """Failures in a row of the same cause, in more than one trial, after which no more trials are started."""
    lost_after_minutes: float = Field(default=60, gt=0)
    """A trial that has not finished an epoch for so long is taken for lost."""
    keep: Literal["best", "final", "all"] = "best"
    """Checkpoints that stay when their trial is complete or pruned: of each study's best trial and its final trials,
    of final trials, or all. What was learnt (`prompt.safetensors`) always stays."""
