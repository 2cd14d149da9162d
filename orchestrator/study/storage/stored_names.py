"""Names and version of the data in the study database.

Every value that sptune stores has a name in one of these maps. A key is the name in the code, a value is the name in
the database: rename keys freely, but never change a value. Values that a user chooses keep the user's names: the
recorded spec and the settings have the keys of the YAML file, a trial's config has the fields of `TrainConfig`.

Raise `SCHEMA_VERSION` only if an older sptune would misread the new data. A new attribute with a default and a new
key of a spec do not need it. Version 1 is the only version so far and is read directly, so there is no upgrade step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UserError

SCHEMA_VERSION = 1
"""Version of the data that this code writes, and the newest that it reads. Sweeps without a version have version 1."""

SWEEP_ATTRS = {
    "spec": "spec",
    "halt_reason": "halt",
    "schema_version": "schema_version",
    "sweep_id": "sweep_id",
    "notified": "notified",
}
"""User attributes of a sweep's own Optuna study."""

DRIVER_ATTRS = {
    "host": "host",
    "pid": "pid",
    "born": "born",
    "since": "since",
    "seconds": "seconds",
    "stop": "stop",
    "boot": "boot",
    "namespaces": "namespaces",
    "start_ticks": "start_ticks",
}
"""User attributes of a driver, which is a trial of the sweep's own Optuna study."""

STUDY_ATTRS = {
    "settings": "settings",
    "stop_reason": "stopped",
    "transferred_params": "transferred",
    "mlflow_run": "mlflow_run",
    "synced_digest": "shown",
    "replaces": "replaces",
}
"""User attributes of the Optuna study of a study's search or final trials."""

SYNCED_RUN_PREFIX = "mlflow/"
"""First part of the user attribute with a trial's MLflow run. The trial's number follows."""

TRIAL_ATTRS = {
    "error": "error",
    "cause": "cause",
    "attempt": "attempt",
    "failures": "failures",
    "losses": "losses",
    "gpu_share_factor": "share",
    "lost_seconds": "wasted_s",
    "duplicate_of": "duplicate_of",
}
"""Fields of `Trial` that are user attributes of an Optuna trial, left out where they equal the field's default."""

TRIAL_ID = "trial_id"
CONFIG = "config"

HISTORY = "history"
"""User attribute with the metrics of every epoch. It is most of the size of a trial."""

LAST_VALUES = "came"
"""User attribute with the last value of every metric, and with the provenance."""

HISTORY_KEYS = {"epochs": "epochs", "sampler_attrs": "notes"}
"""Keys of the value of `HISTORY`."""

LAST_VALUES_KEYS = {"last_metrics": "last", "provenance": "facts"}
"""Keys of the value of `LAST_VALUES`."""


def check_version(sweep: str, attributes: Mapping[str, Any]) -> None:
    """Raise UserError if a newer sptune wrote a sweep.

    Args:
        attributes: user attributes of the sweep's own Optuna study.
    """
    # Written with the sweep, not with each trial: a driver upgrades a sweep as a whole.
    version = attributes.get(SWEEP_ATTRS["schema_version"], 1)

    if version > SCHEMA_VERSION:
        raise UserError(
            f"{sweep} was written by a newer version of sptune: its schema_version is {version}, and this version "
            f"reads at most {SCHEMA_VERSION}. Upgrade sptune on this machine to the version that wrote it."
        )


def table_name(sweep: str, study_key: str, phase: str) -> str:
    """Return the name of the Optuna study that holds one phase of a study."""
    return f"{sweep}: {study_key} {phase}"


def belongs_to_sweep(name: str, sweep: str) -> bool:
    """Whether an Optuna study is the sweep's own or holds trials of it."""
    return name == sweep or name.startswith(f"{sweep}: ")


def copy_name(name: str, copy: int) -> str:
    """Return the name of a rewritten table. The first table is copy 1 and has the plain name."""
    return f"{name} ({copy})"


def split_copy_name(name: str) -> tuple[str, int]:
    """Return the name of the table and the number of the copy."""
    match = re.fullmatch(r"(.*?)(?: \((\d+)\))?", name)
    assert match is not None, "both groups may be empty, so every name matches"
    return match[1], int(match[2] or 1)
