"""Parts of a spec about machines: what a trial occupies, and addresses of a cluster."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from orchestrator.redaction import SECRET_VARIABLES, has_secret, redact
from orchestrator.spec.fields import SpecPart, at_most, check_number, is_recorded
from trainer.catalog import BACKBONES
from trainer.validation import number_problem, short_repr, unknown_name

MOST_CORES = 10_000
"""Most CPU cores or GPUs of one trial, which runs on one node."""
LEAST_SHARE = 0.0001
"""Smallest share of a GPU that Ray knows."""


def _check_text(value: str, info: ValidationInfo) -> str:
    """Return a name or an address that is not blank, and that a command line and a file name can hold."""
    if (not value.strip() or not value.isprintable()) and not is_recorded(info):
        raise ValueError(
            f"must be text without control characters, got {short_repr(value)}; leave the key out for none."
        )

    return value


def _check_address(value: str, info: ValidationInfo) -> str:
    if has_secret(value):
        raise ValueError(
            f"{redact(value)} holds a secret, and the study database keeps the spec where everyone can read it. "
            f"Leave the secret out, and set {SECRET_VARIABLES[str(info.field_name)]} instead."
        )

    return value


def _check_gpus(value: object, info: ValidationInfo) -> object:
    if value == "auto":
        return value

    problem = number_problem(value)
    if problem is None:
        gpus = float(str(value))
        # As Ray takes them: a share of one GPU, or whole ones.
        is_share = gpus == 0 or LEAST_SHARE <= gpus <= 1
        is_whole = 1 < gpus <= MOST_CORES and gpus == math.floor(gpus)
        if is_share or is_whole or is_recorded(info):
            return gpus

    rule = "must be a share of a GPU such as 0.25, a whole number of GPUs, or auto"
    raise ValueError(f"{rule}; got {short_repr(value)}.")


Text = Annotated[str, AfterValidator(_check_text)]
Address = Annotated[Text, AfterValidator(_check_address)]
Cores = Annotated[int, BeforeValidator(check_number), at_most(MOST_CORES)]
Gpus = Annotated[float | Literal["auto"], BeforeValidator(_check_gpus)]


class TrialResources(SpecPart):
    """What one trial occupies."""

    cpus: Cores = Field(default=1, ge=1)
    """CPU cores, such as 4."""
    gpus: Gpus = 0.0
    """GPUs, such as 1 or 0.25, or auto. With auto, a trial gets a whole GPU until trials like it were measured. From
    then on, as many trials share a GPU as are faster together and fit into its memory, if MPS runs on each node. Which
    trials share a GPU changes no result."""
    accelerator_type: Text | None = None
    """Type of GPU by Ray's name, such as A100 or H100. Without it, any type."""

    @property
    def initial_gpus(self) -> float:
        """The share of a GPU that a trial begins with."""
        return 1.0 if self.gpus == "auto" else self.gpus


class ResourceOverride(SpecPart):
    """What trials on one backbone occupy, where it differs."""

    cpus: Cores | None = Field(default=None, ge=1)
    """CPU cores; without it, as for all backbones."""
    gpus: Gpus | None = None
    """GPUs or auto; without it, as for all backbones."""
    accelerator_type: Text | None = None
    """Type of GPU; without it, as for all backbones."""


class Resources(TrialResources):
    """What one trial occupies."""

    backbones: dict[str, ResourceOverride] = Field(default={})
    """Backbones whose trials occupy something else. Example: {vit_large_patch16_224.mae: {gpus: 1}}."""
    mix_devices: bool = True
    """Whether the trials of a study may run on different kinds of devices, such as two models of GPU. Their results
    differ in the last bits, and the report names both. With false, a study stays on the kind of its first trials: the
    sweep stops when a worker has another one."""
    engine: Literal["auto", "eager"] = "auto"
    """What runs training steps on a GPU. auto takes the fastest of eager, compiled blocks and CUDA graphs whose losses
    and gradients agree with eager's there. A CPU is always eager."""

    def for_backbone(self, backbone: str) -> TrialResources:
        """Return what a trial on this backbone occupies."""
        override = self.backbones.get(backbone, ResourceOverride())
        # Not a copy of self, which also has the overrides.
        common = {name: getattr(self, name) for name in TrialResources.model_fields}

        return TrialResources(**(common | override.model_dump(exclude_none=True)))


class Cluster(SpecPart):
    """Addresses, for sweeps on more than one machine. Command-line options and environment variables come first."""

    home: Address | None = None
    """Home folder that all nodes share, or a bucket, such as s3://bucket/folder."""
    studies: Address | None = None
    """Study database, such as postgresql+psycopg://user@host/database. Without it, a file in the home."""
    mlflow: Address | None = None
    """MLflow tracking server, such as http://host:5000. Without it, a database in the home."""
    data: Address | None = None
    """Folder or bucket with the tasks. Without it, `data` in the home."""
    weights: Address | None = None
    """File or folder with the weights of backbones. Without it, timm downloads them."""
    address: Text | None = None
    """Ray cluster: host:6379, or auto for the cluster that this machine belongs to. Without it, this machine alone."""
    workers: Cores | None = Field(default=None, ge=1)
    """Number of concurrent trials up to which the cluster may grow. Without it, as many as fit on its nodes."""


def resource_problems(resources: Resources, backbones: list[str]) -> list[str]:
    """Return a sentence for each backbone that has resources of its own but is not in the sweep."""
    return [
        f"resources.backbones.{name}: {unknown_name(name, backbones, 'a backbone of this spec')}"
        for name in resources.backbones
        if name not in backbones or name not in BACKBONES
    ]
