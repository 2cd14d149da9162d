"""Data efficiency: test accuracy over tuning-set size, and the power law that describes it.

The size of a tuning set is the number of labels that a study has used, train and val together. Trials of version 0.1.0
did not count them: if one is among the final trials, all sizes are numbers of training images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.report.draws import Unit, mean_score, replicates, spread_unit
from trainer.metric_names import LABELS, TRAIN_IMAGES

if TYPE_CHECKING:
    from orchestrator.spec.plan import StudyPlan
    from orchestrator.study.summary import StudySummary
    from orchestrator.study.trial import Trial

STEEPEST = 5.0
"""Largest absolute exponent of a fit. Measured ones lie below 1 (Hestness et al., 2017)."""
CONFIDENCE = 0.95

SizeUnit = Literal["labels", "images"]
"""What a tuning-set size is a number of: labels of train and val, or training images."""
METRICS: dict[SizeUnit, str] = {"labels": LABELS, "images": TRAIN_IMAGES}
"""The metric that gives the size of a trial's tuning set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Test accuracy at one tuning-set size, as fractions 0..1."""

    size: float
    """Number of labels or of training images (see `Curve.unit`), averaged over tasks."""
    mean: float
    """Mean over tasks of the mean over draws of the mean over seeds."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % Student-t interval of the accuracy averaged over tasks; None with one draw and one seed.

    With several draws it is the interval over draws, each with its mean over seeds: it covers the choice of the images.
    With one draw it is the interval over seeds, which covers only the variation between seeds: all of them learn from
    the same images.
    """
    error: float | None = None
    """Standard error of `mean`, over draws or over seeds as the interval; None with one draw and one seed."""
    over: Unit = "seeds"
    """What interval and standard error are over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Test accuracy of one method on one backbone over tuning-set sizes. All points average over the same tasks."""

    label: str
    """The method, followed by the backbone if there are several."""
    method: str
    backbone: str
    points: tuple[Point, ...]
    """Sorted by size."""
    tasks: tuple[str, ...]
    """Tasks that each point averages over."""
    left_out: tuple[str, ...] = ()
    """Tasks without a final score, or without a number of images, at a size for which other tasks have one."""
    unit: SizeUnit = "images"
    """What the sizes are numbers of. It is the same for all curves of a report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """error(n) = a * n**-b + c, the share of wrong answers with a tuning set of n labels (or training images).

    Learning curves of deep networks follow this law over wide ranges of n (Hestness et al., Deep learning scaling is
    predictable, empirically, 2017, arXiv 1712.00409). c is the error that remains at any size.
    """

    a: float
    b: float
    c: float = 0.0
    """Fixed at 0 with three sizes, or if the best fit is not above 0."""
    a_error: float
    b_error: float
    c_error: float | None = None
    """`a_error`, `b_error` and `c_error` are standard errors; None for a `c` that was fixed at 0."""

    def error(self, size: float) -> float:
        """Return the expected share of wrong answers, 0..1, at a tuning-set size."""
        return float(self.a * size**-self.b + self.c)

    def __str__(self) -> str:
        floor = "" if self.c_error is None else f" + {self.c:.2g}"

        # Adding 0.0 turns -0.0 into 0.0, which prints without a sign.
        exponent = round(-self.b, 2) + 0.0
        return f"error = {self.a:.2g} n^{exponent:.2f} (±{self.b_error:.2f}){floor}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Tuning-set size that one curve needs to reach the accuracy of another curve at its largest size."""

    label: str
    other: str
    accuracy: float
    """Accuracy of `other` at its largest size, 0..1."""
    other_size: float
    """Size that `other` needs for it."""
    size: float | None
    """Size that `label` needs for it; None if it does not reach it, or if the tasks differ."""
    most: float
    """Largest size of `label`."""
    unit: SizeUnit = "images"
    """What the sizes are numbers of."""
    at_most: bool = False
    """Whether the smallest measured size was enough, so that a smaller one could be enough, too."""
    same_tasks: bool = True
    """Whether both curves average over the same tasks. If not, they are not compared."""

    def __str__(self) -> str:
        goal = f"{self.other}'s {100 * self.accuracy:.1f} %"

        if not self.same_tasks:
            return f"{self.label} and {self.other} are not compared: they have scores on different tasks"
        if self.size is None:
            return f"{self.label} does not reach {goal} with {self.most:,.0f} {self.unit}"

        bound = "at most " if self.at_most else ""
        return (
            f"{self.label} reaches {goal} with {bound}{self.size:,.0f} {self.unit}; "
            f"{self.other} needs {self.other_size:,.0f}"
        )


def curves(summaries: Sequence[StudySummary]) -> list[Curve]:
    """Return a curve for each method and backbone, over the train sizes that have final scores.

    A curve contains only tasks that have final scores at every size of the curve. Sizes without a score on any task
    are omitted, and so are methods without any score.
    """
    has_several_backbones = len({summary.plan.backbone for summary in summaries}) > 1
    unit = _size_unit(summaries)

    # Final trials of all draws by (method, backbone), train size and task.
    finals: dict[tuple[str, str], dict[str, dict[str, list[Trial]]]] = {}
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    plans: dict[str, list[StudyPlan]] = {}
    for summary in summaries:
        plan = summary.plan
        key = (plan.method, plan.backbone)
        tasks.setdefault(key, {})[plan.task] = None
        plans.setdefault(repr(plan.train_size), []).append(plan)

        scored = [
            trial for trial in summary.final_trials if trial.score is not None and METRICS[unit] in trial.last_metrics
        ]
        if scored:
            # repr tells 1 image from a share of 1.0, which are equal as dictionary keys.
            by_task = finals.setdefault(key, {}).setdefault(repr(plan.train_size), {})
            by_task.setdefault(plan.task, []).extend(scored)

    result = []
    for key, sizes in finals.items():
        method, backbone = key
        common_tasks = [task for task in tasks[key] if all(task in size for size in sizes.values())]

        points = []
        if common_tasks:
            points = [
                _point([finals_of[task] for task in common_tasks], METRICS[unit], spread_unit(plans[size]))
                for size, finals_of in sizes.items()
            ]

        result.append(
            Curve(
                label=f"{method} {backbone}" if has_several_backbones else method,
                method=method,
                backbone=backbone,
                points=tuple(sorted(points, key=lambda point: point.size)),
                tasks=tuple(common_tasks),
                left_out=tuple(task for task in tasks[key] if task not in common_tasks),
                unit=unit,
            )
        )
    return result


def _size_unit(summaries: Sequence[StudySummary]) -> SizeUnit:
    """Return what all sizes are counted in: labels, or training images if a trial of version 0.1.0 is among them."""
    scored = [trial for summary in summaries for trial in summary.final_trials if trial.score is not None]
    return "labels" if scored and all(LABELS in trial.last_metrics for trial in scored) else "images"


def intervals_over(points: Sequence[Point]) -> str:
    """Return what the intervals of some points are over: `draws`, `seeds`, or both with the sizes in words."""
    units = {point.over for point in points if point.low is not None}
    if units == {"draws", "seeds"}:
        return "draws (over seeds where a size has one draw)"
    return next(iter(units), "seeds")


def _point(tasks: Sequence[Sequence[Trial]], size_metric: str, over: Unit) -> Point:
    """Return the point of one tuning-set size from the final trials of each task."""
    mean = statistics.mean(mean_score(trials) for trials in tasks)
    size = statistics.mean(statistics.mean(trial.last_metrics[size_metric] for trial in trials) for trials in tasks)

    scores = replicates(tasks, over)
    if len(scores) < 2:
        return Point(size=size, mean=mean, over=over)

    # scipy takes long to import, and commands that print no report must stay quick.
    from scipy import stats

    error = statistics.stdev(scores) / math.sqrt(len(scores))
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(scores) - 1)) * error

    return Point(
        size=size,
        mean=mean,
        low=max(0.0, mean - half_width),
        high=min(1.0, mean + half_width),
        error=error,
        over=over,
    )


def size_to_reach(curve: Curve, accuracy: float) -> float | None:
    """Return the tuning-set size at which a curve first reaches an accuracy (0..1).

    Between two sizes the accuracy is interpolated linearly in the logarithm of the size. Nothing is
    extrapolated: the result is the smallest size if that is enough already, and None if no measured size is enough.
    """
    if curve.points and curve.points[0].mean >= accuracy:
        return curve.points[0].size

    for below, above in pairwise(curve.points):
        if below.mean < accuracy <= above.mean:
            fraction = (accuracy - below.mean) / (above.mean - below.mean)
            return float(below.size * (above.size / below.size) ** fraction)
    return None


def efficiency_table(curves: Sequence[Curve]) -> list[Efficiency]:
    """Compare each two methods on one backbone, in both directions.

    Each row says which size one method needs to reach the accuracy of the other at its largest size.
    """
    rows = []
    for one, other in permutations([curve for curve in curves if curve.points], 2):
        if one.backbone != other.backbone:
            continue

        goal = other.points[-1]
        has_same_tasks = set(one.tasks) == set(other.tasks)
        size = size_to_reach(one, goal.mean) if has_same_tasks else None

        rows.append(
            Efficiency(
                label=one.label,
                other=other.label,
                accuracy=goal.mean,
                other_size=goal.size,
                size=size,
                most=one.points[-1].size,
                unit=one.unit,
                at_most=size is not None and one.points[0].mean > goal.mean,
                same_tasks=has_same_tasks,
            )
        )
    return rows


def fit_power_law(points: Sequence[Point]) -> PowerLaw | None:
    """Fit a power law to the points by weighted least squares. Return None for fewer than three sizes.

    Points are weighted by their standard errors (over draws, or over seeds where a size has one draw), or equally if a
    point has none. The standard errors of the law are those of the fit, wider if the points lie further from the law
    than their own errors explain. Three sizes cannot identify a floor, so `c` is fixed at 0 there.
    """
    import numpy as np
    from scipy.optimize import least_squares

    if len({point.size for point in points}) < 3:
        return None

    size_N = np.array([point.size for point in points])
    wrong_N = np.array([1.0 - point.mean for point in points])
    sigma_N, has_errors = _sigmas(points)

    # Fit log a at the middle size instead of log a: it is almost independent of b.
    middle = float(np.exp(np.log(size_N).mean()))
    ratio_N = np.log(size_N / middle)

    def residuals(law: Any) -> Any:
        """Return the weighted residuals of (log a at the middle, b) or (log a at the middle, b, c)."""
        floor = law[2] if len(law) > 2 else 0.0
        return (np.exp(law[0] - law[1] * ratio_N) + floor - wrong_N) / sigma_N

    # First fit: no floor. Start from a straight line in log-log coordinates.
    slope, level = np.polyfit(ratio_N, np.log(np.maximum(wrong_N, 1e-6)), 1)
    start = [level, float(np.clip(-slope, 1 - STEEPEST, STEEPEST - 1))]

    # The bounds of log a allow an error from practically zero to more than one.
    fit = least_squares(residuals, start, bounds=([-30.0, -STEEPEST], [10.0, STEEPEST]))

    # Second fit: with a floor, from half the smallest error. It is kept only if it is better.
    least = float(wrong_N.min())
    if len(set(size_N)) > 3 and least > 0:
        start = [math.log(max(float(wrong_N.mean()) - least / 2, 1e-6)), max(start[1], 0.1), least / 2]
        bounds = ([-30.0, 1e-3, 0.0], [10.0, STEEPEST, least])
        fit_with_floor = least_squares(residuals, start, bounds=bounds, x_scale=[1.0, 1.0, max(least, 1e-3)])

        if fit_with_floor.success and fit_with_floor.cost < fit.cost and fit_with_floor.x[2] > 1e-6:
            fit = fit_with_floor

    # Covariance of the parameters. The residuals may widen measured errors, but never narrow them.
    freedom = len(points) - len(fit.x)
    spread = 2 * fit.cost / freedom if freedom else 1.0
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * (max(1.0, spread) if has_errors else spread)

    # Go back to log a = log a at the middle + b * log(middle), also for its standard error.
    a = math.exp(fit.x[0]) * middle ** fit.x[1]
    gradient = np.zeros(len(fit.x))
    gradient[:2] = 1.0, math.log(middle)

    has_floor = len(fit.x) > 2
    return PowerLaw(
        a=float(a),
        b=float(fit.x[1]),
        c=float(fit.x[2]) if has_floor else 0.0,
        a_error=float(a * np.sqrt(gradient @ covariance @ gradient)),
        b_error=float(np.sqrt(covariance[1, 1])),
        c_error=float(np.sqrt(covariance[2, 2])) if has_floor else None,
    )


def _sigmas(points: Sequence[Point]) -> tuple[Any, bool]:
    """Return the weight of each point as a standard deviation, and whether it is a measured standard error.

    A few draws or seeds estimate a spread badly, so the variance of each point is averaged with the mean of all
    variances.
    """
    import numpy as np

    errors = [point.error for point in points if point.error is not None]
    if len(errors) < len(points) or not any(errors):
        return np.ones(len(points)), False

    variance_N = np.square(errors)
    return np.sqrt((variance_N + variance_N.mean()) / 2), True
