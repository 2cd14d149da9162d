"""Tasks, backbones and methods as tables: one row each, nothing imported but the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A classification task with its official split sizes; `trainval` is train and val together."""

    name: str
    group: str
    """The group that reports average over."""
    num_classes: int
    num_train: int
    num_val: int
    num_test: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneRow:
    """A frozen network by its full timm name."""

    name: str
    num_patches: int
    """Patch tokens of one image, N."""
    readout: Literal["mean", "cls"]
    """What the head reads: the mean of all tokens but CLS (MAE), or the CLS token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How the network is adapted."""

    name: str
    prompted_layers: Literal["all", "first", "none"]
    prompt_inits: tuple[str, ...]
    """The strategies that may give the prompt its first value; with one only, there is nothing to choose."""
    prompt_dropout: float = 0.0


PROTOTYPE_INITS = ("random", "mean_pool", "max_pool", "kmeans")

TASKS = {
    task.name: task
    for task in (
        Task(name="demo/digits", group="demo", num_classes=10, num_train=800, num_val=200, num_test=797),
        Task(name="demo/shapes_loc", group="demo", num_classes=16, num_train=800, num_val=200, num_test=2000),
        Task(name="demo/shapes_ori", group="demo", num_classes=16, num_train=800, num_val=200, num_test=2000),
    )
}

BACKBONES = {row.name: row for row in (BackboneRow(name="vit_nano_patch4_32.mae", num_patches=64, readout="mean"),)}

METHODS = {
    method.name: method
    for method in (
        Method(name="spt_deep", prompted_layers="all", prompt_inits=PROTOTYPE_INITS),
        Method(name="spt_shallow", prompted_layers="first", prompt_inits=PROTOTYPE_INITS),
        Method(name="vpt_deep", prompted_layers="all", prompt_inits=("uniform",), prompt_dropout=0.1),
        Method(name="linear", prompted_layers="none", prompt_inits=()),
    )
}
