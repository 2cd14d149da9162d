"""Which differences are more than chance: between the trials of a study on val, and between methods on test."""

from __future__ import annotations

import base64
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec.schema import Select
from orchestrator.study.trial import TrialResult

LEVEL = 0.05
"""Chance of calling anything different that is not, in a whole family of tests (Holm's correction)."""
FEWEST_TASKS = 6
"""Below this many tasks no outcome of a signed-rank test has p < 0.05."""


def pack(correct_N: Sequence[bool] | NDArray[np.bool_]) -> str:
    """Which images were classified right, in text: their number, then a bit an image."""
    bits = np.packbits(np.asarray(correct_N, dtype=bool)).tobytes()
    return f"{len(correct_N)}:{base64.b64encode(bits).decode()}"


def unpack(packed: str) -> NDArray[np.bool_]:
    """What `pack` was given."""
    count, _, bits = packed.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)


def tied(trials: Sequence[TrialResult], level: float = LEVEL) -> list[TrialResult]:
    """The complete trials of a study that val cannot tell from the best of them, which is the first; by val accuracy.

    Each is compared with the best image by image: McNemar's exact test (two-sided) on the images that only one of the
    two classifies right, with Holm's correction (Scandinavian Journal of Statistics 6, 1979) for the number of
    candidates. A trial of which it is not known which images it got right, or that was scored on other images, counts
    as different.
    """
    by_val = ranked(trials)
    if not by_val or "correct" not in by_val[0].facts:
        return by_val[:1]
    best, *others = [trial for trial in by_val if "correct" in trial.facts and _images(trial) == _images(by_val[0])]
    best_N = unpack(best.facts["correct"])
    p_values = [mcnemar(best_N, unpack(trial.facts["correct"])) for trial in others]
    return [best, *(trial for trial, p in zip(others, holm(p_values), strict=True) if p > level)]


def chosen(trials: Sequence[TrialResult], select: Select) -> TrialResult | None:
    """The trial whose params a study's final trials repeat, by a spec's `final.select`; None while there is none."""
    if select == "simplest_tied":
        return simplest(found) if (found := tied(trials)) else None
    return min(_complete(trials), key=_place, default=None)


def ranked(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """The complete trials by val accuracy at their last epoch, of equals the earliest first; a config once."""
    return sorted(_complete(trials), key=_place)


def _complete(trials: Sequence[TrialResult]) -> list[TrialResult]:
    return [trial for trial in trials if trial.score is not None and trial.duplicate_of is None]


def _place(trial: TrialResult) -> tuple[float, int]:
    """Better ones sort first, of equals the earlier."""
    assert trial.score is not None, "it is complete"
    return -trial.score, trial.number


def simplest(trials: Sequence[TrialResult]) -> TrialResult:
    """The trial that learns the fewest parameters; of equals the one of the higher val accuracy, then the earliest."""
    return min(
        trials,
        key=lambda trial: (trial.last.get("learnable/parameters", math.inf), -(trial.score or 0.0), trial.number),
    )


def _images(trial: TrialResult) -> tuple[str, ...]:
    """The images that a trial was scored on: the task's fingerprint, the split, the part; crops may vary."""
    return tuple(trial.facts.get("scored_on", "").split("/")[:3])


def mcnemar(one_N: NDArray[np.bool_], other_N: NDArray[np.bool_]) -> float:
    """Exact two-sided p that two classifiers are right equally often, from the images that tell them apart."""
    from scipy.special import bdtr

    only_one, only_other = int((one_N & ~other_N).sum()), int((other_N & ~one_N).sum())
    return min(1.0, 2.0 * float(bdtr(min(only_one, only_other), only_one + only_other, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order: smallest first, each times the tests that are left."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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


def compare(methods: Mapping[str, Scores]) -> list[Comparison]:
    """Every pair of methods that have a task in common; p-values are corrected for the number of pairs (Holm)."""
    names = [*methods]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    found = [_compared(one, other, methods[one], methods[other]) for one, other in pairs]
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


def _compared(one: str, other: str, ours: Scores, theirs: Scores) -> Comparison | None:
    both = sorted(ours.keys() & theirs.keys())
    tasks = sorted({task for task, _ in both})
    if not tasks:
        return None
    seeds_of = {task: {seed for own, seed in both if own == task} for task in tasks}
    by_task = [_mean(ours[task, s] - theirs[task, s] for s in sorted(seeds_of[task])) for task in tasks]
    common = sorted(set.intersection(*seeds_of.values()))
    by_seed = [_mean(ours[task, seed] - theirs[task, seed] for task in tasks) for seed in common]
    return Comparison(
        one=one,
        other=other,
        tasks=len(tasks),
        seeds=len(common),
        difference=_mean(by_task),
        better_on=sum(difference > 0 for difference in by_task),
        p_tasks=_signed_rank(by_task) if len(tasks) >= FEWEST_TASKS else None,
        p_seeds=_paired_t(by_seed) if len(by_seed) > 1 else None,
    )


def _mean(differences: Iterable[float]) -> float:
    """Without the last bits, in which equal accuracies may differ."""
    return round(statistics.mean(differences), 12)


def _signed_rank(differences: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test: zeros left out, equal ranks shared, all 2^n signs counted.

    scipy.stats counts them one by one where ranks are shared: a second for twelve tasks.
    """
    nonzero = np.asarray([difference for difference in differences if difference])
    _, place, count = np.unique(np.abs(nonzero), return_inverse=True, return_counts=True)
    twice_rank = (2 * np.cumsum(count) - count + 1)[place]
    ways = np.ones(1)  # of each sum of ranks, as signs are added
    for rank in twice_rank:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    found = int(twice_rank[nonzero > 0].sum())
    return min(1.0, 2.0 * float(min(ways[: found + 1].sum(), ways[found:].sum()) / ways.sum()))


def _paired_t(differences: Sequence[float]) -> float | None:
    from scipy.special import stdtr

    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    if spread == 0.0:  # seeds that all differ by the same say nothing of how seeds vary
        return 1.0 if mean == 0.0 else None
    t = mean / (spread / len(differences) ** 0.5)
    return float(2.0 * stdtr(len(differences) - 1, -abs(t)))
