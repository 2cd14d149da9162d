"""GPU share of each trial: from the spec, or from memory and speed that were measured for similar trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orchestrator.spec.resources import Resources, TrialResources
from orchestrator.study.trial import Trial
from orchestrator.sweep.gpu_occupancy import GpuOccupancy
from orchestrator.sweep.shared_speed import SharedSpeed
from trainer.config import TrainConfig
from trainer.metric_names import (
    EPOCH_SECONDS,
    GPU_SHARE,
    GPU_TRIALS,
    MEMORY_DEVICE_GB,
    MEMORY_PEAK_GB,
    TRAIN_IMAGES_PER_S,
)

USABLE_MEMORY = 0.9
"""Largest part of a GPU's memory that the trials on it may use together, by measurement."""
MAX_TRIALS_PER_GPU = 8
"""Most trials on one GPU, however fast they are."""


class _Kind(NamedTuple):
    """What decides the speed and the memory of a trial, apart from its GPU and the values of its params."""

    backbone: str
    method: str
    precision: str


class GpuAllocator:
    """Decides the GPU share of each trial of a sweep.

    With `gpus: auto`, trials share a GPU only if MPS runs on every node that has reported: without it they take turns.
    Then as many share one as are measured to be faster together, and as fit into its memory.

    Which trials share a GPU changes no result: each has a process of its own.

    Args:
        resources: the resources in the spec.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.num_gpus = 1
        """GPUs of the cluster. While there are no more trials than GPUs, each new one gets a whole GPU."""

        self._assigned: dict[str, float] = {}
        """Shares of the trials that workers have or will have, by trial id."""
        self._occupancy = GpuOccupancy()
        self._used_memory: dict[_Kind, float] = {}
        """The largest part of a GPU's memory that a trial used."""
        self._speeds: dict[_Kind, dict[str, SharedSpeed]] = {}
        """By kind of GPU."""
        self._devices: set[str] = set()
        """Kinds of GPUs that trials of this driver have run on."""
        self._has_mps: dict[str, bool] = {}
        """Whether the last process on a GPU found MPS. Not restored: a daemon may have been started since."""
        self._notes: list[str] = []
        self._is_mps_noted = False

    def restore(self, trials: Sequence[Trial]) -> float:
        """Learn what an earlier driver has learnt from the epochs of trials, and return their GPU-hours."""
        for trial in trials:
            # Which epochs a trial that moved has run on which kind of device is not stored.
            facts = trial.provenance if len(trial.devices) == 1 else {}
            for metrics in trial.epochs:
                self._learn(trial, metrics, facts)

        # After all of them: the share of a trial depends on what others were measured to use.
        return sum(self._gpu_hours(trial) for trial in trials)

    def assign(self, trial: Trial) -> None:
        """Decide the share of a trial that waits for a worker. The trial keeps it until `release`."""
        num_needed = math.ceil((len(self._assigned) + 1) / max(1, self.num_gpus))
        self._assigned[trial.trial_id] = self._share(trial, num_needed)

    def release(self, trial_id: str, now: float) -> None:
        """Forget the share of a trial that has ended, or will go on in another attempt."""
        self._assigned.pop(trial_id, None)
        self._occupancy.remove(trial_id, now)

    def resources_for(self, trial: Trial) -> TrialResources:
        """Return the CPUs and the GPU share of a trial."""
        return self._resources.for_backbone(trial.config.backbone).model_copy(update={"gpus": self.gpus_for(trial)})

    def gpus_for(self, trial: Trial) -> float:
        """Return the GPU share of a trial. Each time it ran out of memory doubles the share, up to a whole GPU."""
        assigned = self._assigned.get(trial.trial_id)
        return self._share(trial, MAX_TRIALS_PER_GPU) if assigned is None else assigned

    def smallest_resources(self, backbone: str) -> TrialResources:
        """Return what those trials on a backbone occupy that share a GPU with the most others."""
        resources = self._resources.for_backbone(backbone)
        if resources.gpus != "auto":
            return resources

        numbers = [self._num_sharing(kind) for kind in self._used_memory if kind.backbone == backbone]
        return resources.model_copy(update={"gpus": 1 / max(numbers, default=1)})

    def add_epoch(
        self, trial: Trial, metrics: Mapping[str, float], facts: Mapping[str, str], now: float
    ) -> dict[str, float]:
        """Learn from an epoch of an assigned trial.

        Args:
            facts: provenance of the epoch, with its `gpu`, its `device` and `mps`.
            now: seconds of any clock.

        Returns:
            The metrics with the trial's share, and with the number of trials on its GPU if that is certain.
        """
        gpus = self.gpus_for(trial)
        metrics = dict(metrics)
        if not gpus:
            return metrics

        metrics[GPU_SHARE] = gpus
        gpu = facts.get("gpu")
        if gpu is not None:
            self._occupancy.add(trial.trial_id, gpu, gpus, now)
            num_trials = self._occupancy.num_trials(gpu, metrics.get(EPOCH_SECONDS, 0.0), now)
            if num_trials is not None and EPOCH_SECONDS in metrics:
                metrics[GPU_TRIALS] = float(num_trials)
            self._has_mps[gpu] = facts.get("mps") == "yes"
            self._note_mps(trial.config, gpu, facts)

        kind = _kind_of(trial.config)
        num_before = self._num_sharing(kind)
        self._devices.add(facts.get("device", ""))
        self._learn(trial, metrics, facts)
        self._note_number(kind, num_before)
        return metrics

    def take_notes(self) -> list[str]:
        """Return the notes since the last call."""
        notes = self._notes
        self._notes = []
        return notes

    def _gpu_hours(self, trial: Trial) -> float:
        """Return the hours of all attempts of a trial, times its GPU share."""
        # Epochs of earlier versions have no share.
        gpus = self.gpus_for(trial)
        seconds = sum(epoch.get(EPOCH_SECONDS, 0.0) * epoch.get(GPU_SHARE, gpus) for epoch in trial.epochs)
        return (seconds + trial.lost_seconds * gpus) / 3600

    def _share(self, trial: Trial, limit: int) -> float:
        """Return a new share for a trial. With `gpus: auto`, at most `limit` trials are to be on its GPU."""
        gpus = self._resources.for_backbone(trial.config.backbone).gpus
        if gpus == "auto":
            gpus = 1 / min(limit, self._num_sharing(_kind_of(trial.config)))
        if gpus >= 1:
            return gpus
        return min(1.0, gpus * trial.gpu_share_factor)

    def _num_sharing(self, kind: _Kind) -> int:
        """Return how many trials of a kind are to share a GPU: 1 before anything like them was measured."""
        used = self._used_memory.get(kind)
        if used is None or not (self._has_mps and all(self._has_mps.values())):
            return 1

        # Ray chooses the GPU, so the number must be right for each kind that there is.
        limit = trials_per_gpu(used)
        speeds = self._speeds.get(kind, {})
        return min((speeds[device].best_number(limit) for device in speeds.keys() & self._devices), default=1)

    def _learn(self, trial: Trial, metrics: Mapping[str, float], facts: Mapping[str, str]) -> None:
        """Learn memory and speed from an epoch, given the facts of it that are known."""
        kind = _kind_of(trial.config)
        has_gpu = bool(self._resources.for_backbone(trial.config.backbone).gpus)
        if has_gpu and metrics.get(MEMORY_PEAK_GB):
            # The largest counts: a trial of the same kind with a longer prompt must fit as well.
            used = metrics[MEMORY_PEAK_GB] / metrics[MEMORY_DEVICE_GB]
            self._used_memory[kind] = max(used, self._used_memory.get(kind, 0.0))

        # Trials that took turns say nothing of those that run side by side.
        num_trials = int(metrics.get(GPU_TRIALS, 0))
        is_comparable = num_trials == 1 or (num_trials > 1 and facts.get("mps") == "yes")
        if is_comparable and "device" in facts and TRAIN_IMAGES_PER_S in metrics:
            speed = self._speeds.setdefault(kind, {}).setdefault(facts["device"], SharedSpeed())
            speed.add(trial.trial_id, num_trials, metrics[TRAIN_IMAGES_PER_S])

    def _note_mps(self, config: TrainConfig, gpu: str, facts: Mapping[str, str]) -> None:
        """Note once a sweep that trials take turns on a GPU, or would, if they may share one."""
        gpus = self._resources.for_backbone(config.backbone).gpus
        is_shared = gpus == "auto" or 0 < gpus < 1
        if self._is_mps_noted or not is_shared or facts.get("mps") != "no":
            return

        self._is_mps_noted = True
        if gpus == "auto":
            result = "trials that share a GPU would take turns. With gpus: auto, each gets a whole GPU"
        else:
            result = f"trials with gpus: {gpus:g} take turns"
        self._notes.append(
            f"{gpu}: MPS does not run there, so {result}. docker/README.md says how to start its daemon."
        )

    def _note_number(self, kind: _Kind, num_before: int) -> None:
        """Note that another number of trials share a GPU than before."""
        number = self._num_sharing(kind)
        if self._resources.for_backbone(kind.backbone).gpus != "auto" or number == num_before:
            return

        trials = f"trials of {kind.method} on {kind.backbone}"
        if number > num_before:
            note = f"gpus: auto tries {number} {trials} on a GPU."
        else:
            note = f"gpus: auto puts {number} {trials} on a GPU: {num_before} are not faster together, or do not fit."
        self._notes.append(note)


def trials_per_gpu(used_memory: float) -> int:
    """Return how many trials fit on a GPU if each uses this part of its memory."""
    return max(1, min(MAX_TRIALS_PER_GPU, int(USABLE_MEMORY / used_memory)))


def _kind_of(config: TrainConfig) -> _Kind:
    return _Kind(config.backbone, config.method, config.precision)
