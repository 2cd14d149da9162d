"""Typed values of one spec. `loader.py` reads them from a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from orchestrator.spec.fields import Count, Number, Seed, SpecPart, at_most, check_number, is_recorded
from orchestrator.spec.notify import Notify
from orchestrator.spec.resources import Cluster, Resources
from orchestrator.spec.space import DimensionField, as_list
from trainer.catalog import BACKBONES, METHODS, OWN, TASKS, is_own
from trainer.names import nearest_name, our_names
from trainer.validation import number_problem, short_repr, unknown_name

MAX_NAME_LENGTH = 128
"""Longest name of a sweep. It is a folder, an experiment, and the first part of names of at most 512 characters in the
study database."""
MOST_DRAWS = 1000


def _one_of(table: Mapping[str, object], what: str) -> BeforeValidator:
    def check(value: object, info: ValidationInfo) -> object:
        # A recorded spec may name what the catalog has no longer: it must stay readable.
        if isinstance(value, str) and value not in table and not is_recorded(info):
            raise ValueError(unknown_name(value, table, what))

        return value

    return BeforeValidator(check)


def task_names(name: str) -> list[str]:
    """Return the tasks that a name stands for: itself, or all tasks of its group or benchmark.

    A user's own task stands for itself. The result is empty if there is no such task.
    """
    # Not in the catalog: only the home knows which own tasks there are.
    if is_own(name):
        return [name]

    return [task.name for task in TASKS.values() if name in (task.name, task.group, task.name.partition("/")[0])]


def _check_task(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) and not task_names(value) and not is_recorded(info):
        groups = dict.fromkeys(task.group for task in TASKS.values())
        names = [*TASKS, *groups]
        problem = unknown_name(value, names, "a task or group")

        # Own tasks are in no list.
        is_like_ours = bool(our_names(value)) or nearest_name(value, names) is not None
        if is_own(f"{OWN}{value}") and not is_like_ours:
            problem += f" A task of your own is {short_repr(OWN + value)}."
        raise ValueError(problem)

    return value


def _check_name(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        raise ValueError(f"must be lower-case letters, digits, - and _, got {short_repr(value)}.")

    if isinstance(value, str) and len(value) > MAX_NAME_LENGTH and not is_recorded(info):
        raise ValueError(f"must have at most {MAX_NAME_LENGTH} characters, got {len(value)}.")

    return value


def _parse_train_size(value: object) -> object:
    """Return a train size as TrainConfig has it: `{per_class: 5}` becomes the text `5 per class`."""
    # Text, because TrainConfig has only plain values.
    if isinstance(value, Mapping):
        # The mapping form exists for YAML only; everywhere else a train size is a number or a text.
        if [*value] != ["per_class"]:
            raise ValueError(
                f"must be a share, a number of images, or {{per_class: 5}}, got {short_repr(dict(value))}."
            )
        number = value["per_class"]
        problem = number_problem(number)
        if problem:
            raise ValueError(f"per_class {problem}")
        return f"{number} per class"

    problem = None if isinstance(value, str) else number_problem(value)
    if problem:
        raise ValueError(problem)

    return value


BEFORE_KEY_EXISTED = {"val_size": "full"}
"""What sptune did before a key of the spec existed, where the key's default is something else. Recorded specs without
the key mean this."""

Select = Literal["last_val", "simplest_tied"]
Sampler = Literal["tpe", "gp", "cmaes", "random", "grid"]


class Asha(SpecPart):
    """Asynchronous successive halving (Li et al., MLSys 2020).

    Decides at rungs: after `min_epochs` epochs, then `reduction` times as many, and so on. At each rung it prunes the
    trials that are not among the best 1/reduction.
    """

    type: Literal["asha"]
    """Kind of the pruner."""
    min_epochs: Count = Field(ge=1)
    """Number of epochs before the first rung, such as 10. It must be below the epochs of a trial."""
    reduction: Count = Field(default=4, ge=2)
    """Factor between two rungs; one trial of so many passes a rung."""


class Hyperband(SpecPart):
    """Several successive halvings whose first rungs lie at different epochs (Li et al., JMLR 2018)."""

    type: Literal["hyperband"]
    """Kind of the pruner."""
    min_epochs: Count = Field(ge=1)
    """Number of epochs before the earliest rung, such as 10. It must be below the epochs of a trial."""
    reduction: Count = Field(default=3, ge=2)
    """Factor between two rungs; one trial of so many passes a rung."""


class Median(SpecPart):
    """Prunes trials whose best val accuracy is below the median of the finished trials at the same epoch."""

    type: Literal["median"]
    """Kind of the pruner."""
    min_epochs: Count = Field(ge=1)
    """Number of epochs before the first decision, such as 10. It must be below the epochs of a trial."""


class NoPruner(SpecPart):
    """Runs every trial to its last epoch."""

    type: Literal["none"]
    """Kind of the pruner."""


Pruner = Annotated[Asha | Hyperband | Median | NoPruner, Field(discriminator="type")]


class Search(SpecPart):
    """How each study searches for its best parameters."""

    trials: Count = Field(ge=1)
    """Number of search trials of each study, such as 20."""
    sampler: Sampler = "tpe"
    """Optuna's sampler: tpe (tree-structured Parzen estimator), gp (Gaussian process), cmaes (CMA-ES), random, or
    grid (every combination of values, without float ranges)."""
    startup_trials: Count = Field(default=10, ge=1)
    """Number of first trials that tpe, gp and cmaes draw at random."""
    transfer: Count = Field(default=0, ge=0)
    """Number of first trials that repeat the best params of other tasks' studies, which have the same backbone, method,
    train size and space."""
    max_concurrent: Count = Field(default=4, ge=1)
    """Number of trials of one study that may run at once. When the sampler proposes trial k, it knows the outcomes of
    trials 0 to k - max_concurrent of the same study. Of later ones it knows only the params. So results do not depend
    on the number or speed of workers."""
    seed: Seed = 0
    """Seed of the sampler and of all search trials."""
    eval_every: Count = Field(default=1, ge=1)
    """Number of epochs between two scores of a search trial on val, such as 5. It is scored after the last epoch, too.
    Pruners decide at scored epochs only, so it must divide the pruner's min_epochs."""
    pruner: Pruner = NoPruner(type="none")
    """What stops trials early. Example: {type: asha, min_epochs: 10}."""


class SearchOverride(SpecPart):
    """Keys of `search` that differ for some studies. A key that is left out keeps its value."""

    trials: Count | None = Field(default=None, ge=1)
    """As in `search`."""
    sampler: Sampler | None = None
    """As in `search`."""
    startup_trials: Count | None = Field(default=None, ge=1)
    """As in `search`."""
    transfer: Count | None = Field(default=None, ge=0)
    """As in `search`."""
    max_concurrent: Count | None = Field(default=None, ge=1)
    """As in `search`."""
    seed: Seed | None = Field(default=None, ge=0)
    """As in `search`."""
    eval_every: Count | None = Field(default=None, ge=1)
    """As in `search`."""
    pruner: Pruner | None = None
    """As in `search`. It replaces the whole pruner."""

    @property
    def values(self) -> dict[str, Any]:
        """The keys that differ, with their values."""
        # From the fields and not from a dump: the pruner stays an object.
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


def _as_names(value: object) -> object:
    """Return one name as a list of one."""
    return None if value is None else as_list(value)


class StudyOverride(SpecPart):
    """What differs for some studies of a spec.

    An entry selects the studies that match all of its selectors: `method`, `backbone` and `group`. It needs one of the
    three. Of several entries that select a study, the later one wins.
    """

    method: Annotated[
        Annotated[list[Annotated[str, _one_of(METHODS, "a method")]], Field(min_length=1)] | None,
        BeforeValidator(_as_names),
    ] = None
    """Methods of the studies, one name or a list. Without it, all methods."""
    backbone: Annotated[
        Annotated[list[Annotated[str, _one_of(BACKBONES, "a backbone")]], Field(min_length=1)] | None,
        BeforeValidator(_as_names),
    ] = None
    """Backbones of the studies, one name or a list. Without it, all backbones."""
    group: Annotated[
        Annotated[list[Annotated[str, BeforeValidator(_check_task)]], Field(min_length=1)] | None,
        BeforeValidator(_as_names),
    ] = None
    """Tasks of the studies: groups, benchmarks or tasks, one name or a list. Without it, all tasks."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Fields of TrainConfig with one value. Each replaces the field of the same name in `fixed` or `space`."""
    space: dict[str, DimensionField] = Field(default_factory=dict)
    """Fields of TrainConfig that are searched. Each replaces the field of the same name in `fixed` or `space`."""
    search: SearchOverride = SearchOverride()
    """Keys of `search` that differ, such as {trials: 240, sampler: grid, pruner: {type: none}}."""

    def selects(self, task: str, backbone: str, method: str) -> bool:
        """Return whether the entry selects a study."""
        # A recorded spec of a newer version may have selectors that this version does not know and so ignores.
        if self.method is None and self.backbone is None and self.group is None:
            return False

        return (
            (self.method is None or method in self.method)
            and (self.backbone is None or backbone in self.backbone)
            and (self.group is None or any(task in (task_names(name) or [name]) for name in self.group))
        )


class Final(SpecPart):
    """How each study chooses its parameters, and trains with them for the score on test."""

    seeds: list[Seed] = Field(min_length=1)
    """Seeds of the final trials, one trial each, such as [42, 44, 82]."""
    select: Select = "last_val"
    """last_val: the trial with the best val accuracy at its last epoch; of equal ones the earliest. simplest_tied: of
    the trials that are not significantly worse on val, the one that learns the fewest parameters."""
    # Not in the repr, which is part of a stored digest. The ids of the final trials depend on it, so the digest does.
    train_on: Literal["trainval", "train"] = Field(default="trainval", repr=False)
    """What final trials train on: trainval for train and val together, or train alone. VPT's published FGVC rows use
    train alone."""
    measure_peeking: bool = False
    """Score test after every epoch of a final trial, to report separately how much higher the score would be if the
    best epoch were chosen on test."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Final:
        # Two equal seeds would be one trial, and the standard deviation would be too small.
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {short_repr(self.seeds)}: the same seed is the same trial.")

        return self


class Budget(SpecPart):
    """Limits after which a sweep starts no more trials. Running trials are finished."""

    max_trials: Count | None = Field(default=None, ge=1)
    """Number of search and final trials, such as 100. A trial that was run again counts once."""
    max_hours: Number | None = Field(default=None, gt=0)
    """Hours that drivers work on the sweep, such as 24."""
    max_gpu_hours: Number | None = Field(default=None, gt=0)
    """Hours of all trials, each times its share of a GPU, such as 200."""

    def exhausted(self, hours: float, gpu_hours: float) -> str | None:
        """Return which limit of hours is reached, or None."""
        # `max_trials` is not checked here: the sweep compares it before it starts a trial.
        if self.max_hours is not None and hours >= self.max_hours:
            return f"budget: max_hours {self.max_hours:g} are over"

        if self.max_gpu_hours is not None and gpu_hours >= self.max_gpu_hours:
            return f"budget: max_gpu_hours {self.max_gpu_hours:g} are used"

        return None


class StudyMatrix(SpecPart):
    """The part of a spec that decides which studies and configs there are."""

    tasks: list[Annotated[str, BeforeValidator(_check_task)]] = Field(min_length=1)
    """Tasks, or groups of tasks, such as [vtab/dtd, natural, fgvc]. A user's own task is own/NAME."""
    backbones: list[Annotated[str, _one_of(BACKBONES, "a backbone")]] = Field(min_length=1)
    """Frozen networks by their full timm names, such as [vit_base_patch16_224.mae]. `sptune backbones` lists them."""
    methods: list[Annotated[str, _one_of(METHODS, "a method")]] = Field(min_length=1)
    """Methods, such as [spt_deep, vpt_deep, linear]."""
    train_sizes: list[Annotated[float | int | str, BeforeValidator(_parse_train_size)]] = Field(
        default=[1.0], min_length=1
    )
    """How much of the training images to use: shares (0.1, 1.0), numbers of images (200), or numbers of images of
    each class ({per_class: 5})."""
    val_size: Literal["same", "full"] = "same"
    """How much of val to use with a train size that is a part. same: the same share, so that a size counts every label
    that was used; full: all of val."""
    draws: Annotated[int, BeforeValidator(check_number), at_most(MOST_DRAWS)] = Field(default=1, ge=1)
    """Number of random draws of the images for each train size that is a part. Each draw has a study of its own, so
    intervals cover the choice of the images. Example: 5."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Fields of TrainConfig with one value for all trials. Example: {epochs: 100, batch_size: 64}."""
    space: dict[str, DimensionField] = Field(default_factory=dict)
    """Fields of TrainConfig that are searched, each with its dimension.
    Example: {lr: {type: float, low: 1.0e-4, high: 0.1, log: true}}."""
    per: list[StudyOverride] = Field(default_factory=list)
    """What differs for a method, a backbone or a group of tasks. Later entries win.
    Example: [{method: linear, fixed: {batch_size: 800}, search: {trials: 40}}]."""


class SweepSpec(StudyMatrix):
    """One spec: all that a sweep does."""

    name: Annotated[str, BeforeValidator(_check_name)]
    """Name of the sweep and of its MLflow experiment: lower-case letters, digits, - and _, such as vtab-spt."""
    search: Search
    """How each study searches."""
    final: Final
    """How each study chooses its parameters and is scored on test."""
    resources: Resources = Resources()
    """What one trial occupies."""
    cluster: Cluster = Cluster()
    """Addresses, for sweeps on more than one machine."""
    budget: Budget = Budget()
    """Limits after which no more trials are started."""
    notify: Notify | None = None
    """Whom to tell when the sweep ends. It may change between launches."""
    retries: Count = Field(default=2, ge=0)
    """Number of times that a trial runs again after a failure that may pass."""
    pause_after: Count = Field(default=5, ge=2)
    """Number of consecutive failures with the same cause, in more than one trial, after which the sweep pauses."""
    lost_after_minutes: Number = Field(default=60, gt=0)
    """Minutes without a finished epoch after which a running trial counts as lost."""
    keep: Literal["best", "final", "all"] = "best"
    """Checkpoints to keep of complete and pruned trials. best: of each study's best trial and of its final trials;
    final: of final trials only; all: of every trial. The learned tensors (`prompt.safetensors`) are always kept."""
