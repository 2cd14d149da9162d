"""What each method costs beside what it reaches: parameters, saved bytes, speed, memory and hours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.report.blocks import NOTHING, TableBlock, cells
from orchestrator.report.draws import mean_score
from orchestrator.spec.labels import study_label, varying_fields
from trainer.metric_names import (
    GPU_SHARE,
    LEARNABLE_PARAMETERS,
    LEARNABLE_SHARE,
    MEMORY_PEAK_GB,
    TRAIN_IMAGES_PER_S,
)
from trainer.plain_text import counted

if TYPE_CHECKING:
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

NAMES = ("method", "backbone", "train_size")
BYTES_PER_PARAMETER = 4
"""Learnt parameters are saved in float32."""
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodCost:
    """Cost and accuracy of a method on one backbone and train size, over the tasks that all methods have scores on.

    A value is None if no trial has measured it.
    """

    names: tuple[str, str, str]
    """Method, backbone, train size."""
    num_tasks: int
    accuracy: float
    """Mean test accuracy over the tasks, in percent."""
    parameters: float | None
    """Learnable parameters, the mean over the tasks, because heads differ."""
    share: float | None
    """Learnable parameters in percent of all, the mean over the tasks."""
    images_per_s: float | None
    """Training images per second: the median over final trials."""
    peak_gb: float | None
    """Most memory of a final trial, in GB."""
    worker_hours: float
    """Hours of workers for search and final trials, per task."""
    gpu_hours: float | None
    """The same in hours of whole GPUs; None if no trial ran on a GPU."""

    @property
    def saved_mb(self) -> float | None:
        """Size of the learnt parameters on disk, in MB."""
        return None if self.parameters is None else BYTES_PER_PARAMETER * self.parameters / 1e6


def method_costs(studies: Sequence[Study]) -> list[MethodCost]:
    """Return the cost of each method with a score, in the order of the studies.

    Args:
        studies: with the epochs of their trials, whose seconds are summed.
    """
    by_setting: dict[tuple[str, str], dict[str, dict[str, list[Study]]]] = {}
    for study in studies:
        method, backbone, train_size = study_label(study.plan, NAMES)
        if any(trial.score is not None for trial in study.requested_final_trials):
            by_task = by_setting.setdefault((backbone, train_size), {}).setdefault(method, {})
            by_task.setdefault(study.plan.task, []).append(study)

    costs = []
    for (backbone, train_size), by_method in by_setting.items():
        # A method that failed on a hard task must not look better for it.
        common = set.intersection(*(set(by_task) for by_task in by_method.values()))
        for method, by_task in by_method.items():
            members = [by_task[task] for task in by_task if task in common]
            if members:
                costs.append(_cost((method, backbone, train_size), members))
    return costs


def _cost(names: tuple[str, str, str], studies_of_tasks: Sequence[Sequence[Study]]) -> MethodCost:
    finals = [[trial for study in members for trial in study.requested_final_trials] for members in studies_of_tasks]
    everything = [trial for members in studies_of_tasks for study in members for trial in study.trials]
    num_tasks = len(finals)

    gpu_seconds = [trial.seconds * share for trial in everything if (share := trial.last_metrics.get(GPU_SHARE))]
    share = _over_tasks(finals, LEARNABLE_SHARE)
    return MethodCost(
        names=names,
        num_tasks=num_tasks,
        accuracy=100 * statistics.mean(mean_score(trials) for trials in finals),
        parameters=_over_tasks(finals, LEARNABLE_PARAMETERS),
        share=None if share is None else 100 * share,
        images_per_s=_of_all(finals, TRAIN_IMAGES_PER_S, statistics.median),
        peak_gb=_of_all(finals, MEMORY_PEAK_GB, max),
        worker_hours=sum(trial.seconds for trial in everything) / HOUR_S / num_tasks,
        gpu_hours=sum(gpu_seconds) / HOUR_S / num_tasks if gpu_seconds else None,
    )


def _values(trials: Iterable[Trial], metric: str) -> list[float]:
    values = (trial.last_metrics.get(metric, math.nan) for trial in trials)
    return [value for value in values if math.isfinite(value)]


def _over_tasks(finals: Sequence[Sequence[Trial]], metric: str) -> float | None:
    """Return the mean over tasks of a metric that all trials of a task share."""
    by_task = [_values(trials, metric) for trials in finals]
    return statistics.mean(map(statistics.mean, by_task)) if all(by_task) else None


def _of_all(
    finals: Sequence[Sequence[Trial]], metric: str, summarize: Callable[[Sequence[float]], float]
) -> float | None:
    values = _values((trial for trials in finals for trial in trials), metric)
    return summarize(values) if values else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats, from cheap to expensive.

    Args:
        points: cost, of which less is better, and accuracy.
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def cost_block(studies: Sequence[Study]) -> TableBlock:
    """Return a table with a row for each method that has a score."""
    costs = method_costs(studies)
    varying, same = varying_fields([study.plan for study in studies], NAMES[1:])
    kept = [0, *(index for index, name in enumerate(NAMES) if name in varying)]
    on_gpus = any(cost.gpu_hours is not None for cost in costs)
    # Short names, so that the table fits a page; the title says what they are.
    header = ("learnable", "% of all", "MB", "images/s", "GB", "hours", "test %")
    hours = "hours of GPUs" if on_gpus else "hours of workers"
    legend = f"learnable parameters; MB of a saved trial; peak GB; {hours} per task; mean test accuracy"

    rows = []
    for cost in costs:
        spent = cost.gpu_hours if on_gpus else cost.worker_hours
        numbers = (
            _text(cost.parameters, ",.0f"),
            _text(cost.share, ".3g"),
            _text(cost.saved_mb, ".3g"),
            _text(cost.images_per_s, ",.0f"),
            _text(cost.peak_gb, ".2g"),
            _text(spent, ".3g"),
            _text(cost.accuracy, ".1f"),
        )
        rows.append(cells(*(cost.names[index] for index in kept), *numbers))
    num_common = " or ".join(map(str, sorted({cost.num_tasks for cost in costs})))
    tasks = f"over {num_common} of {counted(len({study.plan.task for study in studies}), 'task')}"
    return TableBlock(
        title="\n".join(filter(None, (f"cost of the methods, {tasks}", same, legend))),
        header=(*(NAMES[index] for index in kept), *header),
        rows=rows,
        names=len(kept),
        spans=(3, 3, 1),
    )


def _text(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
