"""A search as a whole: all parameters of all trials at once, and how much each parameter mattered."""

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
    SMALL,
    TEXT,
    WIDE,
    finish,
    name_axes,
    number,
    panels,
    plain,
    study_title,
    style_of,
)
from orchestrator.spec.space import Choice
from orchestrator.study.trial import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.spec.space import Dimension
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

UNUSED = -0.12
"""Where a line passes an axis whose parameter its trial did not draw."""


def parallel_coordinates(study: Study) -> Figure | None:
    """Every search trial as a line through its parameters to its val accuracy; the darker, the better.

    Trials that did not run to their end are grey: what they had reached is no match for the others.
    """
    space = study.plan.space
    trials = [t for t in study.search_table.trials if t.duplicate_of is None and reached(t) is not None]
    if not space or not trials:
        return None
    complete = sorted((trial for trial in trials if trial.score is not None), key=lambda t: (t.score, -t.number))
    figure, (ax,) = panels(1, width=WIDE if len(space) > 2 else NARROW, height=2.8)
    values = [100 * (reached(trial) or 0.0) for trial in trials]
    low, high = min(values), max(values)
    # Without the lightest tenth, which white paper swallows.
    viridis = matplotlib.colormaps["viridis_r"]
    shade = LinearSegmentedColormap.from_list("accuracy", [viridis(0.1 + 0.9 * step / 63) for step in range(64)])
    norm = _norm([100 * (trial.score or 0.0) for trial in complete] or values)
    entries: dict[str, Artist] = {}
    best = study.best
    for trial in [t for t in trials if t.score is None] + complete:
        accuracy = 100 * (reached(trial) or 0.0)
        heights = [_height(dim, trial.params.get(name)) for name, dim in space.items()]
        heights.append((accuracy - low) / (high - low) if high > low else 0.5)
        word = "chosen" if trial == best else "complete" if trial.score is not None else _word(trial)
        color = shade(norm(accuracy)) if trial.score is not None else "0.75"
        (line,) = ax.plot(
            range(len(heights)),
            heights,
            color=color,
            linewidth=2.2 if trial == best else 0.9,
            linestyle="-" if trial.score is not None else (0, (4, 2)),
            zorder=3 if trial == best else 2.5 if trial.score is not None else 2,
        )
        entries.setdefault(word, line)
    if "complete" in entries:  # any of their colours
        entries["complete"] = Line2D([], [], color=shade(0.5), linewidth=0.9)
    names = [*space, "val accuracy, %"]
    _draw_axes(ax, space, names, [(0.0, number(low)), (1.0, number(high))] if high > low else [(0.5, number(low))])
    if any(name not in trial.params for trial in trials for name in space):
        ax.text(-0.05, UNUSED, "not\nused", fontsize=SMALL, ha="right", va="center", color="0.4")
    if len({trial.score for trial in complete}) > 1:
        bar = figure.colorbar(ScalarMappable(norm, shade), ax=ax, pad=0.02, aspect=30)
        bar.set_label("val accuracy, %", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        bar.outline.set_linewidth(0.6)
    order = [word for word in ("chosen", "complete", "pruned", "under way") if word in entries]
    return finish(figure, f"search: {study_title(study.plan)}", {word: entries[word] for word in order})


def _word(trial: Trial) -> str:
    return "pruned" if trial.state is TrialState.PRUNED else "under way"


def _norm(values: list[float]) -> Normalize:
    low, high = min(values), max(values)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def _height(dimension: Dimension, value: object) -> float:
    """Where on its axis a value lies, 0 to 1."""
    if value is None:
        return UNUSED
    if isinstance(dimension, Choice):
        places = [text(one) for one in dimension.values]
        known = text(value) in places
        return (places.index(text(value)) / (len(places) - 1) if len(places) > 1 else 0.5) if known else UNUSED
    ends = (dimension.low, dimension.high, float(value))  # type: ignore[arg-type]
    low, high, at = (math.log(one) for one in ends) if dimension.log else ends
    return (at - low) / (high - low)


def _draw_axes(ax: Axes, space: Mapping[str, Dimension], names: list[str], ends: list[tuple[float, str]]) -> None:
    """An upright line a parameter, with the ends of its range or its choices beside it."""
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.set_xlim(-0.15, len(names) - 0.5)
    ax.set_ylim(UNUSED - 0.06, 1.06)
    turned = sum(len(name) + 2 for name in names) * 0.6 * TEXT > 0.85 * 72 * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(names)))
    ax.set_xticklabels(
        [plain(name) for name in names],
        fontsize=SMALL,
        rotation=20 if turned else 0,
        ha="left" if turned else "center",
        rotation_mode="anchor",
    )
    marks = [_marks(dimension) for dimension in space.values()]
    for place, ticks in enumerate([*marks, ends]):
        ax.plot([place, place], [0, 1], color="black", linewidth=0.8, zorder=4)
        for height, word in ticks:
            ax.text(
                place + 0.04,
                height,
                plain(word),
                fontsize=SMALL,
                va="center",
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )


def _marks(dimension: Dimension) -> list[tuple[float, str]]:
    if isinstance(dimension, Choice):
        return [(_height(dimension, value), _short(text(value))) for value in dimension.values]
    return [(0.0, f"{dimension.low:g}"), (1.0, f"{dimension.high:g}")]


def _short(word: str, most: int = 14) -> str:
    return word if len(word) <= most else f"{word[: most - 1]}…"


def importance_bars(study: Study, shares: Mapping[str, float]) -> Figure | None:
    """How much of the differences in val accuracy each parameter explains, the most important on top.

    Args:
        shares: by parameter, 0..1, as the sampler's library estimates them.
    """
    known = {name: share for name, share in shares.items() if math.isfinite(share)}
    if not known:
        return None
    ordered = sorted(known, key=lambda name: known[name])
    figure, (ax,) = panels(1, width=NARROW, height=0.9 + 0.2 * len(ordered))
    ax.barh(ordered, [100 * known[name] for name in ordered], color=style_of(study.plan.method).color, height=0.6)
    for place, name in enumerate(ordered):
        ax.annotate(
            f"{100 * known[name]:.0f}",
            (100 * known[name], place),
            (2, 0),
            textcoords="offset points",
            fontsize=SMALL,
            va="center",
        )
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 1.12 * 100 * max(known.values()) or 1.0)
    name_axes(ax, "importance, %")
    return finish(figure, f"search: {study_title(study.plan)}")
