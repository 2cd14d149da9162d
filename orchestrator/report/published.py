"""Published accuracies, to print beside our own. Needs the standard library only."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method on one pre-training, as a paper reports it: test accuracy in percent. Absent values are unknown."""

    backbones: tuple[str, ...]
    """Full timm names of the checkpoints that the numbers apply to."""
    method: str
    """A method of the catalog, or the name of a method that is not implemented here (E2VPT, GateVPT)."""
    source: str
    """Paper and table of the numbers."""
    tasks: dict[str, float]
    """By task name: one run or a mean of several, as in the source."""
    groups: dict[str, float]
    """Printed means over the tasks of a group. A group can be known while its tasks are not."""
    tuned: str | None
    """How much of the network is trained, in the words of the source."""


@functools.cache
def published_rows(backbone: str) -> list[PublishedRow]:
    """Return the published rows of a backbone in the order of the file; an empty list if there are none.

    Args:
        backbone: full timm name, such as vit_base_patch16_224.mae.
    """
    return [row for row in _all_rows() if backbone in row.backbones]


@functools.cache
def _all_rows() -> tuple[PublishedRow, ...]:
    path = Path(__file__).with_name("published.json")
    # The file lies beside this module, in an installed package too.
    content = json.loads(path.read_text(encoding="utf-8"))

    return tuple(PublishedRow(**row | {"backbones": tuple(row["backbones"])}) for row in content["rows"])
