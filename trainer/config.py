"""`TrainConfig`: everything one training run depends on. If one exists, it is valid. Standard library only."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from trainer.catalog import BACKBONES, METHODS, TASKS, Task


class InvalidConfig(ValueError):
    """Values that no training run can have: every problem, by field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{field}: {problem}" for field, problem in problems.items()))
        self.problems = dict(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run: what is trained, on what, how.

    Raises:
        InvalidConfig: with every problem at once; each names the rule, the value and the way out.
    """

    task: str
    """Name of the task, such as demo/digits."""

    backbone: str = "vit_nano_patch4_32.mae"
    """Full timm name of the frozen ViT."""

    method: str
    """spt_deep, spt_shallow (prompts start as prototypes), vpt_deep (at random), or linear (no prompts)."""

    prompt_length: int | None = None
    """Prompt tokens per prompted layer; none for linear."""

    prompt_init: str | None = None
    """Where the prompt starts: random, mean_pool, max_pool or kmeans (SPT); uniform (VPT)."""

    train_size: float = 1.0
    """Share of the training images that is used, above 0 and up to 1."""

    eval_split: Literal["val", "test"] = "val"
    """val: train on train, score on val each epoch. test: train on trainval, score on test once, at the end."""

    epochs: int = 100
    """Passes over the training images."""

    warmup_epochs: int = 10
    """Epochs over which the learning rate rises from 0; then it falls along half a cosine."""

    batch_size: int = 32
    """Images per step; the last partial batch of an epoch is dropped."""

    lr: float = 5e-2
    """Peak learning rate of prompt and head (AdamW)."""

    weight_decay: float = 1e-2
    """Weight decay of the prompt; without effect for linear."""

    head_weight_decay: float = 0.5
    """Weight decay of the head's weight; its bias has none."""

    seed: int = 42
    """Decides head, prototypes, data order and dropout."""

    def __post_init__(self) -> None:
        found = [(name, _type_problem(kind, getattr(self, name))) for name, kind in field_types().items()]
        wrong = {name: problem for name, problem in found if problem}
        # Rules are checked on what has the right type, with defaults for the rest.
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {"task": "", "method": ""}
        stand_ins = {name: defaults[name] for name in wrong}
        values = {name: stand_ins.get(name, getattr(self, name)) for name in field_types()}
        broken = {name: problem for name, problem in _rule_problems(SimpleNamespace(**values)) if problem}
        if problems := broken | wrong:
            raise InvalidConfig(problems)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> TrainConfig:
        """The config of plain values from outside (a spec, a record, a command line).

        Fills in the one init strategy of a method that has no choice.

        Raises:
            InvalidConfig: as the constructor, and for names that are no fields.
        """
        problems = {name: no_such(name, field_types(), "a TrainConfig field") for name in params.keys() - field_types()}
        problems |= {name: "is missing." for name in ("task", "method") if name not in params}
        values: dict[str, Any] = {
            name: float(value) if field_types()[name] is float and type(value) is int else value
            for name, value in params.items()
            if name in field_types()
        }
        method = METHODS.get(str(params.get("method")))
        if method is not None and len(method.prompt_inits) == 1 and values.get("prompt_init") is None:
            values["prompt_init"] = method.prompt_inits[0]
        try:
            config = cls(**{"task": "", "method": ""} | values)
        except InvalidConfig as error:
            problems = error.problems | problems
        if problems:
            raise InvalidConfig(problems)
        return config

    def fingerprint(self) -> str:
        """Twelve hex digits of the content: the id of the trial that this config is."""
        values = {
            name: float(value) + 0.0 if field_types()[name] is float else value  # 1 is 1.0, and -0.0 is 0.0
            for name, value in dataclasses.asdict(self).items()
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def train_split(self) -> Literal["train", "trainval"]:
        """The split that is learnt from: nothing that is scored on test is chosen on it."""
        return "train" if self.eval_split == "val" else "trainval"

    @property
    def metric(self) -> str:
        """Name of the metric that judges this run, at its last epoch."""
        return f"{self.eval_split}/accuracy"


@functools.cache
def field_types() -> dict[str, Any]:
    """The fields of TrainConfig and their types."""
    return typing.get_type_hints(TrainConfig)


def unused_fields(method: str) -> frozenset[str]:
    """Fields that a method leaves without effect, so that nobody searches them."""
    row = METHODS[method]
    unused = set() if len(row.prompt_inits) > 1 else {"prompt_init"}
    if row.prompted_layers == "none":
        unused |= {"prompt_length", "weight_decay"}
    return frozenset(unused)


def no_such(name: str, known: Collection[str], what: str) -> str:
    """The sentence for a name that does not exist: the nearest one that does, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"{name!r} is not {what}; " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}.")


def number_problem(value: object) -> str | None:
    """Why a value is not a number, or None if it is one."""
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", value):
            return f"must be a number, got the text {value!r} (write {value} without quotes)."
        if power := re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?\d+)", value):
            cure = f"{power[1]}{power[2] or '.0'}e{int(power[3]):+d}"
            return f"must be a number, got the text {value!r} (write {cure}: YAML reads 1e-4 as text)."
        return f"must be a number, got the text {value!r}."
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r}."
    return None


def _type_problem(field_type: Any, value: object) -> str | None:
    choices = typing.get_args(field_type)
    if value is None and type(None) in choices:
        return None
    if str in choices or field_type is str:
        return None if isinstance(value, str) else f"must be a name, got {value!r}."
    if int in choices or field_type in (int, float):
        if problem := number_problem(value):
            return problem
        whole = field_type is not float
        return f"must be a whole number, got {value!r}." if whole and not isinstance(value, int) else None
    return None if value in choices else f"must be one of {', '.join(choices)}, got {value!r}."


def _rule_problems(config: Any) -> list[tuple[str, str | None]]:
    """Each rule's field and its sentence, None where the rule holds."""
    task, backbone = TASKS.get(config.task), BACKBONES.get(config.backbone)
    method = METHODS.get(config.method)
    problems = [
        ("task", None if task else no_such(config.task, TASKS, "a task")),
        ("backbone", None if backbone else no_such(config.backbone, BACKBONES, "a backbone")),
        ("method", None if method else no_such(config.method, METHODS, "a method")),
        ("train_size", None if 0 < config.train_size <= 1 else f"must be in (0, 1], got {config.train_size}."),
        ("epochs", None if config.epochs >= 1 else f"must be at least 1, got {config.epochs}."),
        ("seed", None if 0 <= config.seed < 2**32 else f"must be in 0..2^32-1, got {config.seed}."),
        ("lr", None if 0 < config.lr <= 1e30 else f"must be above 0 and at most 1e30, got {config.lr}."),
    ]
    if not 0 <= config.warmup_epochs < max(1, config.epochs):
        rule = f"must be at least 0 and below epochs={config.epochs}, got {config.warmup_epochs}."
        problems.append(("warmup_epochs", rule))
    for name in ("weight_decay", "head_weight_decay"):
        if not 0 <= (decay := getattr(config, name)) < math.inf:
            problems.append((name, f"must be at least 0 and finite, got {decay}."))
    if config.batch_size < 1:
        problems.append(("batch_size", f"must be at least 1, got {config.batch_size}."))
    elif task and 0 < config.train_size <= 1 and config.batch_size > (most := _most_images(task, config)):
        rule = f"{config.batch_size} exceeds the {most} images that {task.name} has at most at train_size"
        problems.append(("batch_size", f"{rule}={config.train_size:g}."))
    if method and backbone:
        problems += _prompt_problems(config)
    return problems


def _most_images(task: Task, config: Any) -> int:
    """An upper bound of the images learnt from: a share is rounded class by class, and takes one at least."""
    images: int = task.num_train + (task.num_val if config.eval_split == "test" else 0)
    share: int = math.ceil(config.train_size * images) + 2 * task.num_classes
    return min(images, share)


def _prompt_problems(config: Any) -> list[tuple[str, str | None]]:
    method, num_patches = METHODS[config.method], BACKBONES[config.backbone].num_patches
    length, init = config.prompt_length, config.prompt_init
    if method.prompted_layers == "none":
        given = [name for name in ("prompt_length", "prompt_init") if getattr(config, name) is not None]
        return [(name, f"{method.name} has no prompts: leave it out.") for name in given]
    problems: list[tuple[str, str | None]] = []
    if length is None:
        problems.append(("prompt_length", f"{method.name} needs one, such as 10."))
    elif length < 1:
        problems.append(("prompt_length", f"must be at least 1, got {length}."))
    elif init in ("mean_pool", "max_pool") and length > num_patches:
        problems.append(
            (
                "prompt_length",
                f"{length} exceeds the {num_patches} patch tokens of {config.backbone}; mean_pool and max_pool need "
                f"one token per prompt. Use prompt_init random or kmeans, or prompt_length <= {num_patches}.",
            )
        )
    if init not in method.prompt_inits:
        problems.append(("prompt_init", f"{method.name} starts from {' | '.join(method.prompt_inits)}, got {init!r}."))
    return problems
