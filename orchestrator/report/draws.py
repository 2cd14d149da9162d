"""Scores of final trials over the random draws of a tuning set, and over seeds.

The trials of a draw learn from the same images. So a spread over seeds does not show how much a score depends on the
choice of the images. A spread over draws does.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

from orchestrator.spec.plan import StudyPlan
from orchestrator.study.trial import Trial

Unit = Literal["draws", "seeds"]
"""What a spread or an interval is over."""


def spread_unit(plans: Iterable[StudyPlan]) -> Unit:
    """Return what the spreads of some studies are over. Studies of a train size have one draw, or several."""
    return "draws" if len({plan.draw for plan in plans}) > 1 else "seeds"


def scores_by_draw(trials: Iterable[Trial]) -> dict[int, dict[int, float]]:
    """Return the scores of one task by draw, then by seed. Trials without a score are left out."""
    scores: dict[int, dict[int, float]] = {}
    for trial in trials:
        if trial.score is not None:
            scores.setdefault(trial.config.draw, {})[trial.config.seed] = trial.score
    return scores


def mean_score(trials: Iterable[Trial]) -> float:
    """Return the mean over draws of the mean over seeds.

    Raises:
        ValueError: if no trial has a score.
    """
    return statistics.mean(statistics.mean(by_seed.values()) for by_seed in scores_by_draw(trials).values())


def replicates(tasks: Sequence[Iterable[Trial]], unit: Unit) -> list[float]:
    """Return the scores that a spread is computed from, one for each draw or seed that every task has.

    The score of a draw is the mean over tasks of the mean over its seeds. The score of a seed is the mean over tasks.

    Args:
        tasks: the final trials of each task; of one draw, if `unit` is seeds.
    """
    by_task = [scores_by_draw(trials) for trials in tasks]

    if unit == "draws":
        return _over_tasks(
            [{draw: statistics.mean(scores.values()) for draw, scores in by_draw.items()} for by_draw in by_task]
        )
    return _over_tasks([next(iter(by_draw.values()), {}) for by_draw in by_task])


def _over_tasks(scores: Sequence[dict[int, float]]) -> list[float]:
    """Return the mean over tasks for each draw or seed that all tasks have."""
    common = [number for number in scores[0] if all(number in of_task for of_task in scores)]
    return [statistics.mean(of_task[number] for of_task in scores) for number in common]
