"""`TrainConfig`: everything one training run depends on. If one exists, it is valid. Standard library only."""

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
from trainer.validation import rule_problems, type_problem, unknown_name


class InvalidConfig(ValueError):
    """Values that no training run can have: every problem, by field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{field}: {problem}" for field, problem in problems.items()))
        self.problems = dict(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run: what is trained, on what, how.

    Raises:
        InvalidConfig: with every problem at once; each names the rule, the value and the way out.
    """

    task: str
    """Name of the task, such as demo/digits."""

    backbone: str = BUNDLED
    """Full timm name of the frozen ViT; `sptune backbones` lists them."""

    method: str
    """spt_deep, spt_shallow (prompts start as prototypes), vpt_deep, vpt_shallow (at random), linear (no prompts),
    or full (no prompts, the whole network learns)."""

    prompt_length: int | None = None
    """Prompt tokens per prompted layer; none for linear and full."""

    prompt_init: str | None = None
    """Where the prompt starts: random, mean_pool, max_pool or kmeans (SPT); uniform (VPT)."""

    init_images: float | int = 1.0
    """Images that prototypes are made of: a share (0.1, 1.0) or a number (1, 200) of the training images."""

    init_task: str | None = None
    """Another task, whose images the prototypes are made of instead (SPT's ablation)."""

    train_size: float | int | str = 1.0
    """Training images that are used: a share (0.1, 1.0), a number (200), or a number of each class (5 per class)."""

    eval_split: Literal["val", "test"] = "val"
    """val: train on train, score on val each epoch. test: train on trainval, score on test once, at the end."""

    transform: Literal["spt", "vpt"] = "spt"
    """How an image becomes a square: spt keeps its shape and crops (bicubic), vpt squashes (bilinear)."""

    normalize: Literal["backbone", "imagenet"] = "backbone"
    """The mean and std that the backbone was trained with, or ImageNet's for all (both papers)."""

    image_size: int | None = None
    """Side of the square in pixels, if not the backbone's own; position embeddings are resampled."""

    epochs: int = 100
    """Passes over the training images."""

    warmup_epochs: int = 10
    """Epochs over which the learning rate rises from 0; then it falls along half a cosine."""

    batch_size: int = 32
    """Images per step; the last partial batch of an epoch is dropped."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw with torch's betas (SPT), or sgd with momentum 0.9 (VPT)."""

    lr: float = 5e-2
    """Peak learning rate of prompt and head."""

    weight_decay: float = 1e-2
    """Weight decay of the prompt (full: of the network's weights); without effect for linear."""

    head_weight_decay: float = 0.5
    """Weight decay of the head's weight; its bias has none."""

    drop_path: float = 0.0
    """Stochastic depth: how often the last block's branches are left out in training; earlier blocks less often."""

    ema_decay: float | None = None
    """Decay of a moving average of what learns (SPT's reference: 0.9999), scored as accuracy_ema; none: no average."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast in forward and backward; what learns and the optimizer stay in fp32."""

    nmi: bool = False
    """Whether to measure each epoch how much prompts know of patch tokens (SPT, figure 2)."""

    measure_peeking: bool = False
    """Whether a run that is scored on test is scored there after every epoch too, to tell what choosing the best of
    them would have gained (peeking/gain); its own result does not change."""

    seed: int = 42
    """Decides head, prototypes, data order, crops and dropout."""

    def __post_init__(self) -> None:
        found = [(name, type_problem(kind, getattr(self, name))) for name, kind in field_types().items()]
        wrong = {name: problem for name, problem in found if problem}
        # Rules are checked on what has the right type, with defaults for the rest.
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {"task": "", "method": ""}
        stand_ins = {name: defaults[name] for name in wrong}
        values = {name: stand_ins.get(name, getattr(self, name)) for name in field_types()}
        broken = dict(rule_problems(SimpleNamespace(**values)))
        if problems := broken | wrong:
            raise InvalidConfig(problems)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> TrainConfig:
        """The config of plain values from outside (a spec, a record, a command line).

        Fills in the one init strategy of a method that has no choice.

        Raises:
            InvalidConfig: as the constructor, and for names that are no fields.
        """
        problems = {
            name: unknown_name(name, field_types(), "a TrainConfig field") for name in params.keys() - field_types()
        }
        problems |= {name: "is missing." for name in ("task", "method") if name not in params}
        values: dict[str, Any] = {
            name: float(value) if field_types()[name] is float and type(value) is int else value
            for name, value in params.items()
            if name in field_types()
        }
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

        A record must stay readable when a rule or a catalog changes. Fields that did not exist then have their
        defaults; fields that no longer exist are dropped.
        """
        config = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(config, field.name, values.get(field.name, field.default))
        return config

    def fingerprint(self) -> str:
        """Twelve hex digits of the content: the id of the trial that this config is."""
        values = {
            name: float(value) + 0.0 if field_types()[name] is float else value  # 1 is 1.0, and -0.0 is 0.0
            for name, value in dataclasses.asdict(self).items()
        }
        values["image_size"] = self.pixels
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def stream_seed(self, purpose: str, epoch: int = 0) -> int:
        """The seed of one stream of random numbers: no two purposes or epochs share theirs."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {purpose} {epoch}".encode()).digest()[:7], "big")

    @property
    def backbone_row(self) -> BackboneRow:
        """The backbone's row of the catalog."""
        return BACKBONES[self.backbone]

    @property
    def pixels(self) -> int:
        """Side of the square that the network sees."""
        return self.image_size or self.backbone_row.image_size

    @property
    def train_split(self) -> Literal["train", "trainval"]:
        """The split that is learnt from: nothing that is scored on test is chosen on it."""
        return "train" if self.eval_split == "val" else "trainval"

    @property
    def eval_metric(self) -> str:
        """Name of the metric that judges this run, at its last epoch."""
        return f"{self.eval_split}/accuracy"


@functools.cache
def field_types() -> dict[str, Any]:
    """The fields of TrainConfig and their types."""
    return typing.get_type_hints(TrainConfig)


def unused_fields(method: str) -> frozenset[str]:
    """Fields that a method leaves without effect, so that nobody searches them."""
    row = METHODS[method]
    unused = set() if len(row.prompt_inits) > 1 else {"prompt_init", "init_images", "init_task"}
    if row.prompted_layers == "none":
        unused |= {"prompt_length", "nmi"} | (set() if row.backbone_learns else {"weight_decay"})
    return frozenset(unused)
