"""Figures of accuracy over searched parameters: each parameter by itself, and a grid of two choices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator

from orchestrator.figures.style import (
    GREY,
    NARROW,
    WIDE,
    categories,
    columns_for,
    decades,
    finish,
    jitter,
    log_x,
    log_y,
    name_axes,
    panels,
    style_at,
    style_of,
)
from orchestrator.spec.labels import format_value, setting_text
from orchestrator.spec.space import Choice
from orchestrator.study.trial import TrialState
from trainer.metric_names import PROTOTYPES_SECONDS, VAL_ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.spec.space import Dimension
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

PRUNED = "pruned (last value)"
EDGE = "upper edge"
"""Of the complete trials: how high accuracy rises at each value. It is their upper convex hull."""
LEGEND_ORDER = ("complete", "chosen", PRUNED, "unfinished", "failed", "median", EDGE)


def against_params(study: Study) -> Figure | None:
    """Draw val accuracy of all search trials against each searched parameter.

    A choice has the median of its trials; a range has the upper edge of its trials, a dashed line.
    """
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None]
    space = {
        name: dimension for name, dimension in study.plan.space.items() if any(name in trial.params for trial in trials)
    }
    if not space or all(reached(trial) is None for trial in trials):
        return None

    columns = columns_for(len(space))
    width = NARROW if columns == 1 else WIDE
    figure, axes = panels(len(space), width=width, height=2.2, columns=columns, share_y=True)

    # Room for the star of the chosen trial above the points.
    axes[0].margins(y=0.12)

    color = style_of(study.plan.method).color
    legend: dict[str, Artist] = {}
    for index, (ax, (name, dimension)) in enumerate(zip(axes, space.items(), strict=True)):
        # A conditional parameter has no value in some trials.
        trials_with_value = [trial for trial in trials if name in trial.params]

        _set_scale(ax, dimension, width / columns)
        legend |= _points(ax, name, dimension, trials_with_value, study.best, color)
        legend |= _summary(ax, name, dimension, trials_with_value)
        name_axes(ax, name, "val accuracy, %" if index % columns == 0 else "")

    ordered = {word: legend[word] for word in LEGEND_ORDER if word in legend}
    return finish(figure, f"search: {setting_text(study.plan)}", ordered)


def reached(trial: Trial) -> float | None:
    """Return the latest val accuracy of a trial, 0..1; None if it failed or has no val accuracy."""
    if trial.state is TrialState.FAILED:
        return None

    value = trial.score if trial.score is not None else trial.last_metrics.get(VAL_ACCURACY, math.nan)
    return value if math.isfinite(value) else None


def text(value: object) -> str:
    """Return a value of a choice as written in the spec: 1 is a count, 1.0 is a share."""
    return format_value(value)


def _set_scale(ax: Axes, dimension: Dimension, room: float) -> None:
    """Set the x axis for a dimension. `room` is the width of the panel in inches."""
    if isinstance(dimension, Choice):
        categories(ax, [text(value) for value in dimension.values], 0.75 * room)
    elif dimension.log:
        log_x(ax, [dimension.low, dimension.high])
        marks = decades(dimension.low, dimension.high)
        ax.set_xticks(marks, [f"{mark:g}" for mark in marks])
    else:
        margin = 0.05 * (dimension.high - dimension.low)
        ax.set_xlim(dimension.low - margin, dimension.high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=dimension.type == "int"))


def _x(dimension: Dimension, value: object) -> float | None:
    """Return the position of a value on the x axis; None for a choice that the spec no longer contains."""
    if isinstance(dimension, Choice):
        texts = [text(option) for option in dimension.values]
        return float(texts.index(text(value))) if text(value) in texts else None
    return float(value)  # type: ignore[arg-type]


def _points(
    ax: Axes, name: str, dimension: Dimension, trials: Sequence[Trial], best: Trial | None, color: str
) -> dict[str, Artist]:
    """Draw a point for each trial, and return the artist of each entry of the legend."""
    points_by_word: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        x = _x(dimension, trial.params[name])
        y = reached(trial)
        if x is None:
            continue

        # Trials of the same choice would lie on one line, and hide each other.
        if isinstance(dimension, Choice):
            x += jitter(trial.number)

        # A failed trial has no accuracy: it is marked at the bottom of the axes.
        if trial.state is TrialState.FAILED:
            points_by_word.setdefault("failed", []).append((x, 0.04))
        elif y is not None:
            words = {TrialState.COMPLETE: "complete", TrialState.PRUNED: PRUNED}
            word = "chosen" if trial == best else words.get(trial.state, "unfinished")
            points_by_word.setdefault(word, []).append((x, 100 * y))

    styles: dict[str, dict[str, object]] = {
        "complete": {"marker": "o", "color": color, "markersize": 3.5, "alpha": 0.75, "markeredgewidth": 0},
        PRUNED: {"marker": "o", "color": GREY, "markersize": 3, "markerfacecolor": "none"},
        "unfinished": {"marker": ".", "color": GREY, "markersize": 3},
        "failed": {"marker": "x", "color": "black", "markersize": 3.5, "transform": ax.get_xaxis_transform()},
        "chosen": {"marker": "*", "color": color, "markersize": 9, "markeredgecolor": "black", "zorder": 4},
    }
    legend: dict[str, Artist] = {}
    for word, points in points_by_word.items():
        xs, ys = zip(*points, strict=True)
        # Styles of a word override the thin edge.
        style: dict[str, object] = {"markeredgewidth": 0.6} | styles[word]
        (legend[word],) = ax.plot(xs, ys, linestyle="none", **style)  # type: ignore[arg-type]
    return legend


def _summary(ax: Axes, name: str, dimension: Dimension, trials: Sequence[Trial]) -> dict[str, Artist]:
    """Draw a summary of the complete trials: the median of each choice, or the upper hull over a range."""
    points = []
    for trial in trials:
        x = _x(dimension, trial.params[name])
        if trial.score is not None and x is not None:
            points.append((x, 100 * trial.score))

    legend: dict[str, Artist] = {}
    if isinstance(dimension, Choice):
        # A choice without a complete trial has no median.
        for position in sorted({x for x, _ in points}):
            median = statistics.median(y for x, y in points if x == position)
            ends = [position - 0.3, position + 0.3]
            (legend["median"],) = ax.plot(ends, [median] * 2, color="black", linewidth=1.2, zorder=3)
        return legend

    # On a logarithmic axis the hull is convex in the logarithm.
    hull = upper_hull([(math.log(x) if dimension.log else x, y) for x, y in points])
    if len(hull) > 1:
        xs = [math.exp(x) if dimension.log else x for x, _ in hull]
        ys = [y for _, y in hull]
        (legend[EDGE],) = ax.plot(xs, ys, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)
    return legend


def upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of the upper convex hull, from left to right."""
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        # Of points with the same x, the highest comes first.
        if hull and x == hull[-1][0]:
            continue

        while len(hull) > 1 and _is_below(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _is_below(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Return whether the middle point lies on or below the line from left to right."""
    rise = right[1] - left[1]
    run = right[0] - left[0]
    return (middle[1] - left[1]) * run <= rise * (middle[0] - left[0])


def choice_grid(study: Study) -> Figure | None:
    """Draw the best val accuracy of each pair of a text choice and a numeric choice, and below it the building time.

    The figure exists if exactly one choice of each kind was searched. The building time is the time to build the
    prompt's first value, the median over the trials of a pair.
    """
    choices = {name: dimension.values for name, dimension in study.plan.space.items() if isinstance(dimension, Choice)}
    text_names = [name for name, values in choices.items() if all(isinstance(value, str) for value in values)]
    number_names = [name for name, values in choices.items() if all(isinstance(value, int | float) for value in values)]
    if len(text_names) != 1 or len(number_names) != 1:
        return None

    (text_name,) = text_names
    (number_name,) = number_names
    best, cost = _cells(study, text_name, number_name)
    if not best:
        return None

    figure, axes = panels(2 if cost else 1, width=NARROW, height=1.9 if cost else 2.6)
    rows = [text(value) for value in choices[text_name]]
    steps = [text(value) for value in _in_order(choices[number_name])]
    # Rows keep their style in both panels.
    legend = _draw_grid(axes[0], rows, steps, best)
    if cost:
        legend |= _draw_grid(axes[1], rows, steps, cost)

    name_axes(axes[0], "" if cost else number_name, "best val accuracy, %")
    if cost:
        log_y(axes[1], [*cost.values()])
        name_axes(axes[1], number_name, "building time, s")
    return finish(figure, f"{text_name} by {number_name}: {setting_text(study.plan)}", legend, of=text_name)


Cells = dict[tuple[str, str], float]
"""A number for each pair of a text and a numeric value."""


def _cells(study: Study, text_name: str, number_name: str) -> tuple[Cells, Cells]:
    """Return the best val accuracy in percent, and the median building time in seconds, of each pair."""
    scores: dict[tuple[str, str], list[float]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for trial in study.search_table.trials:
        if text_name not in trial.params or number_name not in trial.params:
            continue

        cell = (text(trial.params[text_name]), text(trial.params[number_name]))
        if trial.score is not None:
            scores.setdefault(cell, []).append(100 * trial.score)

        # Zero cannot be drawn on a logarithmic axis.
        building = trial.last_metrics.get(PROTOTYPES_SECONDS, math.nan)
        if math.isfinite(building) and building > 0:
            seconds.setdefault(cell, []).append(building)

    best = {cell: max(values) for cell, values in scores.items()}
    cost = {cell: statistics.median(values) for cell, values in seconds.items()}
    return best, cost


def _draw_grid(ax: Axes, rows: Sequence[str], steps: Sequence[str], cells: Cells) -> dict[str, Artist]:
    """Draw a line for each row over the steps, and return the artist of each entry of the legend."""
    categories(ax, steps, 0.8 * NARROW)

    legend: dict[str, Artist] = {}
    for index, row in enumerate(rows):
        points = [(x, cells[row, step]) for x, step in enumerate(steps) if (row, step) in cells]
        if points:
            style = style_at(index)
            (legend[row],) = ax.plot(
                *zip(*points, strict=True),
                color=style.color,
                marker=style.marker,
                linestyle=style.line,
                markersize=4,
                linewidth=1.2,
            )
    return legend


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Return numbers in ascending order. Shares mixed with counts have no order: they stay as in the spec."""
    is_mixed = len({type(value) for value in values}) > 1
    return list(values) if is_mixed else sorted(values)
