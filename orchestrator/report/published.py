"""Published accuracies, to print beside our own. Needs the standard library only."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
"""Text in the file for what no source gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How the published numbers of one benchmark were made.

    A field holds every value that was used, such as the batch sizes 64 and 128. It is empty if no source gives it.
    """

    name: str
    """Name in the file, such as vpt-prompt-fgvc."""
    train_on: tuple[str, ...]
    """Images of the runs that are scored on test: trainval, or train alone."""
    chosen_on: tuple[str, ...]
    """Split that the params were chosen on: val or test."""
    search: tuple[str, ...]
    """How the params were searched: grid."""
    epoch: tuple[str, ...]
    """Epoch whose test accuracy is reported: last, best_on_val or best_on_test."""
    epochs: tuple[int, ...]
    warmup_epochs: tuple[int, ...]
    batch_size: tuple[int, ...]
    optimizer: tuple[str, ...]
    transform: tuple[str, ...]
    normalize: tuple[str, ...]
    """The last six mean what the fields of TrainConfig with these names mean."""
    evidence: str
    """Where the facts are from."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method on one pre-training, as a paper reports it: test accuracy in percent. Absent values are unknown."""

    backbones: tuple[str, ...]
    """Full timm names of the checkpoints that the row is printed beside."""
    method: str
    """A method of the catalog, or the name of a method that is not implemented here (E2VPT)."""
    source: str
    """Paper and table of the numbers."""
    tasks: dict[str, float]
    """By task name: one run or a mean of several, as in the source."""
    groups: dict[str, float]
    """Printed means over the tasks of a group. A group can be known while its tasks are not."""
    tuned: str | None
    """How much of the network is trained, in the words of the source."""
    protocols: dict[str, Protocol]
    """By benchmark, vtab or fgvc, if the row has numbers of it."""
    checkpoint: str
    """Full timm name of the weights that the numbers were made with, or unknown."""
    settings: dict[str, Any]
    """Fields of a TrainConfig that are known of this row alone, such as the last norm of MAE."""
    beats_full: dict[str, int]
    """Number of tasks of a group on which the method beats full fine-tuning, as printed. Absent counts are unknown."""
    notes: dict[str, str]
    """Remarks on single numbers, by task."""


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

    protocols = {name: _protocol(name, fields) for name, fields in content["protocols"].items()}
    return tuple(_row(row, protocols) for row in content["rows"])


def _protocol(name: str, fields: Mapping[str, Any]) -> Protocol:
    values = {field: _values(value) for field, value in fields.items() if field != "evidence"}
    return Protocol(name=name, evidence=fields["evidence"], **values)


def _values(value: Any) -> tuple[Any, ...]:
    """Return one value or a list of values as a tuple, which is empty for unknown."""
    if value == UNKNOWN:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _row(row: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> PublishedRow:
    return PublishedRow(
        backbones=tuple(row["backbones"]),
        method=row["method"],
        source=row["source"],
        tasks=row["tasks"],
        groups=row["groups"],
        tuned=row["tuned"],
        protocols={benchmark: protocols[name] for benchmark, name in row["protocol"].items()},
        checkpoint=row["checkpoint"],
        settings=row.get("settings", {}),
        beats_full=row.get("beats_full", {}),
        notes=row.get("notes", {}),
    )
