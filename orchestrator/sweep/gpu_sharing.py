"""GPU share of each trial: from the spec, or from the memory that similar trials were measured to use."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.spec.resources import Resources, TrialResources
from orchestrator.study.trial import Trial
from trainer.config import TrainConfig
from trainer.metric_names import MEMORY_DEVICE_GB, MEMORY_PEAK_GB

USABLE_MEMORY = 0.9
"""Largest part of a GPU's memory that the trials on it may use together, by measurement."""
MAX_TRIALS_PER_GPU = 8
"""Most trials on one GPU. With more of them, each only waits for the others."""


class GpuAllocator:
    """Decides the GPU share of each trial of a sweep.

    Args:
        resources: the resources in the spec.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        # By backbone and method, the largest part of a GPU's memory that a trial used.
        self._used_memory: dict[tuple[str, str], float] = {}

    def update(self, config: TrainConfig, metrics: Mapping[str, float]) -> None:
        """Learn from the metrics of an epoch which part of its GPU's memory a trial uses."""
        has_gpu = bool(self._resources.for_backbone(config.backbone).gpus)
        if has_gpu and metrics.get(MEMORY_PEAK_GB):
            key = (config.backbone, config.method)
            used = metrics[MEMORY_PEAK_GB] / metrics[MEMORY_DEVICE_GB]
            # The largest counts: a trial of the same method with a longer prompt must fit as well.
            self._used_memory[key] = max(used, self._used_memory.get(key, 0.0))

    def resources_for(self, trial: Trial) -> TrialResources:
        """Return the CPUs and the GPU share of a trial."""
        return self._resources.for_backbone(trial.config.backbone).model_copy(update={"gpus": self.gpus_for(trial)})

    def gpus_for(self, trial: Trial) -> float:
        """Return the GPU share of a trial. Each time it ran out of memory doubles the share, up to a whole GPU."""
        gpus = self._resources.for_backbone(trial.config.backbone).gpus
        if gpus == "auto":
            gpus = self._measured_gpus(trial)
        if gpus >= 1:
            return gpus
        return min(1.0, gpus * trial.gpu_share_factor)

    def _measured_gpus(self, trial: Trial) -> float:
        """Return a share that suffices for every trial of this backbone and method so far; a whole GPU before."""
        used = self._used_memory.get((trial.config.backbone, trial.config.method))
        return 1 / trials_per_gpu(used) if used else 1.0


def trials_per_gpu(used_memory: float) -> int:
    """Return how many trials can share a GPU if each uses this part of its memory."""
    return max(1, min(MAX_TRIALS_PER_GPU, int(USABLE_MEMORY / used_memory)))
