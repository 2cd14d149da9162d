"""What to fix and what to search first: values and ranges of TrainConfig's fields that `sptune new` writes.

The ranges surround the values that SPT's authors published. Those of the bundled network were chosen on val (`demo`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.catalog import BACKBONES, BUNDLED, METHODS, PROTOTYPE_INITS
from trainer.config import unused_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstSearch:
    """Fields of a training run for a first search, as a spec has them."""

    fixed: dict[str, Any]
    """Fields with one value."""
    space: dict[str, dict[str, Any]]
    """Fields that are searched, each with its dimension."""
    per: dict[tuple[str, ...], dict[str, dict[str, Any]]]
    """Dimensions that are others for some of the methods, by the names of these methods."""


COMMENTS = {
    "epochs": "passes over the training images; the papers take 100",
    "warmup_epochs": "epochs in which lr rises from 0",
    "batch_size": "images per step",
    "precision": "fast on a GPU; fp32 is the papers'",
    "lr": "peak learning rate",
    "weight_decay": "of the prompt, or of what else is trained besides the head",
    "head_weight_decay": "of the head",
    "prompt_length": "prompt tokens per prompted layer",
    "prompt_init": "how a prompt of spt starts",
}
"""What a field is, in a few words."""


def first_search(
    backbones: Sequence[str], methods: Collection[str], *, num_images: int | None, on_gpu: bool
) -> FirstSearch:
    """Return what to fix and what to search first. Fields without effect on all methods are left out.

    Args:
        num_images: training images of the smallest task; None if they are not known.
        on_gpu: whether trials have a GPU. Without one they have fewer epochs.
    """
    is_bundled = set(backbones) == {BUNDLED}
    epochs = 7 if is_bundled else 100 if on_gpu else 20
    batch_size = 8 if is_bundled else 32
    if num_images is not None:
        # Some steps an epoch, because each step moves the weights once.
        batch_size = max(1, min(batch_size, num_images // 4))

    fixed: dict[str, Any] = {"epochs": epochs, "warmup_epochs": max(1, epochs // 10), "batch_size": batch_size}
    if on_gpu:
        fixed["precision"] = "bf16"

    shortest = min(BACKBONES[name].num_patches() for name in backbones)
    lengths = [5, 10] if is_bundled else [10, 20, 50]
    space = {
        "lr": _log_range(2e-2 if is_bundled else 5e-3, 2e-1),
        "weight_decay": _log_range(1e-4, 1e-2) if is_bundled else _log_range(5e-4, 1e-1),
        "head_weight_decay": _log_range(1e-3, 1e-1) if is_bundled else _log_range(5e-2, 5.0),
        # Pooling needs a patch for each prompt token.
        "prompt_length": _choice([length for length in lengths if length <= shortest]),
        "prompt_init": _choice(PROTOTYPE_INITS),
    }
    space = {name: entry for name, entry in space.items() if any(name not in unused_fields(m) for m in methods)}

    # Weights take smaller steps than prompts. The methods that come first have the range of the space.
    by_range: dict[tuple[float, float] | None, list[str]] = {}
    for name in methods:
        by_range.setdefault(METHODS[name].first_lr, []).append(name)
    if None not in by_range:
        space["lr"] = _log_range(*next(filter(None, by_range)))
    own = {
        tuple(names): {"lr": _log_range(*lr)} for lr, names in by_range.items() if lr and _log_range(*lr) != space["lr"]
    }
    return FirstSearch(fixed=fixed, space=space, per=own)


def _log_range(low: float, high: float) -> dict[str, Any]:
    return {"type": "float", "low": low, "high": high, "log": True}


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    return {"type": "choice", "values": list(values)}
