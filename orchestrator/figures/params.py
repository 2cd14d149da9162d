"""Accuracy against what was searched, whatever that was: each parameter by itself, and a grid of two choices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    study_title,
    style_at,
    style_of,
)
from orchestrator.spec.space import Choice
from orchestrator.study.trial import TrialState
from trainer.metric_names import PROTOTYPES_SECONDS, VAL_ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.spec.space import Dimension
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

BUILDING = PROTOTYPES_SECONDS
"""The metric that says how long the prompt's first value took to build."""


def against_params(study: Study) -> Figure | None:
    """Val accuracy against each searched parameter: all search trials, the median of a choice, the hull of a range."""
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None]
    space = {name: dim for name, dim in study.plan.space.items() if any(name in trial.params for trial in trials)}
    if not space or all(reached(trial) is None for trial in trials):
        return None
    columns = columns_for(len(space))
    width = NARROW if columns == 1 else WIDE
    figure, axes = panels(len(space), width=width, height=2.2, columns=columns, share_y=True)
    axes[0].margins(y=0.12)  # room for the star
    best, color = study.best, style_of(study.plan.method).color
    entries: dict[str, Artist] = {}
    for place, (ax, (name, dimension)) in enumerate(zip(axes, space.items(), strict=True)):
        own = [trial for trial in trials if name in trial.params]
        _scale(ax, dimension, width / columns)
        entries |= _points(ax, name, dimension, own, best, color) | _summary(ax, name, dimension, own)
        name_axes(ax, name, "val accuracy, %" if place % columns == 0 else "")
    order = ("complete", "chosen", "pruned, as far as it came", "under way", "failed", "median", "hull")
    return finish(
        figure, f"search: {study_title(study.plan)}", {word: entries[word] for word in order if word in entries}
    )


def reached(trial: Trial) -> float | None:
    """The val accuracy that a trial has last had, 0..1; None if it failed or has none."""
    value = trial.score if trial.score is not None else trial.last_metrics.get(VAL_ACCURACY, math.nan)
    return value if math.isfinite(value) and trial.state is not TrialState.FAILED else None


def text(value: object) -> str:
    """A value of a choice as the spec has it: 1 is a number of things, 1.0 a share."""
    return str(value)


def _scale(ax: Axes, dimension: Dimension, room: float) -> None:
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
    """Where on the x axis a value stands; None for a choice that the spec has no longer."""
    if isinstance(dimension, Choice):
        places = [text(one) for one in dimension.values]
        return float(places.index(text(value))) if text(value) in places else None
    return float(value)  # type: ignore[arg-type]


def _points(
    ax: Axes, name: str, dimension: Dimension, trials: Sequence[Trial], best: Trial | None, color: str
) -> dict[str, Artist]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        x, y = _x(dimension, trial.params[name]), reached(trial)
        if x is None:
            continue
        x += jitter(trial.number) if isinstance(dimension, Choice) else 0.0
        if trial.state is TrialState.FAILED:
            groups.setdefault("failed", []).append((x, 0.04))
        elif y is not None:
            words = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned, as far as it came"}
            word = "chosen" if trial == best else words.get(trial.state, "under way")
            groups.setdefault(word, []).append((x, 100 * y))
    styles: dict[str, dict[str, object]] = {
        "complete": {"marker": "o", "color": color, "markersize": 3.5, "alpha": 0.75, "markeredgewidth": 0},
        "pruned, as far as it came": {"marker": "o", "color": GREY, "markersize": 3, "markerfacecolor": "none"},
        "under way": {"marker": ".", "color": GREY, "markersize": 3},
        "failed": {"marker": "x", "color": "black", "markersize": 3.5, "transform": ax.get_xaxis_transform()},
        "chosen": {"marker": "*", "color": color, "markersize": 9, "markeredgecolor": "black", "zorder": 4},
    }
    entries: dict[str, Artist] = {}
    for word, points in groups.items():
        xs, ys = zip(*points, strict=True)
        style: dict[str, object] = {"markeredgewidth": 0.6} | styles[word]
        (entries[word],) = ax.plot(xs, ys, linestyle="none", **style)  # type: ignore[arg-type]
    return entries


def _summary(ax: Axes, name: str, dimension: Dimension, trials: Sequence[Trial]) -> dict[str, Artist]:
    """What complete trials say: the median of each choice, the upper hull over a range."""
    points = [(_x(dimension, trial.params[name]), 100 * trial.score) for trial in trials if trial.score is not None]
    known = [(x, y) for x, y in points if x is not None]
    entries: dict[str, Artist] = {}
    if isinstance(dimension, Choice):
        for x in sorted({x for x, _ in known}):
            middle = statistics.median(y for at, y in known if at == x)
            (entries["median"],) = ax.plot([x - 0.3, x + 0.3], [middle] * 2, color="black", linewidth=1.2, zorder=3)
        return entries
    hull = upper_hull([(math.log(x) if dimension.log else x, y) for x, y in known])
    if len(hull) > 1:
        xs = [math.exp(x) if dimension.log else x for x, _ in hull]
        (entries["hull"],) = ax.plot(
            xs, [y for _, y in hull], color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5
        )
    return entries


def upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that a string laid over all of them touches, from left to right."""
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and x == hull[-1][0]:
            continue
        while len(hull) > 1 and _below(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _below(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    rise, run = right[1] - left[1], right[0] - left[0]
    return (middle[1] - left[1]) * run <= rise * (middle[0] - left[0])


def choice_grid(study: Study) -> Figure | None:
    """The best val accuracy of each pair of a text choice and a numeric choice, and below it what building cost.

    Drawn where exactly one choice of words and one of numbers were searched. Building is the time that the prompt's
    first value took, the median over a pair's trials.
    """
    choices = {name: dim.values for name, dim in study.plan.space.items() if isinstance(dim, Choice)}
    words = [name for name, values in choices.items() if all(isinstance(value, str) for value in values)]
    numbers = [name for name, values in choices.items() if not any(isinstance(value, str) for value in values)]
    if len(words) != 1 or len(numbers) != 1:
        return None
    (word,), (count,) = words, numbers
    steps = [text(value) for value in _in_order(choices[count])]
    scores: dict[tuple[str, str], list[float]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for trial in study.search_table.trials:
        if word in trial.params and count in trial.params:
            cell = (text(trial.params[word]), text(trial.params[count]))
            if trial.score is not None:
                scores.setdefault(cell, []).append(100 * trial.score)
            took = trial.last_metrics.get(BUILDING, math.nan)
            if math.isfinite(took) and took > 0:
                seconds.setdefault(cell, []).append(took)
    best = {cell: max(values) for cell, values in scores.items()}
    cost = {cell: statistics.median(values) for cell, values in seconds.items()}
    if not best:
        return None
    figure, axes = panels(2 if cost else 1, width=NARROW, height=1.9 if cost else 2.6)
    entries: dict[str, Artist] = {}
    shown = [(axes[0], best), *([(axes[1], cost)] if cost else [])]
    for ax, cells in shown:
        categories(ax, steps, 0.8 * NARROW)
        for place, value in enumerate(choices[word]):
            own = [(x, cells[text(value), step]) for x, step in enumerate(steps) if (text(value), step) in cells]
            if own:
                style = style_at(place)
                (entries[text(value)],) = ax.plot(
                    *zip(*own, strict=True),
                    color=style.color,
                    marker=style.marker,
                    linestyle=style.line,
                    markersize=4,
                    linewidth=1.2,
                )
    name_axes(axes[0], "" if cost else count, "best val accuracy, %")
    if cost:
        log_y(axes[1], [*cost.values()])
        name_axes(axes[1], count, "building, s")
    return finish(figure, f"{word} by {count}: {study_title(study.plan)}", entries, of=word)


def _in_order(values: Sequence[str | int | float]) -> list[str | int | float]:
    """From few to many; shares and counts mixed stay as the spec has them, there being no order between them."""
    mixed = len({type(value) for value in values}) > 1
    return list(values) if mixed else sorted(values)
