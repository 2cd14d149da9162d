"""The training loop: one long function in the order of the paper.

Shapes: N images, B batch, L prompted layers, P prompt_length, D width, K classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch

from trainer import phase, run_folder
from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.split import Split, count_labels, load_split, prepare_test_split
from trainer.data.tasks import open_task
from trainer.methods.protocol import build_model
from trainer.metric_names import (
    LABELS,
    LEARNABLE_PARAMETERS,
    LEARNABLE_SHARE,
    MICRO_BATCH_SIZE,
    PEEKING_ACCURACY,
    PROTOTYPES_SECONDS,
    TRAIN_IMAGES,
    TRAIN_IMAGES_PER_S,
    TRAIN_LOSS,
    TRAIN_LR,
    initial_of,
)
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import load_backbone, with_fresh_norm
from trainer.model.execution import eval_batch_size, with_precision
from trainer.model.gpu_kernels import check_repeatable, describe_arithmetic, device_kind
from trainer.model.prompted_vit import PromptedViT
from trainer.prompt_init.initial_prompt import initial_prompt
from trainer.run_folder import RunCard
from trainer.storage.integrity import pack_json
from trainer.storage.tensors import pack_tensors
from trainer.training.batches import EpochBatches, steps_per_epoch
from trainer.training.engine import Engines, choose_engine
from trainer.training.engine_choices import EngineChoices
from trainer.training.evaluation import logits_of, nmi_metrics, peeking_metrics, sample_nmi_tokens
from trainer.training.feature_cache import InputsOf, feature_source
from trainer.training.metrics import predictions, read_progress, scores
from trainer.training.optimizer import lr_at
from trainer.training.run import EpochMetrics, EpochProgress, TrainingInterrupted, TrainingRun
from trainer.training.step import TrainingStep

__all__ = ["EpochMetrics", "TrainingDiverged", "TrainingInterrupted", "train"]


class TrainingDiverged(RuntimeError):
    """The loss or a weight became NaN or infinite. The same config would diverge again."""


def train(
    config: TrainConfig,
    *,
    data_root: str,
    device: str = "cpu",
    folder: str | None = None,
    weights: str | None = None,
    prototype_cache: str | None = None,
    cache: str | None = None,
    mix_devices: bool = True,
    engine: str | None = None,
    engine_folder: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochMetrics]:
    """Train one config and yield the metrics of each epoch. The last epoch is yielded when all files are written.

    With a `folder`, each epoch leaves a checkpoint there. The folder also holds `prototypes.safetensors`, and at the
    end `predictions.parquet`, `prompt.safetensors` (what was learnt) and `card.json`. `trainer.load` reads it.

    A checkpoint is written in the background while the next epoch trains, and at the latest when the iterator is
    closed. A run that is killed before that trains the epoch again. If the folder holds a checkpoint, `train` yields
    the finished epochs again and continues. The results are bit for bit those of an uninterrupted run.

    Args:
        data_root: the task store, a folder or a URI.
        folder: the run's own folder, a path or a URI; None to keep nothing.
        weights: a file, or a folder of files, that is searched first for the backbone's weights.
        prototype_cache: folder (path or URI) of prototypes that runs share; None to build them anew.
        cache: folder on a local disk for decoded images; None for `SPTUNE_CACHE`, or ~/.cache/sptune.
        mix_devices: whether a checkpoint of another kind of device is continued. If not, the run starts again.
        engine: one of `trainer.training.engine.ENGINES`; None for that of the checkpoint, or else eager on a CPU, and
            on a GPU the fastest that agrees with eager.
        engine_folder: folder (path or URI) that keeps this choice for runs of the same kind, and compiled kernels for
            other machines; None to choose anew.
        stop: called before every step and before scoring. If it returns True, the run saves its progress and ends.

    Raises:
        TrainingDiverged: if the loss or a weight is NaN or infinite, with epoch, loss and lr.
        TrainingInterrupted: if `stop` returned True.
        ValueError: if the images are too few for a batch, the checkpoint is of another config or network or of a newer
            version of sptune, the weights do not fit (WeightsError), the test split of a final run is damaged, or a GPU
            cannot repeat its bits in this process. All these errors come before the first step.
        OSError: if data, prototype cache or folder cannot be read or written.
    """
    # Data: the task's card. Its images follow the backbone: they take minutes to decode, and wrong weights must be
    # refused before that.
    method = METHODS[config.method]
    task_card = open_task(data_root, config.task)
    load = functools.partial(
        load_split,
        data_root,
        config.task,
        image_size=config.pixels,
        device=device,
        transform=config.transform,
        cache=cache,
    )

    # Backbone.
    frozen = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    if config.final_norm == "fresh":
        frozen = with_fresh_norm(frozen)
    check_repeatable(device)
    train_split = load(
        config.train_split,
        config.train_size,
        view="whole" if is_augmented(config.task) else "fixed",
        val_size=config.val_size,
        draw=config.draw,
    )
    num_steps = steps_per_epoch(config, len(train_split))
    if config.eval_split == "test":
        # Before training: otherwise unreadable test images would be found only after hours.
        prepare_test_split(data_root, config.task, config.pixels, config.transform, cache)

    # Prototypes: the initial value of the prompt.
    initial = initial_prompt(
        config, frozen, train_split, data_root=data_root, prototype_cache=prototype_cache, cache=cache
    )
    nmi_tokens_LTD = None
    if config.nmi:
        nmi_tokens_LTD = sample_nmi_tokens(config, frozen, train_split, len(initial.prompt_LPD))

    # Adapted model.
    model = build_model(config, frozen, num_classes=len(task_card.class_names), prompt_LPD=initial.prompt_LPD).to(
        device
    )
    learnable = model.learnable()
    initial_LPD = model.prompt_tokens().detach().cpu().clone() if isinstance(model, PromptedViT) else None

    # If nothing below the head learns or varies, the backbone's features are computed once and replace the images.
    has_fixed_features = learnable.keys() == {"head.weight", "head.bias"}
    trains_head_only = has_fixed_features and not (is_augmented(config.task) or config.drop_path)
    inputs_of: InputsOf = feature_source(frozen, config.precision) if trains_head_only else Split.take
    network = with_precision(model.head if trains_head_only else model, config.precision, device)
    eval_batch = eval_batch_size(device, 1 + frozen.num_patches + (config.prompt_length or 0))

    # Step: the optimizer, and the moving average that is scored beside the weights.
    train_step = TrainingStep(config, network, learnable)

    # Resume.
    run = TrainingRun(
        config,
        backbone_sha256=frozen.sha256,
        images=train_split.fingerprint,
        device=device_kind(device),
        mix_devices=mix_devices,
        step=train_step,
        steps_per_epoch=num_steps,
        folder=folder,
        stop=stop,
    )
    run.resume()

    # Engine: a faster way to compute the same step.
    if run.next_epoch <= config.epochs:
        model.train()
        run.engine = choose_engine(
            Engines(
                train_step,
                None if trains_head_only else model,
                lambda: EpochBatches(config, train_split, inputs_of, epoch=1).take(0, torch.Generator()),
                config.precision,
                device,
            ),
            config,
            EngineChoices(engine_folder, cache),
            asked=engine,
            resumed=run.engine,
            num_steps=num_steps * config.epochs,
            facts={"backbone": frozen.sha256, "classes": len(task_card.class_names)},
        )
        phase.begin(f"training on {config.task}")

    # Leaving the block, for any reason, waits for the file that is being written.
    with run.writer:
        if folder is not None and initial_LPD is not None:
            run.write(run_folder.PROTOTYPES, pack_tensors({"prompt": initial_LPD.contiguous()}))
        yield from run.finished_epochs

        # Epochs.
        for epoch in range(run.next_epoch, config.epochs + 1):
            progress = run.start_epoch(device)
            model.train()

            batches = EpochBatches(config, train_split, inputs_of, epoch)

            for step in range(progress.num_steps, num_steps):
                run.check_stop(progress)
                inputs_B, labels_B = batches.take(step, progress.crops)
                lr = lr_at(epoch - 1 + step / num_steps, config)
                progress.finish_step(train_step(inputs_B, labels_B, lr))

            # Metrics of training.
            run.check_stop(progress)
            metrics = _training_metrics(train_step, progress, config, num_steps)
            if epoch == 1:
                metrics |= _model_size(model)
                metrics[TRAIN_IMAGES] = len(train_split)
                metrics[LABELS] = count_labels(
                    data_root, config.task, config.train_split, config.train_size, config.val_size, config.draw
                )
                if method.has_prototypes:
                    metrics[PROTOTYPES_SECONDS] = initial.seconds
            if nmi_tokens_LTD is not None:
                assert isinstance(model, PromptedViT) and initial_LPD is not None, (
                    "only methods with prompts measure them"
                )
                metrics |= nmi_metrics(model.prompt_tokens().detach(), nmi_tokens_LTD)
                if epoch == 1:
                    # The initial prompt, because the model's own prompt has already learned.
                    start = nmi_metrics(initial_LPD.to(device), nmi_tokens_LTD)
                    metrics |= {initial_of(name): value for name, value in start.items()}

            # Scores. A search run is scored on val every `eval_every` epochs; a final run on test at its last epoch.
            is_last = epoch == config.epochs
            is_scored = config.is_scored(epoch)
            if is_scored or config.measure_peeking:
                eval_split = _load_eval_split(config, load)
                eval_split.check_same_import(train_split)
                model.eval()
                logits_NK = logits_of(network, inputs_of, eval_split, eval_batch)
                eval_scores = scores(logits_NK, eval_split.labels_N)
                if is_scored:
                    metrics |= {f"{config.eval_split}/{name}": score for name, score in eval_scores.items()}
                if config.measure_peeking:
                    earlier = [past.metrics[PEEKING_ACCURACY] for past in run.finished_epochs]
                    metrics |= peeking_metrics(eval_scores["accuracy"], earlier)
                if is_scored and train_step.average is not None:
                    with train_step.average.in_place():
                        averaged_NK = logits_of(network, inputs_of, eval_split, eval_batch)
                    metrics[f"{config.eval_metric}_ema"] = scores(averaged_NK, eval_split.labels_N)["accuracy"]

            # Yield. The results are written before the checkpoint that counts the last epoch as finished: a run that is
            # killed in between trains that epoch again, and so writes them again.
            finished = run.finish_epoch(metrics)
            if is_last and folder is not None:
                assert run.engine is not None, "it was chosen before the first step"
                card = RunCard(
                    config=config,
                    class_names=task_card.class_names,
                    backbone_sha256=frozen.sha256,
                    backbone_part=frozen.part,
                    learnt_from=train_split.fingerprint,
                    scored_on=eval_split.fingerprint,
                    protocol=task_card.protocol,
                    learnable={name: list(parameter.shape) for name, parameter in learnable.items()},
                    prototypes_seconds=initial.seconds,
                    arithmetic=f"{describe_arithmetic(config.precision, frozen.head_dim, device)}, {run.engine.engine}",
                    rejected_engines="; ".join(f"{name}: {reason}" for name, reason in run.engine.rejected.items()),
                    metrics=metrics,
                )
                run.write(run_folder.PREDICTIONS, predictions(logits_NK, eval_split))
                run.write(run_folder.PROMPT, pack_tensors(run.learnt_tensors()))
                run.write(run_folder.CARD, pack_json(card.to_values()))
            run.save()
            if is_last:
                run.writer.wait()
            yield finished


def _load_eval_split(config: TrainConfig, load: Callable[..., Split]) -> Split:
    """Return the images that a run is scored on: a whole split, or the part of val that belongs to the train size."""
    if config.eval_split == "val" and config.val_size == "same":
        return load("val", config.train_size, val_size="same", draw=config.draw)
    return load(config.eval_split, 1.0)


def _training_metrics(
    step: TrainingStep, progress: EpochProgress, config: TrainConfig, num_steps: int
) -> dict[str, float]:
    """Return loss, learning rate and speed of a trained epoch.

    Raises:
        TrainingDiverged: if the loss or a weight is NaN or infinite.
    """
    total_loss, has_finite_weights = read_progress(progress.total_loss, step.learnable.values())
    train_loss = total_loss / num_steps
    if not (math.isfinite(train_loss) and has_finite_weights):
        raise TrainingDiverged(
            f"loss or weights became infinite or NaN in epoch {progress.epoch} "
            f"(train/loss={train_loss}, task={config.task}, lr={config.lr}). A smaller lr is the usual cure."
        )

    # Read after the loss, which waits for the device: the steps are done by then.
    seconds = progress.seconds
    metrics = {
        TRAIN_LOSS: train_loss,
        TRAIN_LR: step.optimizer.param_groups[0]["lr"],
        TRAIN_IMAGES_PER_S: num_steps * config.batch_size / seconds,
    }
    if step.micro_batch_size < config.batch_size:
        metrics[MICRO_BATCH_SIZE] = step.micro_batch_size
    return metrics


def _model_size(model: AdaptedViT) -> dict[str, float]:
    """Return the number of learnable parameters, and their share of all."""
    num_learnable = sum(parameter.numel() for parameter in model.learnable().values())
    num_all = sum(parameter.numel() for parameter in model.parameters())
    return {LEARNABLE_PARAMETERS: num_learnable, LEARNABLE_SHARE: num_learnable / num_all}
