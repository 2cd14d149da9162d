"""Rules for the values of a `TrainConfig`. A broken one is a sentence: the rule, the value, the way out."""

from __future__ import annotations

import math
import re
import reprlib
import typing
from collections.abc import Collection, Iterator
from typing import Any

from trainer.catalog import BACKBONES, METHODS, TASKS, Task, is_own
from trainer.names import name_hint
from trainer.plain_text import counted

Problem = tuple[str, str]
"""A field and the sentence about it."""

MOST = 2**31 - 1
"""Largest whole number that databases keep as a number of epochs or trials."""
MOST_PIXELS = 8192
"""Longest side of an image. At twice this length, the attention of one block would fill the memory of any GPU."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100
_SHORT.maxlist = _SHORT.maxdict = 10


def short_repr(value: object) -> str:
    """Return a value as a message shows it: its `repr`, cut if it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        return "a number with thousands of digits"


def unknown_name(name: str, valid_names: Collection[str], what: str) -> str:
    """Return the sentence for a name that does not exist, with the valid one, or the names to choose from."""
    return f"{short_repr(name)} is not {what}; {name_hint(name, valid_names)}"


def number_problem(value: object) -> str | None:
    """Return why a value is not a number, or None if it is one."""
    if isinstance(value, str):
        # Numbers that YAML or a user made a text of get the spelling that is read as a number.
        cure = ""
        plain = re.fullmatch(r"([+-]?)0*(\d{1,40}(?:\.\d*)?)", value, re.ASCII)
        power = re.fullmatch(r"([+-]?\d{1,40})(\.\d*)?[eE]([+-]?\d{1,4})", value, re.ASCII)
        if plain:
            cure = f" (write {plain[1]}{plain[2]} without quotes)"
        elif power:
            cure = f" (write {power[1]}{power[2] or '.0'}e{int(power[3]):+d}: YAML reads {value} as text)"
        return f"must be a number, got the text {short_repr(value)}{cure}."

    # A bool is an int for Python, but not for a reader.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {short_repr(value)}."
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"must be below 2^63, got {short_repr(value)}."
    return None


def type_problem(field_type: Any, value: object) -> str | None:
    """Return why a value is not of a field's type, or None if it is."""
    kinds = typing.get_args(field_type) or (field_type,)
    if value is None and type(None) in kinds:
        return None

    if str in kinds:
        if isinstance(value, str):
            return None
        # Fields that take numbers too take any text here; the rules read it.
        return number_problem(value) if int in kinds else f"must be a name, got {short_repr(value)}."

    if bool in kinds:
        return None if isinstance(value, bool) else f"must be true or false, got {short_repr(value)}."

    if int in kinds or float in kinds:
        problem = number_problem(value)
        if problem is None and float not in kinds and not isinstance(value, int):
            problem = f"must be a whole number, got {short_repr(value)}."
        return problem

    # A Literal: its arguments are the values.
    return None if value in kinds else f"must be one of {', '.join(kinds)}, got {short_repr(value)}."


def parse_per_class(size: str) -> int:
    """Return the number in `5 per class`.

    Raises:
        ValueError: if the text is anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8}) per class", size)
    if match is None:
        raise ValueError(
            f"must be a share (0.1), a number of images (200) or of each class (5 per class), got {short_repr(size)}."
        )
    return int(match[1])


def is_full(size: float | int | str) -> bool:
    """Return whether a train size is the share 1.0: all images. The number 1 is one image."""
    return isinstance(size, float) and size == 1.0


def share_problem(share: float, task: str, num_images: int, num_classes: int) -> str | None:
    """Return why a share of a task's train images is too small, or None.

    A share takes at least one image of each class. So a smaller share would take more images than it says.
    """
    # Rounded, because 0.1 of 1,020 images is a hair more or less than 102.
    if round(share * num_images, 6) >= num_classes:
        return None

    least = math.ceil(round(1000 * num_classes / num_images, 6)) / 1000
    ways_out = f"a number of images such as {num_classes}, a number of each class, or val_size full"
    if least < 1:
        ways_out = f"a share of at least {least:g}, {ways_out}"
    return (
        f"{share:g} of the {counted(num_images, 'train image')} of {task} is {share * num_images:.4g}, fewer than its "
        f"{counted(num_classes, 'class')}, and each needs at least one. Use {ways_out}, which takes one image of "
        "each class."
    )


def _share_problem(task: Task | None, share: float, val_size: str) -> str | None:
    if not 0 < share <= 1:
        return f"as a share must be in (0, 1], got {share}; a number of images has no point."

    # With val_size full any share was accepted before, and sweeps of that time must stay valid.
    if task is None or val_size == "full":
        return None
    return share_problem(share, task.name, task.num_train, task.num_classes)


def _train_size_problem(task: Task | None, config: Any) -> str | None:
    """Return why a train size is impossible, or None. Sizes of tasks that are not in the catalog are not compared."""
    size = config.train_size
    if isinstance(size, float):
        return _share_problem(task, size, config.val_size)

    try:
        images_per_class = 0 if isinstance(size, int) else parse_per_class(size)
    except ValueError as error:
        return str(error)

    if task is None:
        return f"must be at least 1 image, got {size}." if isinstance(size, int) and size < 1 else None

    num_available = _num_available(task, config)
    num_wanted = size if isinstance(size, int) else images_per_class * task.num_classes
    if num_wanted < task.num_classes:
        return (
            f"{counted(num_wanted, 'image is', 'images are')} fewer than the {counted(task.num_classes, 'class')} "
            f"of {task.name}; each needs one at least."
        )
    if num_wanted > num_available:
        return f"{counted(num_wanted, 'image is', 'images are')} more than the {num_available} of {task.name}."
    return None


def rule_problems(config: Any) -> Iterator[Problem]:
    """Yield each rule that the values of a config break, whatever its method.

    Args:
        config: the values by field; each is of its field's type.
    """
    # Names.
    if config.task not in TASKS and not is_own(config.task):
        yield "task", unknown_name(config.task, TASKS, "a task")
    if config.backbone not in BACKBONES:
        yield "backbone", unknown_name(config.backbone, BACKBONES, "a backbone")
    if config.method not in METHODS:
        yield "method", unknown_name(config.method, METHODS, "a method")

    # Numbers, alone and compared with each other.
    yield from _number_problems(config)
    yield from _part_problems(config)
    if not 0 <= config.warmup_epochs < max(1, config.epochs):
        yield "warmup_epochs", f"must be at least 0 and below epochs={config.epochs}, got {config.warmup_epochs}."
    if config.measure_peeking and config.eval_split == "val":
        yield "measure_peeking", "is for runs that are scored on test: leave it out, or set eval_split: test."

    if config.train_on == "train" and config.eval_split == "val":
        yield "train_on", "is for runs that are scored on test: leave it out, or set eval_split: test."
    if config.eval_every > 1 and config.eval_split == "test":
        rule = "is for runs that are scored on val, and a run on test is scored after its last epoch"
        yield "eval_every", f"{rule}; got {config.eval_every}. Leave it out, or set eval_split: val."

    # Numbers, compared with what the task and the backbone have.
    yield from size_problems(config, TASKS.get(config.task))
    yield from _image_size_problems(config)


def size_problems(config: Any, task: Task | None) -> Iterator[Problem]:
    """Yield each number that asks for more training images than a task has.

    Args:
        task: the task with the sizes of its splits; None if they are not known here.
    """
    train_size_problem = _train_size_problem(task, config)
    if train_size_problem:
        yield "train_size", train_size_problem
    elif task:
        most = _most_images(task, config)
        if config.batch_size > most:
            rule = f"{config.batch_size:,} exceeds the {counted(most, 'image')} that {task.name} has at train_size"
            yield "batch_size", f"{rule}={config.train_size}. Use a smaller one."


def _image_size_problems(config: Any) -> Iterator[Problem]:
    backbone = BACKBONES.get(config.backbone)
    side = config.image_size
    if backbone is None or side is None:
        return

    patch = backbone.patch_size
    if side < patch or side % patch:
        yield "image_size", f"must be a multiple of {backbone.name}'s patch size {patch}, got {side}."
    elif side > MOST_PIXELS:
        yield "image_size", f"must be at most {MOST_PIXELS} pixels, got {side}."


def _number_problems(config: Any) -> Iterator[Problem]:
    """Yield the numbers outside their range."""
    for name in ("epochs", "batch_size", "eval_every"):
        value = getattr(config, name)
        if value < 1:
            yield name, f"must be at least 1, got {value}."
        elif value > MOST:
            yield name, f"must be at most {MOST}, got {value}."
    for name in ("weight_decay", "head_weight_decay"):
        decay = getattr(config, name)
        if not 0 <= decay < math.inf:
            yield name, f"must be at least 0 and finite, got {decay}."
    if not 0 <= config.seed < 2**32:
        yield "seed", f"must be in 0..2^32-1, got {config.seed}."
    if not 0 < config.lr <= 1e30:
        yield "lr", f"must be above 0 and at most 1e30, got {config.lr}."
    if not 0 <= config.drop_path < 1:
        yield "drop_path", f"must be at least 0 and below 1, got {config.drop_path}."
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        yield "ema_decay", f"must be between 0 and 1, such as 0.999, got {config.ema_decay}; leave it out for none."

    if not 0 <= config.draw <= MOST:
        yield "draw", f"must be in 0..{MOST}, got {config.draw}."

    images = config.init_images
    if isinstance(images, float) and not 0 < images <= 1:
        yield "init_images", f"as a share must be in (0, 1], got {images}; a number of images has no point."
    if isinstance(images, int) and images < 1:
        yield "init_images", f"as a number of images must be at least 1, got {images}."


def _part_problems(config: Any) -> Iterator[Problem]:
    """Yield the fields of a part of the images where there is no part: all images can be drawn in one way only."""
    if not is_full(config.train_size):
        return
    for name, is_used in (("val_size", config.val_size == "same"), ("draw", config.draw > 0)):
        if is_used:
            yield name, "is for a part of the images: leave it out, or set train_size to a part, such as 0.1 or 200."


def _num_available(task: Task, config: Any) -> int:
    """Return the number of images that `train_size` is taken of."""
    # With val_size same, the part of val follows from the part of train.
    takes_of_val = config.eval_split == "test" and config.train_on == "trainval" and config.val_size == "full"
    return task.num_train + (task.num_val if takes_of_val else 0)


def _most_images(task: Task, config: Any) -> int:
    """Return an upper bound of the number of training images."""
    num_available = _num_available(task, config)
    size: float | int | str = config.train_size
    if isinstance(size, int):
        most = size
    elif isinstance(size, str):
        most = min(num_available, parse_per_class(size) * task.num_classes)
    else:
        # A share is rounded class by class, and takes at least one image of each.
        most = min(num_available, math.ceil(size * num_available) + 2 * task.num_classes)

    # The final trial also learns from the same share of val.
    if config.val_size == "same" and config.eval_split == "test" and config.train_on == "trainval":
        most += min(task.num_val, math.ceil(most / task.num_train * task.num_val) + task.num_classes)
    return most
