"""What a spec says of machines: what a trial occupies, and where everything is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from orchestrator.redaction import SECRET_VARIABLES, redact
from trainer.catalog import BACKBONES
from trainer.validation import number_problem, unknown_name


def _check_address(value: str, info: ValidationInfo) -> str:
    if redact(value) != value:
        raise ValueError(
            f"{redact(value)} holds a secret, and a spec is kept in the record for all to read. "
            f"Leave it out, and put it into {SECRET_VARIABLES[str(info.field_name)]}."
        )
    return value


def _check_gpus(value: object) -> object:
    if value == "auto":
        return value
    if number_problem(value) is None and float(str(value)) >= 0:
        return float(str(value))
    raise ValueError(f"must be a number of GPUs such as 0.25 or 1, or auto; got {value!r}.")


Address = Annotated[str, AfterValidator(_check_address)]
Gpus = Annotated[float | Literal["auto"], BeforeValidator(_check_gpus)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialResources(_Part):
    """What one trial occupies."""

    cpus: int = Field(default=1, ge=1)
    """CPU cores of one trial."""
    gpus: Gpus = 0.0
    """Of a GPU. auto: a whole one until one like it was measured, then as many share it as its memory holds."""
    accelerator_type: str | None = None
    """The kind of GPU, as Ray names it: A100, H100."""

    @property
    def initial_gpus(self) -> float:
        """The share of a GPU that a trial begins with."""
        return 1.0 if self.gpus == "auto" else self.gpus


class ResourceOverride(_Part):
    """What differs for a backbone; what is not given is as for all."""

    cpus: int | None = Field(default=None, ge=1)
    """CPU cores of one trial on this backbone."""
    gpus: Gpus | None = None
    """GPUs of one trial on this backbone, or auto."""
    accelerator_type: str | None = None
    """Kind of GPU for this backbone."""


class Resources(TrialResources):
    """What one trial occupies, of any backbone and of single ones."""

    backbones: dict[str, ResourceOverride] = {}
    """Different resources for single backbones. Values that are not given are those of all backbones."""

    def for_backbone(self, backbone: str) -> TrialResources:
        """What a trial on this backbone occupies."""
        own = self.backbones.get(backbone, ResourceOverride())
        common = {name: getattr(self, name) for name in TrialResources.model_fields}
        return TrialResources(**(common | own.model_dump(exclude_none=True)))


class Cluster(_Part):
    """Where everything is when one machine is not enough; options and the environment come first."""

    home: Address | None = None
    """Folder that all nodes share, or a bucket: s3://bucket/folder."""
    studies: Address | None = None
    """The record's database: postgresql+psycopg://user@host/database."""
    mlflow: Address | None = None
    """The tracking server: http://host:5000."""
    data: Address | None = None
    """The task store; in the home where it is not given."""
    weights: Address | None = None
    """A file, or a folder of files, with backbones' weights."""
    address: str | None = None
    """The Ray cluster: host:6379, or auto for the one that this machine is a node of."""
    workers: int | None = Field(default=None, ge=1)
    """Trials at once to which the cluster may grow; without it, as many as it holds."""


def resource_problems(resources: Resources, backbones: list[str]) -> list[str]:
    """A sentence for each backbone that has resources of its own and is not in the sweep."""
    return [
        f"resources.backbones.{name}: {unknown_name(name, backbones, 'a backbone of this spec')}"
        for name in resources.backbones
        if name not in backbones or name not in BACKBONES
    ]
