"""The training loop: one long function, told in the order of the paper.

Shapes: B batch, L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from trainer.backbone import Backbone, load_backbone
from trainer.catalog import METHODS, TASKS
from trainer.checkpoint import load_state, save_state
from trainer.config import TrainConfig
from trainer.data.store import Split, load_split
from trainer.metrics import accuracy, in_batches
from trainer.prompts import PromptedViT, uniform_prompt
from trainer.prototypes import TokenStream, build_prototypes
from trainer.storage import write_bytes

MIN_LR = 1e-8


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the same config would diverge again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """train/loss, train/lr, train/images_per_s, and val/accuracy or, at the last epoch, test/accuracy."""


def train(
    config: TrainConfig, *, data_root: str, device: str = "cpu", folder: str | None = None
) -> Iterator[EpochMetrics]:
    """Train prompt and head, yielding each epoch's metrics after they are safe.

    With a `folder` (path or URI), it holds a checkpoint an epoch, `prototypes.safetensors`, and at the end
    `prompt.safetensors` (prompt and head). A call that finds a checkpoint there yields the finished epochs
    again and goes on; the end is bit for bit that of a run never interrupted.

    Raises:
        TrainingDiverged: if the loss is NaN or infinite, with epoch, loss and lr.
        ValueError: if the images are too few for a batch or the checkpoint is of another config.
        OSError: if data or folder cannot be read or written.
    """
    # Data and network.
    backbone = load_backbone(config.backbone, device)
    load = functools.partial(load_split, data_root, config.task, image_size=backbone.image_size, device=device)
    learnt_from = load(config.train_split, config.train_size)
    num_images = len(learnt_from.labels_N)
    steps_per_epoch = num_images // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {num_images} images of {config.task} "
            f"{config.train_split} at train_size={config.train_size}; use a smaller batch_size."
        )

    # The prompt's first value, and the model around it.
    first_LPD = first_prompt(config, backbone, learnt_from.images_NCHW, data_root)
    model = PromptedViT(
        backbone,
        num_classes=TASKS[config.task].num_classes,
        prompt_LPD=first_LPD,
        prompt_dropout=METHODS[config.method].prompt_dropout,
        generator=torch.Generator().manual_seed(stream_seed(config.seed, "head")),
    ).to(device)

    # With no prompt nothing below the head learns: the network's features take the images' place, computed once.
    network = model if config.prompt_length else model.head

    @functools.cache
    def inputs_of(split: Split) -> Tensor:
        return split.images_NCHW if config.prompt_length else in_batches(model.features, split.images_NCHW)

    # AdamW: one decay for the prompt, one for the head's weight, none for its bias.
    learnable = model.learnable()
    decay = {"prompt": config.weight_decay, "head.weight": config.head_weight_decay, "head.bias": 0.0}
    optimizer = torch.optim.AdamW([{"params": [p], "weight_decay": decay[name]} for name, p in learnable.items()])

    # Where an earlier attempt left off.
    finished: list[EpochMetrics] = []
    if folder is not None and (state := load_state(f"{folder}/checkpoint.pt")) is not None:
        if state["config"] != config.fingerprint():
            raise ValueError(f"{folder} holds a checkpoint of another config; choose another folder or remove it.")
        with torch.no_grad():
            for name, parameter in learnable.items():
                parameter.copy_(state["learnable"][name])
        optimizer.load_state_dict(state["optimizer"])
        finished = [EpochMetrics(**epoch) for epoch in state["epochs"]]
    if folder is not None and config.prompt_length:
        write_bytes(f"{folder}/prototypes.safetensors", save({"prompt": first_LPD.cpu().contiguous()}))
    yield from finished

    for epoch in range(len(finished) + 1, config.epochs + 1):
        started = time.perf_counter()
        # Order and dropout come from (seed, epoch) alone: an epoch does not know whether it was resumed.
        order = torch.Generator().manual_seed(stream_seed(config.seed, "order", epoch))
        torch.manual_seed(stream_seed(config.seed, "dropout", epoch))
        model.train()
        total_loss = torch.zeros((), device=device)
        batches = torch.randperm(num_images, generator=order).to(device).split(config.batch_size)
        for step, rows_B in enumerate(batches[:steps_per_epoch]):
            lr = lr_at(epoch - 1 + step / steps_per_epoch, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(network(inputs_of(learnt_from)[rows_B]), learnt_from.labels_N[rows_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.detach()
        train_loss = total_loss.item() / steps_per_epoch
        if not (math.isfinite(train_loss) and all(p.isfinite().all() for p in learnable.values())):
            raise TrainingDiverged(
                f"loss or weights became infinite or NaN in epoch {epoch} "
                f"(train/loss={train_loss}, task={config.task}, lr={config.lr}). A smaller lr is the usual cure."
            )
        seconds, seen = time.perf_counter() - started, steps_per_epoch * config.batch_size

        # The last epoch judges a final run; a search run is judged each epoch, on val.
        metrics = {"train/loss": train_loss, "train/lr": lr, "train/images_per_s": seen / seconds}
        last = epoch == config.epochs
        if config.eval_split == "val" or last:
            scored_on = load(config.eval_split, 1.0)
            model.eval()
            metrics[config.metric] = accuracy(network, inputs_of(scored_on), scored_on.labels_N)
        finished.append(EpochMetrics(epoch=epoch, metrics=metrics))

        # Bytes first, then the word that they exist.
        if folder is not None:
            tensors = {name: parameter.detach().cpu() for name, parameter in learnable.items()}
            state = {
                "config": config.fingerprint(),
                "learnable": tensors,
                "optimizer": optimizer.state_dict(),
                "epochs": [dataclasses.asdict(metrics) for metrics in finished],
            }
            if last:
                write_bytes(f"{folder}/prompt.safetensors", save(tensors))
            save_state(f"{folder}/checkpoint.pt", state)
        yield finished[-1]


def lr_at(epoch: float, config: TrainConfig) -> float:
    """Learning rate at a fractional epoch: linear from 0 over the warm-up, then half a cosine to 1e-8."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    floor = min(MIN_LR, config.lr)
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def stream_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """The seed of one stream of random numbers: no two purposes or epochs share theirs."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {epoch}".encode()).digest()[:7], "big")


def first_prompt(config: TrainConfig, backbone: Backbone, images_NCHW: Tensor, data_root: str) -> Tensor:
    """The prompt's first value ``[L, P, D]``: prototypes of the training images (SPT) or uniform (VPT).

    Methods without prompts get ``[0, 0, D]``. Prototypes are kept in the process for the next trial.
    """
    num_layers = {"all": backbone.num_layers, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]
    if config.prompt_length is None:
        return torch.zeros(0, 0, backbone.embed_dim)
    if config.prompt_init == "uniform":
        return uniform_prompt(
            backbone,
            num_layers=num_layers,
            prompt_length=config.prompt_length,
            generator=torch.Generator().manual_seed(stream_seed(config.seed, "prompt")),
        )
    key = (data_root, config.task, config.train_split, config.train_size, backbone.sha256, num_layers)
    choice = (config.prompt_init, config.prompt_length, config.seed)
    if (key, choice) not in _prototypes:
        if len(_prototypes) >= 64:
            _prototypes.clear()
        stream = TokenStream(backbone=backbone, images_MCHW=images_NCHW, num_layers=num_layers)
        _prototypes[key, choice] = build_prototypes(
            stream,
            prompt_init=str(config.prompt_init),
            prompt_length=config.prompt_length,
            seed=stream_seed(config.seed, "prototypes"),
        )
    return _prototypes[key, choice]


_prototypes: dict[tuple[object, ...], Tensor] = {}
