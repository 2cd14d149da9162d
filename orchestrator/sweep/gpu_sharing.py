"""How much of a GPU each trial is given: what the spec says, or as little as trials like it were measured to need."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.spec.resources import Resources, TrialResources
from orchestrator.study.trial import Trial
from trainer.config import TrainConfig
from trainer.metric_names import MEMORY_DEVICE_GB, MEMORY_PEAK_GB

USABLE_MEMORY = 0.9
"""The part of a GPU's memory that trials together may have been measured to use."""
MAX_TRIALS_PER_GPU = 8
"""Trials on one GPU: more of them only wait for each other."""


class GpuAllocator:
    """What trials of a sweep occupy.

    Args:
        resources: as the spec has them.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._used: dict[tuple[str, str], float] = {}

    def update(self, config: TrainConfig, metrics: Mapping[str, float]) -> None:
        """Take in how much of its GPU's memory a trial used."""
        if self._resources.for_backbone(config.backbone).gpus and metrics.get(MEMORY_PEAK_GB):
            like = config.backbone, config.method
            used = metrics[MEMORY_PEAK_GB] / metrics[MEMORY_DEVICE_GB]
            self._used[like] = max(used, self._used.get(like, 0.0))

    def resources_for(self, trial: Trial) -> TrialResources:
        """What a trial is given."""
        return self._resources.for_backbone(trial.config.backbone).model_copy(update={"gpus": self.gpus_for(trial)})

    def gpus_for(self, trial: Trial) -> float:
        """How much of a GPU a trial is given: after it ran out of memory a larger share, up to a whole one."""
        share = self._resources.for_backbone(trial.config.backbone)
        asked = share.gpus if share.gpus != "auto" else self._measured(trial)
        return asked if asked >= 1 else min(1.0, asked * trial.gpu_share_factor)

    def _measured(self, trial: Trial) -> float:
        """The share that holds the most that a trial of this backbone and method used; a whole GPU before the first."""
        used = self._used.get((trial.config.backbone, trial.config.method))
        return 1 / trials_per_gpu(used) if used else 1.0


def trials_per_gpu(used: float) -> int:
    """How many trials share a GPU when each uses that part of its memory."""
    return max(1, min(MAX_TRIALS_PER_GPU, int(USABLE_MEMORY / used)))
