"""Cost model: how long trials take, learnt from finished trials, and what a sweep will cost."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.spec.labels import study_text
from orchestrator.spec.plan import StudyPlan, suggest_params
from orchestrator.spec.resources import TrialResources
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.study import Study
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.gpu_sharing import trials_per_gpu
from trainer.catalog import TASKS
from trainer.config import TrainConfig
from trainer.data.task_store import read_card
from trainer.metric_names import EPOCH_SECONDS, MEMORY_DEVICE_GB, MEMORY_PEAK_GB
from trainer.storage.files import write_bytes
from trainer.storage.integrity import DamagedFile, pack_json, parse_json, read_checked, read_or_set_aside
from trainer.validation import parse_per_class

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Measured cost of the trials of a method on a backbone. The names of its fields are the keys in the file."""

    seconds_per_image: float
    """Worker time per image and epoch, everything included."""
    trials: int
    """Number of trials that were measured."""
    peak_gb: float
    """Most memory that a trial used, of the GPU or else of the process."""
    device_gb: float
    """Memory of the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Remaining work of a study."""

    trials: int
    """Number of search and final trials that are not finished."""
    seconds: float | None
    """Worker time if no trial is pruned; None if no similar trial was measured."""


class CostModel:
    """Rates by method, backbone and kind of device, stored in a file.

    Args:
        file: path or URI of the JSON file.
        rates: the content of the file.
    """

    def __init__(self, file: str, rates: dict[str, Rate]) -> None:
        self._file = file
        self.rates = rates

    @classmethod
    def load(cls, file: str) -> CostModel:
        """Load the rates of a file; none if the file does not exist, or is damaged."""
        has_file = "://" in file or Path(file).exists()
        try:
            rates = read_checked(file, _parse_rates) if has_file else None
        except DamagedFile as error:
            # Set aside when the rates are written: loading writes nothing.
            log.warning("%s The speed of trials is measured again.", error)
            rates = None
        return cls(file, rates or {})

    def rate(self, plan: StudyPlan, gpus: float) -> Rate | None:
        """Return the rate of a study's trials, or None if none was measured."""
        return self.rates.get(_key(plan, gpus))

    def update(self, studies: Iterable[Study], data_root: str) -> None:
        """Learn rates from the trials of a sweep, and write the file if a rate has changed."""
        before = dict(self.rates)

        trials_by_key: dict[str, list[tuple[Trial, float]]] = {}
        for study in studies:
            gpus = study.spec.resources.for_backbone(study.plan.backbone).initial_gpus
            trials = trials_by_key.setdefault(_key(study.plan, gpus), [])
            for table, splits in ((study.search_table, ("train",)), (study.final_table, _final_splits(study.spec))):
                # The task's card is read for its counts. It may lie in a bucket, so not for an empty table.
                images = num_images(study.plan, splits, data_root) if table.trials else 0.0
                trials += [(trial, images) for trial in table.trials if trial.duplicate_of is None]

        for key, trials in trials_by_key.items():
            rate = _measure(trials)
            # A sweep of few trials must not replace what a larger one has measured.
            if rate is not None and rate.trials >= (before[key].trials if key in before else 1):
                self.rates[key] = rate

        if self.rates != before:
            try:
                self._write()
            except OSError as error:
                # A full disk must not cost the results of the sweep that has just ended.
                log.warning("what `sptune plan` expects could not be updated: %s", error)

    def _write(self) -> None:
        read_or_set_aside(self._file, _parse_rates)
        write_bytes(self._file, pack_json({key: dataclasses.asdict(rate) for key, rate in self.rates.items()}))

    def update_from_calibration(
        self, plan: StudyPlan, events: Sequence[Epoch | Failure], gpus: float, data_root: str
    ) -> None:
        """Learn the rate of a study from one short trial, unless finished trials have been measured.

        Args:
            events: what the short trial reported. Only its last epoch counts, because the first one includes loading.

        Raises:
            UserError: if the short trial failed.
        """
        last = events[-1]
        if isinstance(last, Failure):
            raise UserError(f"the short trial of {study_text(plan)} failed: {last.error.splitlines()[0]}")

        rate = self.rate(plan, gpus)
        if rate is None or rate.trials <= 1:
            metrics = last.metrics
            self.rates[_key(plan, gpus)] = Rate(
                seconds_per_image=metrics[EPOCH_SECONDS] / num_images(plan, ("train",), data_root),
                trials=1,
                peak_gb=metrics[MEMORY_PEAK_GB],
                device_gb=metrics[MEMORY_DEVICE_GB],
            )
            self._write()

    def epoch_seconds(self, spec: SweepSpec, plan: StudyPlan, data_root: str) -> dict[str, float]:
        """Return the seconds of an epoch of a study's trials by phase: search and final; empty if none was measured."""
        rate = self.rate(plan, spec.resources.for_backbone(plan.backbone).initial_gpus)
        if rate is None:
            return {}

        splits = {"search": ("train",), "final": _final_splits(spec)}
        return {phase: rate.seconds_per_image * num_images(plan, of, data_root) for phase, of in splits.items()}

    def estimate(self, study: Study, data_root: str) -> Estimate:
        """Return the remaining work of a study: all epochs of new trials, the missing epochs of unfinished ones."""
        plan = study.plan
        spec = study.spec
        rate = self.rate(plan, spec.resources.for_backbone(plan.backbone).initial_gpus)

        seconds = 0.0
        num_unfinished = 0
        for trials, num_requested, splits in (
            (study.requested_search_trials, plan.search.trials, ("train",)),
            (study.requested_final_trials, len(spec.final.seeds), _final_splits(spec)),
        ):
            # A trial that is finished early (pruned, failed) has no epochs left.
            num_new = num_requested - len(trials)
            started = [trial for trial in trials if not trial.state.is_finished]
            num_unfinished += num_new + len(started)

            epochs = num_new * plan.epochs
            epochs += sum(plan.epochs - len(trial.epochs) for trial in started)
            images = num_images(plan, splits, data_root)
            seconds += epochs * images * (rate.seconds_per_image if rate else 0.0)

        # A task that is not imported yet has no known number of images.
        is_known = num_unfinished == 0 or (rate is not None and images > 0)
        return Estimate(trials=num_unfinished, seconds=seconds if is_known else None)


def _parse_rates(data: bytes) -> dict[str, Rate]:
    return {key: Rate(**rate) for key, rate in parse_json(data).items()}


def _final_splits(spec: SweepSpec) -> tuple[str, ...]:
    """Return the splits that the final trials of a spec learn from."""
    return ("train",) if spec.final.train_on == "train" else ("train", "val")


def num_images(plan: StudyPlan, splits: Sequence[str], data_root: str) -> float:
    """Return how many images of the given splits a trial of a study learns from."""
    # Without the task's card, which comes with its import, the catalog has the numbers of known tasks.
    card = read_card(data_root, plan.task)
    row = TASKS.get(plan.task)
    counts: dict[str, int] = {}
    num_classes = 0
    if card is not None:
        counts = card.counts
        num_classes = len(card.class_names)
    elif row is not None:
        counts = {"train": row.num_train, "val": row.num_val}
        num_classes = row.num_classes

    available = sum(counts.get(split, 0) for split in splits)
    if plan.val_size == "same" and "val" in splits and counts.get("train"):
        # The size is taken of train, and val adds the same share.
        return num_images(plan, ("train",), data_root) * available / counts["train"]

    match plan.train_size:
        case float() as fraction:
            return fraction * available
        case int() as number:
            return min(number, available)
        case text:
            return min(parse_per_class(text) * num_classes, available)


def most_expensive_config(plan: StudyPlan, seed: int) -> TrainConfig:
    """Return a config of two epochs that costs as much as any of the study's.

    Whole numbers are counts (of prompt tokens, of images), so they get their largest value; others get the middle.
    """

    def expensive_value(_: str, dimension: Dimension) -> Any:
        match dimension:
            case FloatRange(low=low, high=high, log=log):
                return math.sqrt(low * high) if log else (low + high) / 2
            case IntRange(high=high):
                return high
            case Choice(values=values):
                counts = [value for value in values if isinstance(value, int)]
                return max(counts) if len(counts) == len(values) else values[len(values) // 2]

    params = suggest_params(plan, expensive_value)
    return plan.search_config(params | {"epochs": 2, "warmup_epochs": 0}, seed)


def memory_share(resources: TrialResources, rate: Rate, workers: int) -> float:
    """Return which part of a device's memory its trials use together. Above 1 they do not fit."""
    if resources.gpus == "auto":
        num_trials = trials_per_gpu(rate.peak_gb / rate.device_gb)
    elif resources.gpus:
        num_trials = max(1, int(1 / resources.gpus))
    else:
        # Without GPUs all workers share the memory of the machine.
        num_trials = workers
    return num_trials * rate.peak_gb / rate.device_gb


def _key(plan: StudyPlan, gpus: float) -> str:
    """Return the key of a study's trials in the file."""
    key = f"{plan.method} {plan.backbone} {'gpu' if gpus else 'cpu'}"
    # Trials of another precision take another time. Those of the default keep the key of earlier versions.
    return key if plan.precision in (None, "fp32") else f"{key} {plan.precision}"


def _measure(trials: list[tuple[Trial, float]]) -> Rate | None:
    """Return the rate of trials, each given with its number of images; None if no epoch has a time.

    An epoch that was restored from a checkpoint has no time.
    """
    seconds = 0.0
    images_seen = 0.0
    peak_gb = 0.0
    device_gb = 0.0
    num_measured = 0

    for trial, images in trials:
        epochs = [epoch for epoch in trial.epochs if EPOCH_SECONDS in epoch]
        if epochs:
            seconds += sum(epoch[EPOCH_SECONDS] for epoch in epochs)
            images_seen += len(epochs) * images
            peak_gb = max(peak_gb, *(epoch[MEMORY_PEAK_GB] for epoch in epochs))
            device_gb = max(device_gb, *(epoch[MEMORY_DEVICE_GB] for epoch in epochs))
            num_measured += 1

    if not images_seen:
        return None
    return Rate(seconds_per_image=seconds / images_seen, trials=num_measured, peak_gb=peak_gb, device_gb=device_gb)
