"""How many training images an accuracy takes: curves over tuning-set size, and the power law behind them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

from trainer.metric_names import TRAIN_IMAGES

if TYPE_CHECKING:
    from orchestrator.study.study import StudySummary
    from orchestrator.study.trial import Trial

IMAGES = TRAIN_IMAGES
"""The metric that counts the images a trial was trained on."""
STEEPEST = 5.0
"""The largest exponent, either way, that a fit may have; measured ones lie below 1 (Hestness et al., 2017)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Test accuracy at one tuning-set size; shares 0..1."""

    images: float
    """Training images, the mean over tasks."""
    mean: float
    """Over the tasks, of each its mean over seeds."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % Student-t interval over seeds of the accuracy averaged over tasks; none with one seed.

    It covers what differs between seeds, not which images were drawn: those are the same for every seed.
    """
    error: float | None = None
    """Standard error of `mean` over seeds; none with one seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Test accuracy of one method on one backbone over tuning-set sizes; every point averages over the same tasks."""

    label: str
    """The method, and the backbone where there are several."""
    method: str
    backbone: str
    points: tuple[Point, ...]
    """By number of images."""
    tasks: tuple[str, ...]
    """What a point averages over."""
    left_out: tuple[str, ...] = ()
    """Tasks without a final score, or without a count of images, at some size that others have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """error(n) = a * n**-b + c, the share of wrong answers after n training images.

    Learning curves of deep networks follow such a law over wide ranges of n (Hestness et al., Deep learning scaling is
    predictable, empirically, 2017, arXiv 1712.00409); c is the error that no number of images removes.
    """

    a: float
    b: float
    c: float = 0.0
    """0 where it was held there: with three sizes, or because the best fit would be no higher."""
    a_error: float
    b_error: float
    c_error: float | None = None
    """Standard errors; none for a `c` that was held at 0."""

    def error(self, images: float) -> float:
        """The share of wrong answers, 0..1, that the law expects after so many images."""
        return float(self.a * images**-self.b + self.c)

    def __str__(self) -> str:
        floor = "" if self.c_error is None else f" + {self.c:.2g}"
        return f"error = {self.a:.2g} n^{round(-self.b, 2) + 0.0:.2f} (±{self.b_error:.2f}){floor}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """How many images one curve needs for what another reaches at its largest size."""

    label: str
    other: str
    accuracy: float
    """What `other` reaches at its largest size, 0..1."""
    other_images: float
    """Images that `other` needs for it."""
    images: float | None
    """Images that `label` needs for it; none where it does not get there, or the tasks differ."""
    most: float
    """Images of `label`'s largest size."""
    at_most: bool = False
    """Whether the smallest size measured was enough, so that fewer may be too."""
    same_tasks: bool = True
    """Whether both averages are over the same tasks: nothing is compared otherwise."""

    def __str__(self) -> str:
        goal = f"{self.other}'s {100 * self.accuracy:.1f} %"
        if not self.same_tasks:
            return f"{self.label} and {self.other} have scores on different tasks: not compared"
        if self.images is None:
            return f"{self.label} does not reach {goal} with {self.most:,.0f} images"
        bound = "at most " if self.at_most else ""
        return f"{self.label} reaches {goal} with {bound}{self.images:,.0f} of {self.other_images:,.0f} images"


def curves(summaries: Sequence[StudySummary]) -> list[Curve]:
    """One curve a method and backbone, over the train sizes that have final scores.

    Only tasks with final scores at every size of the curve take part. Sizes of which no task has a score yet, and
    methods that have none at all, are not there.
    """
    several = len({summary.plan.backbone for summary in summaries}) > 1
    finals: dict[tuple[str, str], dict[object, dict[str, list[Trial]]]] = {}
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for summary in summaries:
        plan = summary.plan
        place = (plan.method, plan.backbone)
        tasks.setdefault(place, {})[plan.task] = None
        if scored := [
            trial for trial in summary.final_trials if trial.score is not None and IMAGES in trial.last_metrics
        ]:
            finals.setdefault(place, {}).setdefault(repr(plan.train_size), {})[plan.task] = scored
    found = []
    for place, sizes in finals.items():
        method, backbone = place
        took_part = [task for task in tasks[place] if all(task in size for size in sizes.values())]
        points = [_point([size[task] for task in took_part]) for size in sizes.values()] if took_part else []
        found.append(
            Curve(
                label=f"{method} {backbone}" if several else method,
                method=method,
                backbone=backbone,
                points=tuple(sorted(points, key=lambda point: point.images)),
                tasks=tuple(took_part),
                left_out=tuple(task for task in tasks[place] if task not in took_part),
            )
        )
    return found


def over_seeds(tasks: Sequence[Sequence[Trial]]) -> list[float]:
    """The score averaged over tasks, once for each seed with which every task was scored.

    Args:
        tasks: the final trials of each task.
    """
    scores = [{trial.config.seed: trial.score for trial in trials if trial.score is not None} for trials in tasks]
    seeds = [seed for seed in scores[0] if all(seed in task for task in scores)]
    return [statistics.mean(task[seed] for task in scores) for seed in seeds]


def _point(tasks: Sequence[Sequence[Trial]]) -> Point:
    mean = statistics.mean(statistics.mean(t.score for t in trials if t.score is not None) for trials in tasks)
    images = statistics.mean(statistics.mean(trial.last_metrics[IMAGES] for trial in trials) for trials in tasks)
    scores = over_seeds(tasks)
    if len(scores) < 2:
        return Point(images=images, mean=mean)
    from scipy import stats

    error = statistics.stdev(scores) / math.sqrt(len(scores))
    half = float(stats.t.ppf(0.975, len(scores) - 1)) * error
    return Point(images=images, mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), error=error)


def size_to_reach(curve: Curve, accuracy: float) -> float | None:
    """The number of images at which a curve first reaches an accuracy (0..1).

    Between two sizes accuracy is taken to be linear in the logarithm of the images. Nothing is extrapolated: it is
    the smallest size where that is enough already, and None where no measured size is.
    """
    if curve.points and curve.points[0].mean >= accuracy:
        return curve.points[0].images
    for below, above in pairwise(curve.points):
        if below.mean < accuracy <= above.mean:
            way = (accuracy - below.mean) / (above.mean - below.mean)
            return float(below.images * (above.images / below.images) ** way)
    return None


def efficiency_table(curves: Sequence[Curve]) -> list[Efficiency]:
    """For each two methods on one backbone, both ways: what one needs for the other's accuracy at its largest size."""
    found = []
    for one, other in permutations([curve for curve in curves if curve.points], 2):
        if one.backbone != other.backbone:
            continue
        goal, same = other.points[-1], set(one.tasks) == set(other.tasks)
        images = size_to_reach(one, goal.mean) if same else None
        found.append(
            Efficiency(
                label=one.label,
                other=other.label,
                accuracy=goal.mean,
                other_images=goal.images,
                images=images,
                most=one.points[-1].images,
                at_most=images is not None and one.points[0].mean > goal.mean,
                same_tasks=same,
            )
        )
    return found


def fit_power_law(points: Sequence[Point]) -> PowerLaw | None:
    """The power law nearest to the points by weighted least squares; None of fewer than three sizes.

    Points weigh by their standard errors over seeds, equally where some have none. The law's standard errors are
    those of the fit, wider where the points lie further from the law than their own errors explain. With three sizes
    there is nothing to tell a floor from: `c` is held at 0.
    """
    import numpy as np
    from scipy.optimize import least_squares

    if len({point.images for point in points}) < 3:
        return None
    images_N = np.array([point.images for point in points])
    wrong_N = np.array([1.0 - point.mean for point in points])
    sigma_N, known = _sigmas(points)
    # In the logarithm of a at the middle size, a and b hardly depend on each other.
    middle = float(np.exp(np.log(images_N).mean()))
    ratio_N = np.log(images_N / middle)

    def residuals(law: Any) -> Any:
        return (np.exp(law[0] - law[1] * ratio_N) + (law[2] if len(law) > 2 else 0.0) - wrong_N) / sigma_N

    slope, level = np.polyfit(ratio_N, np.log(np.maximum(wrong_N, 1e-6)), 1)
    start = [level, float(np.clip(-slope, 1 - STEEPEST, STEEPEST - 1))]
    # The ends of `a` are those of an error of practically nothing and of more than all.
    fitted = least_squares(residuals, start, bounds=([-30.0, -STEEPEST], [10.0, STEEPEST]))
    least = float(wrong_N.min())
    if len(set(images_N)) > 3 and least > 0:
        start = [math.log(max(float(wrong_N.mean()) - least / 2, 1e-6)), max(start[1], 0.1), least / 2]
        bounds = ([-30.0, 1e-3, 0.0], [10.0, STEEPEST, least])
        floored = least_squares(residuals, start, bounds=bounds, x_scale=[1.0, 1.0, max(least, 1e-3)])
        if floored.success and floored.cost < fitted.cost and floored.x[2] > 1e-6:
            fitted = floored
    freedom = len(points) - len(fitted.x)
    spread = 2 * fitted.cost / freedom if freedom else 1.0
    covariance = np.linalg.pinv(fitted.jac.T @ fitted.jac) * (max(1.0, spread) if known else spread)
    a, b = math.exp(fitted.x[0]) * middle ** fitted.x[1], fitted.x[1]
    turn = np.zeros(len(fitted.x))  # log a is log(a at the middle) + b * log(middle)
    turn[:2] = 1.0, math.log(middle)
    return PowerLaw(
        a=float(a),
        b=float(b),
        c=float(fitted.x[2]) if len(fitted.x) > 2 else 0.0,
        a_error=float(a * np.sqrt(turn @ covariance @ turn)),
        b_error=float(np.sqrt(covariance[1, 1])),
        c_error=float(np.sqrt(covariance[2, 2])) if len(fitted.x) > 2 else None,
    )


def _sigmas(points: Sequence[Point]) -> tuple[Any, bool]:
    """What each point weighs with, and whether it is a standard error.

    A few seeds tell little of a spread: each point's variance is averaged with the mean of all.
    """
    import numpy as np

    own = [point.error for point in points if point.error is not None]
    if len(own) < len(points) or not any(own):
        return np.ones(len(points)), False
    variance_N = np.square(own)
    return np.sqrt((variance_N + variance_N.mean()) / 2), True
