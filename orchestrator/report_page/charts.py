"""Charts of a study that answer the mouse: learning curves and parallel coordinates, as SVG.

A line is a trial. `script.js` finds the line nearest to the pointer, marks the trial in all charts and in the
leaderboard of its study, and shows its text. Without JavaScript, browsers show the text of the line below the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from orchestrator.figures.learning import finite_series, state_word
from orchestrator.figures.params import reached
from orchestrator.figures.search import UNUSED, axis_height, axis_marks
from orchestrator.figures.style import number
from orchestrator.report.render import escape_html
from orchestrator.spec.labels import format_params
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from trainer.metric_names import TRAIN_LOSS, VAL_ACCURACY

CHOSEN = "chosen"
CURVES = {VAL_ACCURACY: ("val accuracy (%)", 100.0), TRAIN_LOSS: ("train loss", 1.0)}
"""Metrics that have a chart, with its name and the factor of its values."""
ORDER = (CHOSEN, "complete", "pruned", "failed", "unfinished")
"""Kinds of trials, which are also the classes of their lines."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Rectangle of the axes of a chart, in units of its SVG."""

    left: float = 46
    top: float = 10
    width: float = 364
    height: float = 190
    below: float = 36
    """Room for the numbers and the name of the x axis."""
    right: float = 10

    @property
    def whole_width(self) -> float:
        """Width of the whole chart."""
        return self.left + self.width + self.right

    @property
    def view_box(self) -> str:
        """The whole chart."""
        return f"0 0 {self.whole_width:g} {self.top + self.height + self.below:g}"


def learning_curves(study: Study) -> list[str]:
    """Return the charts of val accuracy and training loss by epoch, one line for each search trial.

    A chart without any value is left out. Coordinates of lines are epochs and values, which `script.js` prints.
    """
    trials = _trials(study)
    charts = []
    for metric, (name, scale) in CURVES.items():
        lines = []
        for trial in trials:
            points = [(epoch, scale * value) for epoch, value in finite_series(trial, metric)]
            if points:
                lines.append((trial, points))
        if lines:
            charts.append(_curve_chart(study, lines, name))
    return charts


Line = tuple[Trial, list[tuple[int, float]]]
"""A trial with its epochs and values."""


def _curve_chart(study: Study, lines: Sequence[Line], name: str) -> str:
    frame = Frame()
    values = [value for _, points in lines for _, value in points]
    last = max(epoch for _, points in lines for epoch, _ in points)
    y_ticks = [float(tick) for tick in MaxNLocator(nbins=5, min_n_ticks=2).tick_values(min(values), max(values))]
    x_ticks = [
        float(tick) for tick in MaxNLocator(nbins=6, integer=True, min_n_ticks=1).tick_values(0, last) if tick <= last
    ]

    # Lines have the coordinates of the data, and this matrix moves them into the frame.
    x_scale = frame.width / (1.02 * last)
    y_scale = frame.height / (y_ticks[-1] - y_ticks[0])
    bottom = frame.top + frame.height
    matrix = f"matrix({x_scale:.6g} 0 0 {-y_scale:.6g} {frame.left:g} {bottom + y_scale * y_ticks[0]:.6g})"

    parts = []
    for tick in y_ticks:
        y = bottom - (tick - y_ticks[0]) * y_scale
        parts.append(f'<path class="rule" d="M{frame.left:g} {y:.1f}h{frame.width:g}"/>')
        parts.append(f'<text class="end" x="{frame.left - 6:g}" y="{y + 4:.1f}">{number(tick)}</text>')
    for tick in x_ticks:
        x = frame.left + tick * x_scale
        parts.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 15:g}">{tick:g}</text>')
    middle = frame.left + frame.width / 2
    parts.append(f'<text class="middle" x="{middle:g}" y="{bottom + 31:g}">epoch</text>')

    for trial, points in lines:
        # A line of one point is a dot, because its ends are round.
        shown = [*points, *points] if len(points) == 1 else points
        coordinates = " ".join(f"{epoch},{value:.6g}" for epoch, value in shown)
        parts.append(_line(study, trial, f'<polyline transform="{matrix}" points="{coordinates}"/>'))
    return _chart(frame, "curves", name, parts)


def parallel_coordinates(study: Study) -> str:
    """Return the chart with an axis for each searched parameter and one for val accuracy; empty without a trial.

    The better a trial, the stronger its colour. Trials that did not run to their end are grey and dashed.
    """
    space = study.plan.space
    trials = [trial for trial in _trials(study) if reached(trial) is not None]
    if not space or not trials:
        return ""

    accuracies = [_percent(trial) for trial in trials]
    low = min(accuracies)
    high = max(accuracies)
    has_unused = any(name not in trial.params for trial in trials for name in space)
    width = max(480.0, 150.0 * len(space))
    frame = Frame(left=30, top=34, width=width, height=200, below=40 if has_unused else 10, right=110)
    step = frame.width / len(space)

    def point(index: int, height: float) -> str:
        return f"{frame.left + index * step:.1f},{frame.top + (1 - height) * frame.height:.1f}"

    def share(accuracy: float) -> float:
        return (accuracy - low) / (high - low) if high > low else 0.5

    parts = []
    for trial in trials:
        heights = [
            axis_height(dimension, trial.params[name]) if name in trial.params else UNUSED
            for name, dimension in space.items()
        ]
        heights.append(share(_percent(trial)))
        coordinates = " ".join(point(index, height) for index, height in enumerate(heights))
        quality = f' style="--quality: {100 * heights[-1]:.0f}%"' if trial.score is not None else ""
        parts.append(_line(study, trial, f'<polyline points="{coordinates}"/>', quality))

    # Axes and their names lie over the lines.
    ends = [(0.0, number(low)), (1.0, number(high))] if high > low else [(0.5, number(low))]
    marks = [*(axis_marks(dimension) for dimension in space.values()), ends]
    for index, (name, ticks) in enumerate(zip([*space, "val accuracy, %"], marks, strict=True)):
        x = frame.left + index * step
        parts.append(f'<path class="axis" d="M{x:.1f} {frame.top:g}v{frame.height:g}"/>')
        parts.append(f'<text class="name" x="{x - 6:.1f}" y="{frame.top - 14:g}">{escape_html(name)}</text>')
        for height, word in ticks:
            y = frame.top + (1 - height) * frame.height + 4
            parts.append(f'<text class="mark" x="{x + 5:.1f}" y="{y:.1f}">{escape_html(word)}</text>')
    if has_unused:
        y = frame.top + (1 - UNUSED) * frame.height + 4
        parts.append(f'<text x="{frame.left:g}" y="{y:.1f}">not used</text>')
    return _chart(frame, "parallel", "params and val accuracy", parts)


def legend(study: Study) -> str:
    """Return the line of each kind of trial that the charts have."""
    drawn = [trial for trial in _trials(study) if any(finite_series(trial, name) for name in CURVES)]
    words = {_word(study, trial) for trial in drawn}
    entries = "\n".join(
        f'<span><svg viewBox="0 0 26 8" class="trial {word}"><polyline points="1,4 25,4"/></svg>{word}</span>'
        for word in ORDER
        if word in words
    )
    return f'<p class="legend">{entries}</p>'


def trial_text(study: Study, trial: Trial) -> str:
    """Return what the page shows at a line: number, state, accuracy and params of a trial."""
    word = f"{trial.state.value}, chosen" if trial == study.best else state_word(trial.state)
    accuracy = reached(trial)
    score = f", val {100 * accuracy:.1f} %" if accuracy is not None else ""
    return f"trial {trial.number}, {word}{score}: {format_params(trial.params)}"


def _trials(study: Study) -> list[Trial]:
    """Return the search trials from the worst to the best, so that the best lie on top, and the chosen one last."""
    best = study.best
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None]

    def rank(trial: Trial) -> tuple[bool, bool, float, int]:
        return trial == best, trial.score is not None, reached(trial) or -math.inf, -trial.number

    return sorted(trials, key=rank)


def _percent(trial: Trial) -> float:
    return 100 * (reached(trial) or 0.0)


def _word(study: Study, trial: Trial) -> str:
    return CHOSEN if trial == study.best else state_word(trial.state)


def _line(study: Study, trial: Trial, shape: str, attributes: str = "") -> str:
    """Return the line of a trial with its text."""
    title = escape_html(trial_text(study, trial))
    attributes = f'class="trial {_word(study, trial)}" data-trial="{trial.number}"{attributes}'
    return f"<g {attributes}><title>{title}</title>{shape}</g>"


def _chart(frame: Frame, kind: str, name: str, parts: Sequence[str]) -> str:
    label = escape_html(name)
    body = "\n".join(parts)
    return (
        f'<figure class="chart {kind}"><figcaption>{label}</figcaption>'
        f'<svg viewBox="{frame.view_box}" style="--width: {frame.whole_width:g}px" role="img" aria-label="{label}" '
        f'data-name="{label}">\n{body}\n</svg></figure>'
    )
