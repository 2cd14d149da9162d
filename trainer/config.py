"""`TrainConfig`: everything that the result of one training run depends on. Standard library only."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from trainer.catalog import BACKBONES, BUNDLED, METHODS, BackboneRow
from trainer.method_rules import method_problems
from trainer.metric_names import accuracy_of
from trainer.validation import number_problem, rule_problems, type_problem, unknown_name

NEWER_FIELDS = frozenset(
    {"val_size", "draw", "train_on", "eval_every", "final_norm"}
    | {"lora_rank", "adapter_dim", "adapter_form", "gate_init", "fourier_share", "bpt_rank"}
    | {"key_value_length"}
)
"""Fields that version 0.1.0 did not have. A fingerprint leaves them out at their defaults, so that the trials of old
sweeps keep their ids. Add every new field here."""


class InvalidConfig(ValueError):
    """Values that break the rules of a TrainConfig, with every problem by field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{field}: {problem}" for field, problem in problems.items()))
        self.problems = dict(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run: what is trained, on which images, and how. A config that exists is valid.

    The docstrings of the fields are the help of `python -m trainer`.

    Raises:
        InvalidConfig: with every problem at once. Each names the rule, the value and the way out.
    """

    task: str
    """Task to train on, such as demo/digits or vtab/dtd; `sptune data list` lists them."""

    backbone: str = BUNDLED
    """Frozen ViT, by its full timm name; `sptune backbones` lists them."""

    method: str
    """spt_deep or spt_shallow: prompts that start from prototypes of the training images, in every layer or in the
    first. vpt_deep or vpt_shallow: prompts that start from random values. linear: no prompts, only the head is trained.
    full: no prompts, the whole network is trained. bias: the network's biases are trained. partial_1: its last block.
    lora, ssf, adapter: small layers in each block are trained. gate_vpt: prompts at the first layer, with gates between
    layers. vfpt: prompts at every layer, some as their Fourier transform. bpt_deep or bpt_shallow: prompts that are a
    product of two matrices. e2vpt_unpruned: prompts, and keys and values beside them, in every layer.
    gate_vpt_prototypes or e2vpt_unpruned_prototypes: the same methods with prompts that start as those of spt do."""

    prompt_length: int | None = None
    """Prompt tokens per prompted layer. Required for methods with prompts, not allowed for others."""

    prompt_init: str | None = None
    """How a prompt starts. spt methods, and those with prototypes in their name: random, mean_pool, max_pool or kmeans
    of the patch tokens. Other methods with prompts: uniform."""

    init_images: float | int = 1.0
    """Images that prototypes are made of: a share (0.1, 1.0) or a number (1, 200) of the training images."""

    init_task: str | None = None
    """Make the prototypes of the images of another task (an ablation in the SPT paper)."""

    lora_rank: int = 8
    """Rank of what lora adds to the query and value projections of each block."""

    adapter_dim: int = 64
    """Width of the bottleneck in each adapter."""

    adapter_form: Literal["sequential", "parallel"] = "sequential"
    """Where an adapter stands. sequential: behind the MLP of its block. parallel: beside it, as in AdaptFormer."""

    gate_init: float = 5.0
    """Initial value of the gates of gate_vpt, before the sigmoid. Its paper searches 1 to 20."""

    fourier_share: float = 0.5
    """Share of the prompt tokens that vfpt replaces by their Fourier transform, 0 to 1."""

    bpt_rank: int = 75
    """Rank of the prompts of bpt_deep and bpt_shallow, which are a product of two matrices."""

    key_value_length: int = 5
    """Number of the keys and values that e2vpt_unpruned learns in each block."""

    train_size: float | int | str = 1.0
    """Training images to use: a share (0.1, 1.0), a number (200), or a number of each class (5 per class)."""

    val_size: Literal["full", "same"] = "full"
    """Val images to use if train_size is a part. full: all. same: the same share of val as of train, with at least one
    image of each class."""

    draw: int = 0
    """Which random draw of the images train_size takes. Each number is another draw."""

    eval_split: Literal["val", "test"] = "val"
    """val: train on train, score on val after every eval_every-th epoch and after the last. test: train on the split of
    train_on, score on test once, after the last epoch."""

    train_on: Literal["trainval", "train"] = "trainval"
    """With eval_split test: train on train and val together, or on train alone."""

    eval_every: int = 1
    """With eval_split val: score on val after every so many epochs, and after the last. A number of epochs or more
    means after the last alone. What is learnt does not change."""

    transform: Literal["spt", "vpt"] = "spt"
    """How an image becomes a square. spt: resize and crop, bicubic, keeps the aspect ratio. vpt: squash, bilinear."""

    normalize: Literal["backbone", "imagenet"] = "backbone"
    """Mean and std of the pixels. backbone: those the backbone was trained with. imagenet: those of ImageNet for
    every backbone, as both papers do."""

    final_norm: Literal["pretrained", "fresh"] = "pretrained"
    """Last norm before the head. pretrained: the backbone's. fresh: a new one with weight 1 and bias 0, as in VPT's
    code for MAE. full trains it; bias and ssf train what they have in it."""

    image_size: int | None = None
    """Side of the square in pixels, if not the backbone's usual one. Position embeddings are resampled to it."""

    epochs: int = 100
    """Passes over the training images."""

    warmup_epochs: int = 10
    """Epochs in which the learning rate rises from 0 to lr. After them it falls along half a cosine."""

    batch_size: int = 32
    """Images per step. The last partial batch of an epoch is dropped."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw: AdamW with torch's betas (SPT). sgd: SGD with momentum 0.9 (VPT)."""

    lr: float = 5e-2
    """Peak learning rate of the head and of all else that is trained."""

    weight_decay: float = 1e-2
    """Weight decay of what is trained besides the head. Biases, norms, scales and shifts have none."""

    head_weight_decay: float = 0.5
    """Weight decay of the head's weight. The head's bias has none."""

    drop_path: float = 0.0
    """Stochastic depth: probability that a branch of the last block is dropped in training. It falls linearly to 0
    at the first block."""

    ema_decay: float | None = None
    """Decay of a moving average of the learnable weights, such as 0.9999 (SPT's reference code). The average is
    scored too, as accuracy_ema. No average if not given."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; tf32: products of a GPU in TF32, on a CPU the same as fp32; or bf16: autocast in forward and backward.
    Learnable weights, optimizer and prototypes are in fp32 always."""

    nmi: bool = False
    """Measure the normalized mutual information of prompts and patch tokens before the first step and after each
    epoch (SPT, figure 2)."""

    measure_peeking: bool = False
    """With eval_split test: score on test after every epoch too, and report how much choosing the best epoch
    on test would have gained (peeking/gain). The result of the run does not change."""

    seed: int = 42
    """Seed of head, prototypes, data order, crops and dropout."""

    def __post_init__(self) -> None:
        type_problems: dict[str, str] = {}
        for name, kind in field_types().items():
            problem = type_problem(kind, getattr(self, name))
            if problem:
                type_problems[name] = problem

        # The rules compare values, so those of a wrong type are replaced by defaults. Every other problem is still
        # found, and all are reported at once.
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {"task": "", "method": ""}
        values = {name: defaults[name] if name in type_problems else getattr(self, name) for name in field_types()}
        config = SimpleNamespace(**values)
        problems = dict(rule_problems(config)) | dict(method_problems(config, defaults)) | type_problems
        if problems:
            raise InvalidConfig(problems)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> TrainConfig:
        """Return the config of plain values from outside: a spec, a file, a command line.

        If a method has one init strategy only, `prompt_init` may be left out.

        Raises:
            InvalidConfig: as the constructor does, and for unknown names.
        """
        types = field_types()
        problems = {name: unknown_name(name, types, "a TrainConfig field") for name in params.keys() - types}
        problems |= {name: "is missing." for name in ("task", "method") if name not in params}

        values: dict[str, Any] = {}
        for name, value in params.items():
            if name in types:
                # A whole number will do for a float. Fields that take both are left alone: 1.0 is a share, 1 a number.
                # One that is too large for a float has a problem, which the constructor finds.
                is_float = types[name] is float and type(value) is int and number_problem(value) is None
                values[name] = float(value) if is_float else value

        method = METHODS.get(str(params.get("method")))
        if method is not None and len(method.prompt_inits) == 1 and values.get("prompt_init") is None:
            values["prompt_init"] = method.prompt_inits[0]

        try:
            config = cls(**{"task": "", "method": ""} | values)
        except InvalidConfig as error:
            problems = error.problems | problems

        if problems:
            raise InvalidConfig(problems)
        return config

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return a config that was valid when it was stored, without checking it again.

        What is stored must stay readable when a rule or a catalog changes. Fields that did not exist then have their
        defaults; fields that no longer exist are dropped.
        """
        # Past the constructor, which would check the rules of today.
        config = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(config, field.name, values.get(field.name, field.default))
        return config

    def fingerprint(self) -> str:
        """Return twelve hex digits of the content: the id of this config's trial. Equal configs have equal ids."""
        # Adding 0.0 makes -0.0 to 0.0, which is equal but is written in another way; so is 1 for 1.0.
        values = {
            name: float(value) + 0.0 if field_types()[name] is float else value
            for name, value in dataclasses.asdict(self).items()
        }

        # The backbone's own size may be left out or given: the run is the same.
        values["image_size"] = self.pixels

        # A run that does not use a newer field keeps the id that it had before the field existed.
        for field in dataclasses.fields(self):
            if field.name in NEWER_FIELDS and values[field.name] == field.default:
                del values[field.name]

        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def stream_seed(self, purpose: str, epoch: int = 0) -> int:
        """Return the seed of one stream of random numbers. Each purpose and each epoch has its own.

        Seven bytes: torch takes no seed of 2^63 or more.
        """
        return int.from_bytes(hashlib.sha256(f"{self.seed} {purpose} {epoch}".encode()).digest()[:7], "big")

    @property
    def backbone_row(self) -> BackboneRow:
        """Row of the backbone in the catalog."""
        return BACKBONES[self.backbone]

    @property
    def pixels(self) -> int:
        """Side of the square that the network sees, in pixels."""
        return self.image_size or self.backbone_row.image_size

    @property
    def train_split(self) -> Literal["train", "trainval"]:
        """Split of the training images. Only a run that is scored on test may train on val."""
        return "train" if self.eval_split == "val" else self.train_on

    @property
    def eval_metric(self) -> str:
        """Name of the metric that is the run's result, at its last epoch."""
        return accuracy_of(self.eval_split)

    def is_scored(self, epoch: int) -> bool:
        """Return whether the run is scored after an epoch, counted from 1."""
        is_due = self.eval_split == "val" and epoch % self.eval_every == 0
        return is_due or epoch == self.epochs


@functools.cache
def field_types() -> dict[str, Any]:
    """Return the fields of TrainConfig and their types."""
    return typing.get_type_hints(TrainConfig)


def unused_fields(method: str) -> frozenset[str]:
    """Return the fields that have no effect on a method. A search over them would waste trials."""
    row = METHODS[method]
    unused = {name for other in METHODS.values() for name in other.fields} - {*row.fields}
    if not row.has_prototypes:
        unused |= {"prompt_init", "init_images", "init_task"}
    if row.prompted_layers == "none":
        unused |= {"prompt_length", "nmi"}
    if not row.has_weight_decay:
        unused.add("weight_decay")
    return frozenset(unused)
