"""Rules for the fields of a `TrainConfig` that some methods have and others have not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.catalog import BACKBONES, METHODS, TASKS, Task, is_own
from trainer.plain_text import counted
from trainer.validation import Problem, unknown_name

MOST_PROMPT_TOKENS = 100_000
"""Longest prompt. A longer one would fill the memory of any GPU."""


def method_problems(config: Any, defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each rule of its method that the values of a config break.

    Args:
        config: the values by field; each is of its field's type.
        defaults: the default of each field.
    """
    if config.method in METHODS:
        yield from _prompt_problems(config)
        yield from _field_problems(config, defaults)


def _prompt_problems(config: Any) -> Iterator[Problem]:
    """Yield what is wrong with the fields of the prompt.

    A method without prompts has none of them; one with prompts has a length, and one of its own strategies.
    """
    method = METHODS[config.method]
    if method.prompted_layers == "none":
        for name in ("prompt_length", "prompt_init", "init_task"):
            if getattr(config, name) is not None:
                yield name, f"{method.name} has no prompts: leave it out."
        if config.nmi:
            yield "nmi", f"{method.name} has no prompts to measure: leave it out."
        return

    length = config.prompt_length
    init = config.prompt_init
    if length is None:
        yield "prompt_length", f"{method.name} needs one, such as 10."
    elif not 1 <= length <= MOST_PROMPT_TOKENS:
        bound = "at least 1" if length < 1 else f"at most {MOST_PROMPT_TOKENS}"
        yield "prompt_length", f"must be {bound}, got {length}."
    elif config.backbone in BACKBONES:
        problem = _token_problem(config)
        if problem:
            yield "prompt_length", problem

    if init not in method.prompt_inits:
        got = "none is given" if init is None else f"got {init!r}"
        yield "prompt_init", f"{method.name} starts from {' | '.join(method.prompt_inits)}, {got}."

    if config.init_task is not None:
        if not method.has_prototypes:
            yield "init_task", f"{method.name} starts without prototypes: leave it out."
        elif config.init_task not in TASKS and not is_own(config.init_task):
            yield "init_task", unknown_name(config.init_task, TASKS, "a task")


def _field_problems(config: Any, defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the fields of other methods that have a value, and those of this method with a wrong one."""
    owners: dict[str, list[str]] = {}
    for method in METHODS.values():
        for name in method.fields:
            owners.setdefault(name, []).append(method.name)

    for name, methods in owners.items():
        if config.method not in methods and getattr(config, name) != defaults[name]:
            owned = " or ".join(methods)
            yield name, f"{config.method} has none: leave it out, or set method: {owned}."

    if config.method in owners["fourier_share"] and not 0 <= config.fourier_share <= 1:
        yield "fourier_share", f"must be in [0, 1], got {config.fourier_share}."
    if config.method in owners["gate_init"] and not -100 <= config.gate_init <= 100:
        yield "gate_init", f"must be in -100..100, got {config.gate_init}."

    name = "key_value_length"
    if config.method in owners[name] and not 1 <= config.key_value_length <= MOST_PROMPT_TOKENS:
        yield name, f"must be in 1..{MOST_PROMPT_TOKENS}, got {config.key_value_length}."

    for name in ("lora_rank", "adapter_dim", "bpt_rank"):
        size = getattr(config, name)
        width = BACKBONES[config.backbone].embed_dim if config.backbone in BACKBONES else size
        if config.method in owners[name] and not 1 <= size <= max(1, width):
            yield name, f"must be in 1..{width}, the width of {config.backbone}, got {size}."


def _token_problem(config: Any) -> str | None:
    """Return why a prompt is longer than its strategy has tokens for, or None. Uniform prompts need none."""
    length = config.prompt_length
    row = BACKBONES[config.backbone]
    num_patches = row.num_patches(config.image_size)
    # An image without a whole patch has a problem of its own, at image_size.
    is_too_small = config.image_size is not None and config.image_size < row.patch_size
    if num_patches < 1 or is_too_small:
        return None

    if config.prompt_init in ("mean_pool", "max_pool") and length > num_patches:
        return (
            f"{length:,} exceeds the {counted(num_patches, 'patch token')} of {config.backbone}; mean_pool and "
            f"max_pool need one token per prompt. Use prompt_init random or kmeans, or prompt_length <= {num_patches}."
        )

    # Each token of each image is drawn once at most.
    task = TASKS.get(config.init_task or config.task)
    if config.prompt_init in ("random", "kmeans") and task is not None:
        num_tokens = num_patches * _most_init_images(task, config)
        if length > num_tokens > 0:
            return f"{length:,} exceeds the {counted(num_tokens, 'patch token')} of the images; use more init_images."
    return None


def _most_init_images(task: Task, config: Any) -> int:
    """Return an upper bound of the number of images that prototypes are made of."""
    size = config.init_images
    # With val, which the images of another task and those of a final trial may include.
    num_images = task.num_train + task.num_val
    if isinstance(size, int):
        return min(size, num_images)

    return min(num_images, math.ceil(size * num_images) + 2 * task.num_classes) if 0 < size <= 1 else 0
