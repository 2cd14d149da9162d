"""Comparison of methods over tasks, and over seeds or draws of the images."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.study.statistics import holm, paired_t, signed_rank

MIN_TASKS = 6
"""Number of tasks below which no signed-rank test can reach p < 0.05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Comparison of two methods on the tasks and seeds that both have."""

    one: str
    other: str
    tasks: int
    """Number of tasks."""
    seeds: int
    """Number of seeds, or of draws, that both methods have on every one of these tasks."""
    difference: float
    """Mean over tasks of the mean over seeds (and draws) of `one` minus `other`: accuracy, 0..1."""
    better_on: int
    """Number of tasks on which `one` has the higher mean."""
    p_tasks: float | None
    """p-value of Wilcoxon's signed-rank test on the differences of the tasks (Demšar, JMLR 7, 2006).

    It tests whether the difference would hold on other tasks like these. None with fewer than six tasks.
    """
    p_seeds: float | None
    """p-value of a paired t-test on the seeds, or on the draws if there are several, each with its mean over tasks.

    It tests whether the difference would hold with other seeds, or other draws of the images, on these tasks. None with
    fewer than two of them, or if all differ by the same amount.
    """


Scores = Mapping[tuple[str, Any], float]
"""Test accuracy by task and seed, or by task and (draw, seed)."""
Unit = Callable[[Any], Any]
"""Returns what a seed, or a (draw, seed), counts as in the t-test."""


def each_seed(seed: Any) -> Any:
    """Return the seed itself: each is a case of its own."""
    return seed


def each_draw(draw_and_seed: tuple[int, int]) -> int:
    """Return the draw. Its seeds learn from the same images, so together they are one case."""
    return draw_and_seed[0]


def compare_methods(methods: Mapping[str, Scores], unit: Unit = each_seed) -> list[Comparison]:
    """Compare every pair of methods that have a task in common.

    The p-values are corrected for the number of pairs with Holm's method.
    """
    names = [*methods]
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    # A pair without a common task has no comparison.
    candidates = [_compare_pair(one, other, methods[one], methods[other], unit) for one, other in pairs]
    comparisons = [comparison for comparison in candidates if comparison is not None]

    # A pair without a p-value is not one of the tests to correct for.
    over_tasks = iter(holm([pair.p_tasks for pair in comparisons if pair.p_tasks is not None]))
    over_seeds = iter(holm([pair.p_seeds for pair in comparisons if pair.p_seeds is not None]))

    return [
        dataclasses.replace(
            pair,
            p_tasks=None if pair.p_tasks is None else next(over_tasks),
            p_seeds=None if pair.p_seeds is None else next(over_seeds),
        )
        for pair in comparisons
    ]


def _compare_pair(one: str, other: str, one_scores: Scores, other_scores: Scores, unit: Unit) -> Comparison | None:
    common = sorted(one_scores.keys() & other_scores.keys())
    tasks = sorted({task for task, _ in common})
    if not tasks:
        return None

    # Differences by task, and by seed or draw. A draw has the mean over the seeds that both methods have on it.
    differences: dict[str, dict[Any, list[float]]] = {task: {} for task in tasks}
    for task, seed in common:
        differences[task].setdefault(unit(seed), []).append(one_scores[task, seed] - other_scores[task, seed])
    means = {
        task: {seed: statistics.mean(values) for seed, values in by_seed.items()}
        for task, by_seed in differences.items()
    }

    # A task counts with all seeds that both methods have on it.
    by_task = [rounded_mean(means[task].values()) for task in tasks]

    # Only seeds that every task has: a mean over different tasks for each seed would not be comparable.
    common_seeds = sorted(set.intersection(*({*by_seed} for by_seed in means.values())))
    by_seed = [rounded_mean(means[task][seed] for task in tasks) for seed in common_seeds]

    return Comparison(
        one=one,
        other=other,
        tasks=len(tasks),
        seeds=len(common_seeds),
        difference=rounded_mean(by_task),
        better_on=sum(difference > 0 for difference in by_task),
        p_tasks=signed_rank(by_task) if len(tasks) >= MIN_TASKS else None,
        p_seeds=paired_t(by_seed) if len(by_seed) > 1 else None,
    )


def rounded_mean(differences: Iterable[float]) -> float:
    """Return the mean, rounded to 12 decimals.

    The last bits of a difference between equal accuracies are noise, which would count as a difference.
    """
    return round(statistics.mean(differences), 12)
