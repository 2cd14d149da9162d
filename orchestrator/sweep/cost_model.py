"""How long trials take, learnt from trials, and from it what a sweep will cost."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.spec.plan import StudyPlan, suggest_params
from orchestrator.spec.resources import TrialResources
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.study import Study
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.gpu_sharing import trials_per_gpu
from trainer.catalog import TASKS
from trainer.config import TrainConfig
from trainer.data.task_store import read_card
from trainer.metric_names import EPOCH_SECONDS, MEMORY_DEVICE_GB, MEMORY_PEAK_GB
from trainer.storage.files import read_bytes, write_bytes
from trainer.validation import parse_per_class


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What trials of a method on a backbone took."""

    seconds_per_image: float
    """Worker time per image and epoch, with all that surrounds it."""
    trials: int
    """How many it was learnt from."""
    peak_gb: float
    """Most memory that one of them used: of the GPU, or of the process."""
    device_gb: float
    """What its device has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is left to do in a study."""

    trials: int
    """Search and final trials that are not finished."""
    seconds: float | None
    """Worker time if none is pruned; None where nothing like it was ever measured."""


class CostModel:
    """Rates by method, backbone and kind of device, kept in a file."""

    def __init__(self, place: str, rates: dict[str, Rate]) -> None:
        self._place = place
        self.rates = rates

    @classmethod
    def load(cls, place: str) -> CostModel:
        """What is known in a file, which need not be there."""
        data = read_bytes(place) if "://" in place or Path(place).exists() else None
        return cls(place, {key: Rate(**rate) for key, rate in json.loads(data).items()} if data else {})

    def rate(self, plan: StudyPlan, gpus: float) -> Rate | None:
        """What is known of a study's trials."""
        return self.rates.get(_key(plan, gpus))

    def update(self, studies: Iterable[Study], data_root: str) -> None:
        """Take in finished trials, and write down what is new."""
        before = dict(self.rates)
        trials: dict[str, list[tuple[Trial, float]]] = {}
        for study in studies:
            found = trials.setdefault(
                _key(study.plan, study.spec.resources.for_backbone(study.plan.backbone).initial_gpus), []
            )
            for record, splits in ((study.search_table, ("train",)), (study.final_table, ("train", "val"))):
                images = num_images(study.plan, splits, data_root) if record.trials else 0.0
                found += [(trial, images) for trial in record.trials if trial.duplicate_of is None]
        for key, found in trials.items():
            rate = _measured(found)
            if rate is not None and rate.trials >= (before[key].trials if key in before else 1):
                self.rates[key] = rate
        if self.rates != before:
            self._write()

    def _write(self) -> None:
        text = {key: dataclasses.asdict(rate) for key, rate in self.rates.items()}
        write_bytes(self._place, json.dumps(text, indent=2).encode())

    def update_from_calibration(
        self, plan: StudyPlan, events: Sequence[Epoch | Failure], gpus: float, data_root: str
    ) -> None:
        """Take in one short trial, unless finished ones have taught more; its first epoch is counted out.

        Raises:
            UserError: if it failed.
        """
        last = events[-1]
        if isinstance(last, Failure):
            raise UserError(f"the short trial of {plan.key} failed: {last.error.splitlines()[0]}")
        if (known := self.rate(plan, gpus)) is None or known.trials <= 1:
            told = last.metrics
            self.rates[_key(plan, gpus)] = Rate(
                seconds_per_image=told[EPOCH_SECONDS] / num_images(plan, ("train",), data_root),
                trials=1,
                peak_gb=told[MEMORY_PEAK_GB],
                device_gb=told[MEMORY_DEVICE_GB],
            )
            self._write()

    def estimate(self, study: Study, data_root: str) -> Estimate:
        """What is left to do in a study: every trial with all its epochs, those begun without what they have."""
        plan, spec = study.plan, study.spec
        rate = self.rate(plan, spec.resources.for_backbone(plan.backbone).initial_gpus)
        begun = {"search": study.requested_search_trials, "final": study.requested_final_trials}
        wanted = {"search": spec.search.trials, "final": len(spec.final.seeds)}
        seconds, count = 0.0, 0
        for phase, trials in begun.items():
            new = wanted[phase] - len(trials)
            epochs = new * plan.epochs
            epochs += sum(plan.epochs - len(trial.epochs) for trial in trials if not trial.state.is_finished)
            count += new + sum(not trial.state.is_finished for trial in trials)
            images = num_images(plan, ("train",) if phase == "search" else ("train", "val"), data_root)
            seconds += epochs * images * (rate.seconds_per_image if rate else 0.0)
        return Estimate(trials=count, seconds=seconds if rate or not count else None)


def num_images(plan: StudyPlan, splits: Sequence[str], data_root: str) -> float:
    """How many images a trial of a study learns from."""
    card, row = read_card(data_root, plan.task), TASKS.get(plan.task)
    counts = card.counts if card else {"train": row.num_train, "val": row.num_val} if row else {}
    classes = len(card.class_names) if card else row.num_classes if row else 0
    have = sum(counts.get(split, 0) for split in splits)
    match plan.train_size:
        case float() as share:
            return share * have
        case int() as number:
            return min(number, have)
        case text:
            return min(parse_per_class(text) * classes, have)


def most_expensive_config(plan: StudyPlan, seed: int) -> TrainConfig:
    """A config of two epochs that costs as much as any of the study's: the largest counts, the middle else."""

    def costly(_: str, dimension: Dimension) -> Any:
        match dimension:
            case FloatRange(low=low, high=high, log=log):
                return math.sqrt(low * high) if log else (low + high) / 2
            case IntRange(high=high):
                return high
            case Choice(values=values):
                counts = [value for value in values if isinstance(value, int)]
                return max(counts) if len(counts) == len(values) else values[len(values) // 2]

    params = suggest_params(plan, costly)
    return plan.search_config(params | {"epochs": 2, "warmup_epochs": 0}, seed)


def memory_share(share: TrialResources, rate: Rate, workers: int) -> float:
    """How much of a device's memory is used by the trials that share it: above 1 they do not fit."""
    if share.gpus == "auto":
        together = trials_per_gpu(rate.peak_gb / rate.device_gb)
    else:
        together = max(1, int(1 / share.gpus)) if share.gpus else workers
    return together * rate.peak_gb / rate.device_gb


def _key(plan: StudyPlan, gpus: float) -> str:
    return f"{plan.method} {plan.backbone} {'gpu' if gpus else 'cpu'}"


def _measured(found: list[tuple[Trial, float]]) -> Rate | None:
    """The rate of trials, each with the number of its images, as far as their workers told their time."""
    seconds, passes, peak, device, count = 0.0, 0.0, 0.0, 0.0, 0
    for trial, images in found:
        measured = [epoch for epoch in trial.epochs if EPOCH_SECONDS in epoch]
        if measured:
            seconds += sum(epoch[EPOCH_SECONDS] for epoch in measured)
            passes += len(measured) * images
            peak = max(peak, *(epoch[MEMORY_PEAK_GB] for epoch in measured))
            device = max(device, *(epoch[MEMORY_DEVICE_GB] for epoch in measured))
            count += 1
    if not passes:
        return None
    return Rate(seconds_per_image=seconds / passes, trials=count, peak_gb=peak, device_gb=device)
