"""Compare methods over tasks and over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.study.statistics import holm, paired_t, signed_rank

MIN_TASKS = 6
"""Below this many tasks no outcome of a signed-rank test has p < 0.05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One method against another on the tasks and seeds that both have."""

    one: str
    other: str
    tasks: int
    seeds: int
    """Seeds that both have on every one of these tasks."""
    difference: float
    """Mean over tasks of the mean over seeds of `one` minus `other`: accuracy, 0..1."""
    better_on: int
    """Tasks on which `one` has the higher mean."""
    p_tasks: float | None
    """Whether it would hold on other tasks like these: Wilcoxon's signed-rank test over the tasks' differences
    (Demšar, JMLR 7, 2006); None with fewer than six tasks."""
    p_seeds: float | None
    """Whether it would hold with other seeds on these tasks: paired t-test over seeds of the mean over tasks; None
    with fewer than two seeds, or where all differ by the same."""


Scores = Mapping[tuple[str, int], float]
"""Test accuracy by task and seed."""


def compare_methods(methods: Mapping[str, Scores]) -> list[Comparison]:
    """Every pair of methods that have a task in common; p-values are corrected for the number of pairs (Holm)."""
    names = [*methods]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    found = [_compare_pair(one, other, methods[one], methods[other]) for one, other in pairs]
    kept = [comparison for comparison in found if comparison is not None]
    over_tasks = iter(holm([each.p_tasks for each in kept if each.p_tasks is not None]))
    over_seeds = iter(holm([each.p_seeds for each in kept if each.p_seeds is not None]))
    return [
        dataclasses.replace(
            each,
            p_tasks=None if each.p_tasks is None else next(over_tasks),
            p_seeds=None if each.p_seeds is None else next(over_seeds),
        )
        for each in kept
    ]


def _compare_pair(one: str, other: str, ours: Scores, theirs: Scores) -> Comparison | None:
    both = sorted(ours.keys() & theirs.keys())
    tasks = sorted({task for task, _ in both})
    if not tasks:
        return None
    seeds_of = {task: {seed for own, seed in both if own == task} for task in tasks}
    by_task = [rounded_mean(ours[task, s] - theirs[task, s] for s in sorted(seeds_of[task])) for task in tasks]
    common = sorted(set.intersection(*seeds_of.values()))
    by_seed = [rounded_mean(ours[task, seed] - theirs[task, seed] for task in tasks) for seed in common]
    return Comparison(
        one=one,
        other=other,
        tasks=len(tasks),
        seeds=len(common),
        difference=rounded_mean(by_task),
        better_on=sum(difference > 0 for difference in by_task),
        p_tasks=signed_rank(by_task) if len(tasks) >= MIN_TASKS else None,
        p_seeds=paired_t(by_seed) if len(by_seed) > 1 else None,
    )


def rounded_mean(differences: Iterable[float]) -> float:
    """Without the last bits, in which equal accuracies may differ."""
    return round(statistics.mean(differences), 12)
