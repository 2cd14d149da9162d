"""Comparison of methods over tasks, and over seeds or draws of the images."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.study.selection import LEVEL
from orchestrator.study.statistics import holm, paired_t, signed_rank
from trainer.plain_text import counted


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

    It tests whether the difference would hold on other tasks like these. Each task has a search of its own, so it
    covers the luck of the searches. None if a single pair on so few tasks could not reach 5 %.
    """
    p_seeds: float | None
    """p-value of a paired t-test on the seeds, or on the draws if there are several, each with its mean over tasks.

    Over seeds, it tests whether the difference would hold with other seeds of the final trials, on these tasks and with
    the params that the same searches chose. It does not cover the luck of a search. Over draws, it tests whether the
    difference would hold with other images. Each draw has a search of its own, so it covers the luck of the searches.
    None with fewer than two seeds or draws, or if all differ by the same amount.
    """
    num_pairs: int = 1
    """Number of pairs that the p over tasks is corrected for, or would be if there were more tasks."""

    @property
    def tasks_needed(self) -> int:
        """The smallest number of tasks with which the p over tasks can be below 5 %."""
        return min_tasks(self.num_pairs)

    @property
    def has_enough_tasks(self) -> bool:
        """Whether the p over tasks can be below 5 %."""
        return self.tasks >= self.tasks_needed


Scores = Mapping[tuple[str, Any], float]
"""Test accuracy by task and seed, or by task and (draw, seed)."""
CaseOf = Callable[[Any], Any]
"""Returns the case of the t-test that a seed, or a (draw, seed), belongs to."""


def each_seed(seed: Any) -> Any:
    """Return the seed itself: each is a case of its own."""
    return seed


def each_draw(draw_and_seed: tuple[int, int]) -> int:
    """Return the draw. Its seeds learn from the same images, so together they are one case."""
    return draw_and_seed[0]


def compare_methods(methods: Mapping[str, Scores], case_of: CaseOf = each_seed) -> list[Comparison]:
    """Return the comparison of every pair of methods that have a task in common.

    The p-values have Holm's correction for the number of pairs.

    Args:
        methods: scores by name of the method.
        case_of: `each_seed`, or `each_draw` if the seeds are (draw, seed).
    """
    names = [*methods]
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    # A pair without a common task has no comparison.
    candidates = [_compare_pair(one, other, methods[one], methods[other], case_of) for one, other in pairs]
    comparisons = [comparison for comparison in candidates if comparison is not None]

    # A pair without a p-value is not one of the tests to correct for.
    tested_over_tasks = [pair.p_tasks for pair in comparisons if pair.p_tasks is not None]
    over_tasks = iter(holm(tested_over_tasks))
    over_seeds = iter(holm([pair.p_seeds for pair in comparisons if pair.p_seeds is not None]))

    return [
        dataclasses.replace(
            pair,
            p_tasks=None if pair.p_tasks is None else next(over_tasks),
            # With more tasks, every pair would be one of the tests.
            num_pairs=len(comparisons if pair.p_tasks is None else tested_over_tasks),
            p_seeds=None if pair.p_seeds is None else next(over_seeds),
        )
        for pair in comparisons
    ]


def _compare_pair(one: str, other: str, one_scores: Scores, other_scores: Scores, case_of: CaseOf) -> Comparison | None:
    common = sorted(one_scores.keys() & other_scores.keys())
    tasks = sorted({task for task, _ in common})
    if not tasks:
        return None

    # Differences by task, and by seed or draw. A draw has the mean over the seeds that both methods have on it.
    differences: dict[str, dict[Any, list[float]]] = {task: {} for task in tasks}
    for task, seed in common:
        differences[task].setdefault(case_of(seed), []).append(one_scores[task, seed] - other_scores[task, seed])
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
        p_tasks=signed_rank(by_task) if len(tasks) >= min_tasks(1) else None,
        p_seeds=paired_t(by_seed) if len(by_seed) > 1 else None,
    )


def min_tasks(num_pairs: int) -> int:
    """Return the smallest number of tasks with which one of these pairs can reach p < 0.05 over tasks.

    If one method wins on all n tasks, the signed-rank test has its smallest p: 2 / 2^n. Holm's correction multiplies it
    by the number of pairs.
    """
    return next(num_tasks for num_tasks in itertools.count(1) if 2 / 2**num_tasks * num_pairs < LEVEL)


def comparison_text(comparisons: Sequence[Comparison], units: Collection[str]) -> Iterator[str]:
    """Yield what the p-values test, and how many tasks they need where there are too few.

    Args:
        units: what the cases of the t-tests are: seeds, draws or both.
    """
    # Several backbones or train sizes may lack the same number of tasks.
    lacking = {(pair.num_pairs, pair.tasks) for pair in comparisons if not pair.has_enough_tasks}
    if any(pair.has_enough_tasks for pair in comparisons):
        advice = "Cite this one where it is given." if lacking else "Cite this one."
        yield (
            "p over tasks: whether the difference would hold on other tasks like these (Wilcoxon's signed-rank test). "
            f"Each task has a search of its own, so the test covers the luck of the searches. {advice}"
        )
    else:
        yield "p over tasks, whether the difference would hold on other tasks like these, is not given: too few tasks."
    if "seeds" in units:
        yield (
            "p over seeds, same search: whether the difference would hold with other seeds of the final trials (paired "
            "t-test). It does not cover the luck of one search on val: with five seeds, two equal methods whose scores "
            "vary by 0.5 points from search to search, and as much from seed to seed, are called different in 32 % of "
            "cases."
        )
    if "draws" in units:
        yield (
            "p over draws: whether the difference would hold with other images of the same number, on these tasks "
            "(paired t-test). Each draw has a search of its own, so the test covers the luck of the searches."
        )

    paired_over = " or ".join(sorted(units, reverse=True))
    yield (
        f"Bold above and p over {paired_over} may disagree: bold tests each task alone, with its scores as independent "
        "samples (Welch's t-test); p pairs them, and averages over the tasks."
    )

    for num_pairs, num_tasks in sorted(lacking):
        pairs = counted(num_pairs, "pair")
        tasks = counted(num_tasks, "task")
        yield (
            f"p over tasks of {pairs} of methods needs {counted(min_tasks(num_pairs), 'task')}: with {tasks} it "
            f"cannot be below 5 %, even if one method wins on all of them."
        )


def rounded_mean(differences: Iterable[float]) -> float:
    """Return the mean, rounded to 12 decimals.

    The last bits of a difference between equal accuracies are noise, which would count as a difference.
    """
    return round(statistics.mean(differences), 12)
