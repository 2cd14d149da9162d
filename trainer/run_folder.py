"""Names of the files in a run's folder, and the card that describes the run.

`trainer.load` makes a classifier of `prompt.safetensors` and `card.json`. The other files explain it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainConfig

CARD = "card.json"
CHECKPOINT = "checkpoint.pt"
LOG = "log.txt"
PREDICTIONS = "predictions.parquet"
PROMPT = "prompt.safetensors"
"""The learnt tensors: prompt, head and, with `full`, the network."""
PROTOTYPES = "prototypes.safetensors"
"""The prompt's initial value."""

LEARNING_CURVE_PLOT = "learning_curve.png"
CONFUSION_PLOT = "confusion.png"
PROTOTYPES_PLOT = "prototypes.png"

SCHEMA_VERSION = 1
"""Version of `card.json`. Cards without one are of version 1."""


class NewerVersion(ValueError):
    """A file that a newer version of sptune wrote. It is not damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCard:
    """Facts of a finished run, written as `card.json` after every other file but the checkpoint."""

    config: TrainConfig
    class_names: list[str]
    backbone_sha256: str
    backbone_part: str = ""
    """Which of several networks in the weights file was taken; empty for the only one."""
    learnt_from: str
    """Fingerprint of the training images."""
    scored_on: str
    """Fingerprint of the images that the run was scored on."""
    protocol: str
    """How the task's splits were made."""
    learnable: dict[str, list[int]]
    """Shapes of the learnable tensors, by name."""
    prototypes_seconds: float
    arithmetic: str = ""
    """What decides the last bits, such as `bf16, flash attention, eager`; empty before 0.2.0."""
    rejected_engines: str = ""
    """Which faster engines of the training step were not used, and why."""
    metrics: dict[str, float]
    """Metrics of the last epoch."""

    def to_values(self) -> dict[str, Any]:
        """Return the content of `card.json`, without its checksum."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: bytes) -> RunCard:
        """Return the card of a `card.json`.

        Raises:
            NewerVersion: if a newer version of sptune wrote the card.
            ValueError: if the text is not a card.
        """
        # Errors of JSON that is cut short, or is not what a card holds: a list, a key less, a value of another type.
        unreadable = (ValueError, KeyError, TypeError, AttributeError)
        try:
            values: dict[str, Any] = json.loads(data)
            is_newer = values.get("schema_version", 1) > SCHEMA_VERSION
        except unreadable as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

        # Before any other key: a newer version may have renamed them.
        if is_newer:
            raise NewerVersion(
                f"schema_version is {values['schema_version']}, and this version of sptune reads up to "
                f"{SCHEMA_VERSION}; upgrade sptune"
            )

        try:
            # Cards of earlier versions lack the fields that have a default.
            fields = {
                field.name: values[field.name]
                for field in dataclasses.fields(cls)
                if field.name in values or field.default is dataclasses.MISSING
            }
            fields["config"] = TrainConfig.from_params(values["config"])
        except unreadable as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return cls(**fields)
