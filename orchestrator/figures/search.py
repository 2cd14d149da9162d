"""Figures of a whole search: all parameters of all trials, and the importance of each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D

from orchestrator.figures.params import reached, text
from orchestrator.figures.style import (
    NARROW,
    POINTS_PER_INCH,
    SMALL,
    TEXT,
    WIDE,
    finish,
    name_axes,
    number,
    panels,
    plain,
    style_of,
)
from orchestrator.spec.labels import setting_text
from orchestrator.spec.space import Choice
from orchestrator.study.trial import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.spec.space import Dimension
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

UNUSED = -0.12
"""Height at which a line crosses the axis of a parameter that its trial does not use."""
NUM_SHADES = 64
LEGEND_ORDER = ("chosen", "complete", "pruned", "unfinished")


def parallel_coordinates(study: Study) -> Figure | None:
    """Draw every search trial as a line through its parameters to its val accuracy; darker lines are better.

    Trials that did not run to their end are grey, because their accuracies are not comparable with the others.
    """
    space = study.plan.space
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None and reached(trial) is not None]
    if not space or not trials:
        return None

    # Complete trials are drawn last and from worse to better, so that the best lies on top.
    complete = sorted(
        (trial for trial in trials if trial.score is not None), key=lambda trial: (trial.score, -trial.number)
    )
    others = [trial for trial in trials if trial.score is None]

    accuracies = [_percent(trial) for trial in trials]
    low = min(accuracies)
    high = max(accuracies)
    norm = _norm([_percent(trial) for trial in complete] or accuracies)
    shade = _shades()

    figure, (ax,) = panels(1, width=WIDE if len(space) > 2 else NARROW, height=2.8)
    legend: dict[str, Artist] = {}
    for trial in others + complete:
        accuracy = _percent(trial)
        heights = [
            axis_height(dimension, trial.params[name]) if name in trial.params else UNUSED
            for name, dimension in space.items()
        ]
        # The accuracy axis covers the range of the trials, so that small differences are visible.
        heights.append((accuracy - low) / (high - low) if high > low else 0.5)

        is_complete = trial.score is not None
        is_best = trial == study.best
        (line,) = ax.plot(
            range(len(heights)),
            heights,
            color=shade(norm(accuracy)) if is_complete else "0.75",
            linewidth=2.2 if is_best else 0.9,
            linestyle="-" if is_complete else (0, (4, 2)),
            zorder=_zorder(is_best=is_best, is_complete=is_complete),
        )
        legend.setdefault("chosen" if is_best else _state_word(trial), line)

    # Complete trials have many colours; the legend has the middle one.
    if "complete" in legend:
        legend["complete"] = Line2D([], [], color=shade(0.5), linewidth=0.9)

    names = [*space, "val accuracy, %"]
    ends = [(0.0, number(low)), (1.0, number(high))] if high > low else [(0.5, number(low))]
    _draw_axes(ax, space, names, ends)
    if any(name not in trial.params for trial in trials for name in space):
        ax.text(-0.05, UNUSED, "not\nused", fontsize=SMALL, ha="right", va="center", color="0.4")

    # A colour bar of one value says nothing.
    if len({trial.score for trial in complete}) > 1:
        bar = figure.colorbar(ScalarMappable(norm, shade), ax=ax, pad=0.02, aspect=30)
        bar.set_label("val accuracy, %", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        bar.outline.set_linewidth(0.6)

    ordered = {word: legend[word] for word in LEGEND_ORDER if word in legend}
    return finish(figure, f"search: {setting_text(study.plan)}", ordered)


def _percent(trial: Trial) -> float:
    return 100 * (reached(trial) or 0.0)


def _state_word(trial: Trial) -> str:
    if trial.score is not None:
        return "complete"
    return "pruned" if trial.state is TrialState.PRUNED else "unfinished"


def _zorder(*, is_best: bool, is_complete: bool) -> float:
    if is_best:
        return 3
    return 2.5 if is_complete else 2


def _shades() -> LinearSegmentedColormap:
    """Return viridis from light to dark without its lightest tenth, which is hard to see on white paper."""
    viridis = matplotlib.colormaps["viridis_r"]
    colors = [viridis(0.1 + 0.9 * step / (NUM_SHADES - 1)) for step in range(NUM_SHADES)]
    return LinearSegmentedColormap.from_list("accuracy", colors)


def _norm(values: list[float]) -> Normalize:
    low = min(values)
    high = max(values)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def axis_height(dimension: Dimension, value: object) -> float:
    """Return the height of a value on its axis, 0 to 1; UNUSED for a choice that the spec no longer contains."""
    if isinstance(dimension, Choice):
        texts = [text(option) for option in dimension.values]
        if text(value) not in texts:
            return UNUSED
        return texts.index(text(value)) / (len(texts) - 1) if len(texts) > 1 else 0.5

    # A logarithmic range is logarithmic here, too.
    numbers = (dimension.low, dimension.high, float(value))  # type: ignore[arg-type]
    low, high, position = (math.log(each) for each in numbers) if dimension.log else numbers
    return (position - low) / (high - low)


def _draw_axes(ax: Axes, space: Mapping[str, Dimension], names: list[str], ends: list[tuple[float, str]]) -> None:
    """Draw a vertical line for each parameter, with the ends of its range or its choices beside it.

    Args:
        ax: the axes.
        space: the searched parameters.
        names: name of each vertical line; the last one is the accuracy.
        ends: height and text of the marks of the accuracy.
    """
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.set_xlim(-0.15, len(names) - 0.5)
    ax.set_ylim(UNUSED - 0.06, 1.06)

    # Rotate the names if they would overlap.
    width_points = POINTS_PER_INCH * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    is_rotated = sum(len(name) + 2 for name in names) * 0.6 * TEXT > 0.85 * width_points
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(names)))
    ax.set_xticklabels(
        [plain(name) for name in names],
        fontsize=SMALL,
        rotation=20 if is_rotated else 0,
        ha="left" if is_rotated else "center",
        rotation_mode="anchor",
    )

    marks = [axis_marks(dimension) for dimension in space.values()]
    for x, ticks in enumerate([*marks, ends]):
        ax.plot([x, x], [0, 1], color="black", linewidth=0.8, zorder=4)
        for height, word in ticks:
            ax.text(
                x + 0.04,
                height,
                plain(word),
                fontsize=SMALL,
                va="center",
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )


def axis_marks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return height and text of the marks of a dimension."""
    if isinstance(dimension, Choice):
        return [(axis_height(dimension, value), _shorten(text(value))) for value in dimension.values]
    return [(0.0, f"{dimension.low:g}"), (1.0, f"{dimension.high:g}")]


def _shorten(word: str, most: int = 14) -> str:
    return word if len(word) <= most else f"{word[: most - 1]}…"


def importance_bars(study: Study, importances: Mapping[str, float]) -> Figure | None:
    """Draw how much of the variation of val accuracy each parameter explains, the most important one on top.

    Args:
        study: the study.
        importances: by parameter, 0..1, as estimated by the sampler's library.
    """
    shares = {name: share for name, share in importances.items() if math.isfinite(share)}
    if not shares:
        return None

    # Bars are drawn from the bottom.
    names = sorted(shares, key=lambda name: shares[name])
    figure, (ax,) = panels(1, width=NARROW, height=0.9 + 0.2 * len(names))
    ax.barh(names, [100 * shares[name] for name in names], color=style_of(study.plan.method).color, height=0.6)

    for y, name in enumerate(names):
        ax.annotate(
            f"{100 * shares[name]:.0f}",
            (100 * shares[name], y),
            (2, 0),
            textcoords="offset points",
            fontsize=SMALL,
            va="center",
        )
    ax.grid(visible=False, axis="y")

    # Room for the numbers. If all importances are 0, the axis still needs a width.
    ax.set_xlim(0, 1.12 * 100 * max(shares.values()) or 1.0)
    # Of few trials an importance says little: readers see how many there are.
    complete = sum(trial.state is TrialState.COMPLETE for trial in study.requested_search_trials)
    name_axes(ax, f"importance in {complete} complete trials, %")
    return finish(figure, f"search: {setting_text(study.plan)}")
