"""Published accuracies, to stand beside our own. Standard library only."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method on one pre-training, as a paper reports it; test accuracy in per cent. What is absent is unknown."""

    backbones: tuple[str, ...]
    """Full timm names of the checkpoints that the numbers stand for."""
    method: str
    """A method of the catalog, or the name of one that is not implemented here (E2VPT, GateVPT)."""
    source: str
    """Where the numbers were found: paper and table."""
    tasks: dict[str, float]
    """By task name; one run or a mean of several, as the source has it."""
    groups: dict[str, float]
    """Means over the tasks of a group, as printed; a group may be known where its tasks are not."""
    tuned: str | None
    """How much of the network learns, in the source's words."""


@functools.cache
def published_rows(backbone: str) -> list[PublishedRow]:
    """What was published on a backbone, in the order of the file; empty where nothing was found.

    Args:
        backbone: full timm name, such as vit_base_patch16_224.mae.
    """
    return [row for row in _all_rows() if backbone in row.backbones]


@functools.cache
def _all_rows() -> tuple[PublishedRow, ...]:
    raw = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return tuple(PublishedRow(**row | {"backbones": tuple(row["backbones"])}) for row in raw["rows"])
