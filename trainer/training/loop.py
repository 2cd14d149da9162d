"""The training loop: one long function, told in the order of the paper.

Shapes: N images, B batch, L prompted layers, P prompt_length, D width, K classes.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from trainer import run_folder
from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.split import Split, load_split
from trainer.data.tasks import open_task
from trainer.data.transforms import random_views
from trainer.metric_names import (
    LEARNABLE_PARAMETERS,
    LEARNABLE_SHARE,
    MICRO_BATCH_SIZE,
    PEEKING_ACCURACY,
    PEEKING_GAIN,
    PROTOTYPES_SECONDS,
    TRAIN_IMAGES,
    TRAIN_IMAGES_PER_S,
    TRAIN_LOSS,
    TRAIN_LR,
)
from trainer.model.backbone import load_backbone
from trainer.model.execution import backward, eval_batch_size, evaluate_in_batches, with_precision
from trainer.model.prompted_vit import PromptedViT
from trainer.prompt_init.initial_prompt import initial_prompt
from trainer.prompt_init.strategies import sample_tokens
from trainer.prompt_init.token_stream import token_stream
from trainer.run_folder import RunCard
from trainer.storage.background_writer import BackgroundWriter
from trainer.training.checkpoint import get_random_state, load_state, pack_state, set_random_state
from trainer.training.feature_cache import frozen_features
from trainer.training.metrics import normalized_mutual_information, predictions, scores
from trainer.training.optimizer import MovingAverage, build_optimizer, lr_at

NMI_TOKENS = 256
"""Patch tokens a layer that prompts are compared with."""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the same config would diverge again."""


class TrainingInterrupted(RuntimeError):
    """It was asked to stop; with a folder, all that it had done is saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """train/loss, train/lr, train/images_per_s; val/accuracy and its kin, or at the last epoch test/...; nmi/layer_00
    and on, peeking/accuracy and peeking/gain if asked for; with the first epoch also train/images,
    learnable/parameters, learnable/share and prototypes/seconds."""
    resumed: bool = field(default=False, compare=False)
    """Whether an earlier attempt trained it, and this one tells it again."""


def train(
    config: TrainConfig,
    *,
    data_root: str,
    device: str = "cpu",
    folder: str | None = None,
    weights: str | None = None,
    prototype_cache: str | None = None,
    cache: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochMetrics]:
    """Train what the method lets learn, yielding each epoch's metrics, the last epoch's after all of it is written.

    With a `folder` (path or URI), it holds a checkpoint an epoch, `prototypes.safetensors`, and at the end
    `predictions.parquet`, `prompt.safetensors` (what was learnt) and `card.json`: `trainer.load` takes it from there.
    A checkpoint is written while the next epoch trains, or before the iterator is closed; who is killed meanwhile
    trains that epoch again. A call that finds a checkpoint yields the finished epochs again and goes on; the end is
    bit for bit that of a run never interrupted.

    Args:
        weights: a file, or a folder of files, in which the backbone's weights are looked for first.
        bank: folder (path or URI) of prototypes that are shared between runs.
        cache: folder on a local disk for decoded images; None for `SPTUNE_CACHE`, or ~/.cache/sptune.
        stop: asked before every step and before scoring; at yes, the epoch under way is saved as far as it is.

    Raises:
        TrainingDiverged: if the loss is NaN or infinite, with epoch, loss and lr.
        TrainingInterrupted: if `stop` said yes.
        ValueError: if the images are too few for a batch, the checkpoint is of another config or network, or the
            weights do not fit (WeightsError).
        OSError: if data, bank or folder cannot be read or written.
    """
    # Data and network.
    method, card = METHODS[config.method], open_task(data_root, config.task)
    augmented = is_augmented(config.task)
    frozen = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    load = functools.partial(
        load_split,
        data_root,
        config.task,
        image_size=config.pixels,
        device=device,
        transform=config.transform,
        cache=cache,
    )
    learnt_from = load(config.train_split, config.train_size, view="whole" if augmented else "fixed")
    num_images = len(learnt_from)
    steps_per_epoch = num_images // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {num_images} images of {config.task} "
            f"{config.train_split} at train_size={config.train_size}; use a smaller batch_size."
        )

    # The prompt's first value, and the model around it.
    first = initial_prompt(config, frozen, learnt_from, data_root=data_root, prototype_cache=prototype_cache)
    model = PromptedViT(
        frozen.variant(learns=method.backbone_learns, drop_path=config.drop_path),
        num_classes=len(card.class_names),
        prompt_LPD=first.prompt_LPD,
        prompt_dropout=method.prompt_dropout,
        head_std=config.backbone_row.head_std,
        generator=torch.Generator().manual_seed(config.stream_seed("head")),
        backbone_learns=method.backbone_learns,
    ).to(device)
    learnable = model.learnable()
    nmi_tokens_LTD = None
    if config.nmi:
        stream = token_stream(config, frozen, learnt_from, len(first.prompt_LPD), 1.0)
        sample = torch.Generator().manual_seed(config.stream_seed("nmi"))
        available = stream.num_images * frozen.num_patches
        nmi_tokens_LTD = sample_tokens(lambda tokens_BND: tokens_BND, stream, min(NMI_TOKENS, available), sample)

    # Where nothing below the head learns or varies, the network's features take the images' place, computed once.
    learns_above_features = not (config.prompt_length or method.backbone_learns or augmented or config.drop_path)
    network = with_precision(model.head if learns_above_features else model, config.precision, device)

    def inputs_of(split: Split, rows_B: Tensor) -> Tensor:
        if learns_above_features:
            return frozen_features(frozen, split, config.precision)[rows_B.to(device)]
        return split.take(rows_B)

    def logits_of(split: Split) -> Tensor:
        tokens = 1 + frozen.num_patches + (config.prompt_length or 0)
        rows = torch.arange(len(split)).split(eval_batch_size(device, tokens))
        return torch.cat([evaluate_in_batches(network, inputs_of(split, rows_B)) for rows_B in rows])

    # Groups with a weight decay each, and the average that is scored beside the weights.
    optimizer = build_optimizer(config, learnable)
    average = MovingAverage(learnable, config.ema_decay) if config.ema_decay else None
    part = config.batch_size  # images at once; less where memory is short
    writer = BackgroundWriter()

    def save(under_way: dict[str, Any] | None) -> None:
        """All that an attempt needs to go on, after an epoch or within one."""
        state = {
            "config": config.fingerprint(),
            "backbone": frozen.sha256,
            "learnable": {name: parameter.detach().cpu() for name, parameter in learnable.items()},
            "average": average.values if average is not None else {},
            "optimizer": optimizer.state_dict(),
            "part": part,
            "epochs": [{"epoch": epoch.epoch, "metrics": epoch.metrics} for epoch in finished],
            "under_way": under_way,
        }
        writer.write(f"{folder}/{run_folder.CHECKPOINT}", pack_state(state))

    def give_way(epoch: int, done: int, loss: Tensor, crops: torch.Generator, started: float) -> None:
        """Save the epoch after some of its steps, and end, if asked to."""
        if stop():
            if folder is not None:
                drawn = {"crops": crops.get_state(), "dropout": get_random_state()}
                save({"done": done, "loss": loss.cpu(), "seconds": time.perf_counter() - started} | drawn)
                writer.wait()
            raise TrainingInterrupted(f"asked to stop in epoch {epoch}, after {done} of {steps_per_epoch} steps.")

    # Where an earlier attempt left off.
    finished: list[EpochMetrics] = []
    under_way: dict[str, Any] | None = None  # of an epoch that was interrupted
    if folder is not None and (state := load_state(f"{folder}/{run_folder.CHECKPOINT}")) is not None:
        for what, known, own in (
            ("config", state["config"], config.fingerprint()),
            ("backbone's weights", state["backbone"], frozen.sha256),
        ):
            if known != own:
                raise ValueError(f"{folder} holds a checkpoint of another {what}; choose another folder or remove it.")
        with torch.no_grad():
            for name, parameter in learnable.items():
                parameter.copy_(state["learnable"][name])
                if average is not None:
                    average.values[name].copy_(state["average"][name])
        optimizer.load_state_dict(state["optimizer"])
        finished, part = [EpochMetrics(**epoch, resumed=True) for epoch in state["epochs"]], state["part"]
        under_way = state["under_way"]
    with writer:  # leaving it, on whatever way, waits for the file that is being written
        if folder is not None and config.prompt_length:
            writer.write(f"{folder}/{run_folder.PROTOTYPES}", to_bytes({"prompt": first.prompt_LPD.contiguous()}))
        yield from finished

        for epoch in range(len(finished) + 1, config.epochs + 1):
            started = time.perf_counter()
            # Order, crops and dropout come from (seed, epoch) alone: an epoch does not know whether it was resumed.
            order = torch.Generator().manual_seed(config.stream_seed("order", epoch))
            crops = torch.Generator().manual_seed(config.stream_seed("crops", epoch))
            torch.manual_seed(config.stream_seed("dropout", epoch))
            model.train()
            order_N = torch.randperm(num_images, generator=order)
            placed_N, labels_N = order_N.to(learnt_from.rows_N.device), learnt_from.labels_N[order_N.to(device)]
            done, total_loss = 0, torch.zeros((), device=device)
            if under_way is not None:
                done, total_loss = under_way["done"], under_way["loss"].to(device)
                started -= under_way["seconds"]
                crops.set_state(under_way["crops"])
                set_random_state(under_way["dropout"])
                under_way = None
            for step in range(done, steps_per_epoch):
                give_way(epoch, step, total_loss, crops, started)
                lr = lr_at(epoch - 1 + step / steps_per_epoch, config)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                rows = slice(step * config.batch_size, (step + 1) * config.batch_size)
                inputs_B = inputs_of(learnt_from, placed_N[rows])
                if learnt_from.view == "whole":
                    aspect_B = learnt_from.aspect_N[order_N[rows]]
                    inputs_B = random_views(inputs_B, aspect_B, config.pixels, config.transform, crops)
                loss, part = backward(network, list(learnable.values()), inputs_B, labels_N[rows], part)
                optimizer.step()
                if average is not None:
                    average.update()
                total_loss += loss
            give_way(epoch, steps_per_epoch, total_loss, crops, started)
            train_loss = total_loss.item() / steps_per_epoch
            if not (math.isfinite(train_loss) and all(p.isfinite().all() for p in learnable.values())):
                raise TrainingDiverged(
                    f"loss or weights became infinite or NaN in epoch {epoch} "
                    f"(train/loss={train_loss}, task={config.task}, lr={config.lr}). A smaller lr is the usual cure."
                )
            seconds, seen = time.perf_counter() - started, steps_per_epoch * config.batch_size
            metrics = {
                TRAIN_LOSS: train_loss,
                TRAIN_LR: optimizer.param_groups[0]["lr"],
                TRAIN_IMAGES_PER_S: seen / seconds,
            }
            if part < config.batch_size:
                metrics[MICRO_BATCH_SIZE] = part
            if epoch == 1:
                count = sum(parameter.numel() for parameter in learnable.values())
                everything = sum(parameter.numel() for parameter in model.parameters())
                metrics |= {LEARNABLE_PARAMETERS: count, LEARNABLE_SHARE: count / everything}
                metrics[TRAIN_IMAGES] = num_images
                metrics |= {PROTOTYPES_SECONDS: first.seconds} if len(method.prompt_inits) > 1 else {}
            if nmi_tokens_LTD is not None:
                pairs = enumerate(zip(model.prompt_LPD.detach(), nmi_tokens_LTD, strict=True))
                metrics |= {f"nmi/layer_{i:02d}": normalized_mutual_information(*pair) for i, pair in pairs}

            # The last epoch judges a final run; a search run is judged each epoch, on val.
            last = epoch == config.epochs
            judged = config.eval_split == "val" or last
            if judged or config.measure_peeking:
                scored_on = load(config.eval_split, 1.0)
                model.eval()
                logits_NK = logits_of(scored_on)
                found = scores(logits_NK, scored_on.labels_N)
                metrics |= {f"{config.eval_split}/{name}": value for name, value in found.items()} if judged else {}
                if config.measure_peeking:
                    peeks = [found["accuracy"], *(past.metrics[PEEKING_ACCURACY] for past in finished)]
                    metrics |= {PEEKING_ACCURACY: peeks[0], PEEKING_GAIN: max(peeks) - peeks[0]}
                if judged and average is not None:
                    with average.in_place():
                        averaged_NK = logits_of(scored_on)
                    metrics[f"{config.eval_metric}_ema"] = scores(averaged_NK, scored_on.labels_N)["accuracy"]
            finished.append(EpochMetrics(epoch=epoch, metrics=metrics))

            # Bytes first, then the word that they exist.
            if folder is not None:
                if last:
                    run_card = RunCard(
                        config=config,
                        class_names=card.class_names,
                        backbone_sha256=frozen.sha256,
                        learnt_from=learnt_from.fingerprint,
                        scored_on=scored_on.fingerprint,
                        protocol=card.protocol,
                        learnable={name: list(parameter.shape) for name, parameter in learnable.items()},
                        prototypes_seconds=first.seconds,
                        metrics=metrics,
                    )
                    writer.write(f"{folder}/{run_folder.PREDICTIONS}", predictions(logits_NK, scored_on))
                    tensors = {name: parameter.detach().cpu() for name, parameter in learnable.items()}
                    writer.write(f"{folder}/{run_folder.PROMPT}", to_bytes(tensors))
                    writer.write(f"{folder}/{run_folder.CARD}", run_card.to_json())
                save(under_way=None)
                if last:
                    writer.wait()
            yield finished[-1]
