"""What is wrong with the values of a `TrainConfig`, as sentences: the rule, the value, the way out."""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Collection, Iterator
from typing import Any

from trainer.catalog import BACKBONES, METHODS, TASKS, Task, is_own

Problem = tuple[str, str]
"""A field and its sentence."""


def unknown_name(name: str, known: Collection[str], what: str) -> str:
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


def type_problem(field_type: Any, value: object) -> str | None:
    """Why a value is not of a field's type, or None if it is."""
    kinds = typing.get_args(field_type) or (field_type,)
    if value is None and type(None) in kinds:
        return None
    if str in kinds:  # a name; or where numbers are allowed too, words that the rules read
        other = number_problem(value) if int in kinds else f"must be a name, got {value!r}."
        return None if isinstance(value, str) else other
    if bool in kinds:
        return None if isinstance(value, bool) else f"must be true or false, got {value!r}."
    if int in kinds or float in kinds:
        if problem := number_problem(value):
            return problem
        whole = float not in kinds
        return f"must be a whole number, got {value!r}." if whole and not isinstance(value, int) else None
    return None if value in kinds else f"must be one of {', '.join(kinds)}, got {value!r}."


def parse_per_class(size: str) -> int:
    """The number in `5 per class`.

    Raises:
        ValueError: if the text says something else.
    """
    if (found := re.fullmatch(r"([1-9]\d*) per class", size)) is None:
        raise ValueError(
            f"must be a share (0.1), a number of images (200) or of each class (5 per class), got {size!r}."
        )
    return int(found[1])


def _train_size_problem(task: Task | None, config: Any) -> str | None:
    """Why a train size cannot be, as far as the catalog tells."""
    size = config.train_size
    if isinstance(size, float):
        return None if 0 < size <= 1 else f"as a share must be in (0, 1], got {size}; a number of images has no point."
    try:
        fewest = 1 if isinstance(size, int) else parse_per_class(size)
    except ValueError as error:
        return str(error)
    if task is None:
        return None if not isinstance(size, int) or size >= 1 else f"must be at least 1 image, got {size}."
    images = task.num_train + (task.num_val if config.eval_split == "test" else 0)
    wanted = size if isinstance(size, int) else fewest * task.num_classes
    if wanted < task.num_classes:
        return f"{wanted} images are fewer than the {task.num_classes} classes of {task.name}; each needs one at least."
    return f"{wanted} images are more than the {images} of {task.name}." if wanted > images else None


def rule_problems(config: Any) -> Iterator[Problem]:
    """Each rule that the config's values break; every value has its field's type."""
    if config.task not in TASKS and not is_own(config.task):
        yield "task", unknown_name(config.task, TASKS, "a task")
    for field, table, what in (
        ("backbone", BACKBONES, "a backbone"),
        ("method", METHODS, "a method"),
    ):
        if getattr(config, field) not in table:
            yield field, unknown_name(getattr(config, field), table, what)
    yield from _number_problems(config)
    if not 0 <= config.warmup_epochs < max(1, config.epochs):
        yield "warmup_epochs", f"must be at least 0 and below epochs={config.epochs}, got {config.warmup_epochs}."
    if config.measure_peeking and config.eval_split == "val":
        yield "measure_peeking", "is for runs that are scored on test: leave it out, or set eval_split: test."
    task = TASKS.get(config.task)
    if problem := _train_size_problem(task, config):
        yield "train_size", problem
    elif task and config.batch_size > (most := _most_images(task, config)):
        rule = f"{config.batch_size} exceeds the {most} images that {task.name} has at most at train_size"
        yield "batch_size", f"{rule}={config.train_size}."
    if (backbone := BACKBONES.get(config.backbone)) and config.image_size is not None:
        side, patch = config.image_size, backbone.patch_size
        if side < patch or side % patch:
            yield "image_size", f"must be a multiple of {backbone.name}'s patch size {patch}, got {side}."
    if config.method in METHODS:
        yield from _prompt_problems(config)


def _number_problems(config: Any) -> Iterator[Problem]:
    """Numbers outside their range."""
    at_least_1 = ("epochs", "batch_size")
    yield from (
        (name, f"must be at least 1, got {getattr(config, name)}.") for name in at_least_1 if getattr(config, name) < 1
    )
    for name in ("weight_decay", "head_weight_decay"):
        if not 0 <= (decay := getattr(config, name)) < math.inf:
            yield name, f"must be at least 0 and finite, got {decay}."
    if not 0 <= config.seed < 2**32:
        yield "seed", f"must be in 0..2^32-1, got {config.seed}."
    if not 0 < config.lr <= 1e30:
        yield "lr", f"must be above 0 and at most 1e30, got {config.lr}."
    if not 0 <= config.drop_path < 1:
        yield "drop_path", f"must be at least 0 and below 1, got {config.drop_path}."
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        yield "ema_decay", f"must be between 0 and 1, such as 0.999, got {config.ema_decay}; leave it out for none."
    images = config.init_images
    if isinstance(images, float) and not 0 < images <= 1:
        yield "init_images", f"as a share must be in (0, 1], got {images}; a number of images has no point."
    if isinstance(images, int) and images < 1:
        yield "init_images", f"as a number of images must be at least 1, got {images}."


def _most_images(task: Task, config: Any) -> int:
    """An upper bound of the images learnt from: a share is rounded class by class, and takes one at least."""
    images: int = task.num_train + (task.num_val if config.eval_split == "test" else 0)
    if not isinstance(config.train_size, float):
        size = config.train_size
        return size if isinstance(size, int) else min(images, parse_per_class(size) * task.num_classes)
    share: int = math.ceil(config.train_size * images) + 2 * task.num_classes
    return min(images, share)


def _prompt_problems(config: Any) -> Iterator[Problem]:
    """A method without prompts has none of their fields; one with prompts has a length, and a strategy of its own."""
    method, length, init = METHODS[config.method], config.prompt_length, config.prompt_init
    if method.prompted_layers == "none":
        for name in ("prompt_length", "prompt_init", "init_task"):
            if getattr(config, name) is not None:
                yield name, f"{method.name} has no prompts: leave it out."
        if config.nmi:
            yield "nmi", f"{method.name} has no prompts to measure: leave it out."
        return
    if length is None:
        yield "prompt_length", f"{method.name} needs one, such as 10."
    elif length < 1:
        yield "prompt_length", f"must be at least 1, got {length}."
    elif init in ("mean_pool", "max_pool") and config.backbone in BACKBONES:
        row = BACKBONES[config.backbone]
        patches = row.num_patches(config.image_size) if (config.image_size or row.patch_size) >= row.patch_size else 0
        rule = (
            f"exceeds the {patches} patch tokens of {config.backbone}; mean_pool and max_pool need one token per prompt"
        )
        if patches and length > patches:
            cure = f"Use prompt_init random or kmeans, or prompt_length <= {patches}."
            yield "prompt_length", f"{length} {rule}. {cure}"
    if init not in method.prompt_inits:
        yield "prompt_init", f"{method.name} starts from {' | '.join(method.prompt_inits)}, got {init!r}."
    if config.init_task is not None:
        if len(method.prompt_inits) == 1:
            yield "init_task", f"{method.name} starts without prototypes: leave it out."
        elif config.init_task not in TASKS and not is_own(config.init_task):
            yield "init_task", unknown_name(config.init_task, TASKS, "a task")
