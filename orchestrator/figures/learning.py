"""What happened from epoch to epoch: learning curves of a search, and what prompts know of patch tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from orchestrator.figures.style import (
    GREY,
    NARROW,
    WIDE,
    columns_for,
    finish,
    name_axes,
    panels,
    study_title,
    style_of,
)
from orchestrator.study.trial import TrialState
from trainer.metric_names import NMI_LAYER, TRAIN_LOSS, VAL_ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

LAYERS = NMI_LAYER
"""How the metrics of normalised mutual information begin, one a prompted layer."""


def learning_curves(study: Study) -> Figure | None:
    """Accuracy on val and training loss of every search trial by epoch; the chosen one is bold."""
    best = study.best
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None and trial != best]
    shown = [trial for trial in [*trials, *([best] if best else [])] if _series(trial, VAL_ACCURACY)]
    if not shown:
        return None
    figure, (left, right) = panels(2, width=WIDE, height=2.4, columns=2)
    entries: dict[str, Artist] = {}
    for trial in shown:
        word = f"chosen (trial {trial.number})" if trial == best else _word(trial.state)
        for ax, metric, scale in ((left, VAL_ACCURACY, 100.0), (right, TRAIN_LOSS, 1.0)):
            if series := _series(trial, metric):
                line = _draw(ax, trial, series, scale, best=trial == best, color=style_of(study.plan.method).color)
                entries.setdefault(word, line)
    name_axes(left, "epoch", "val accuracy, %")
    name_axes(right, "epoch", "train loss")
    for ax in (left, right):
        _epochs(ax, max(len(trial.epochs) for trial in shown))
    return finish(figure, f"search: {study_title(study.plan)}", entries)


def _epochs(ax: Axes, last: int, bins: int = 6) -> None:
    """An x axis from no epoch to the last one, with whole numbers."""
    ax.set_xlim(0, last + max(0.5, 0.02 * last))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=bins, min_n_ticks=1))


def _word(state: TrialState) -> str:
    return state.value if state.is_finished else "under way"


def _draw(ax: Axes, trial: Trial, series: list[tuple[int, float]], scale: float, *, best: bool, color: str) -> Line2D:
    styles = {TrialState.PRUNED: (0, (4, 2)), TrialState.FAILED: (0, (1, 1.5)), TrialState.COMPLETE: "-"}
    (line,) = ax.plot(
        [epoch for epoch, _ in series],
        [scale * value for _, value in series],
        color=color if best else GREY if trial.state is not TrialState.PRUNED else "0.7",
        linestyle=styles.get(trial.state, "-."),
        linewidth=2.0 if best else 0.7,
        marker="o" if len(series) == 1 else None,
        markersize=3,
        zorder=3 if best else 2,
    )
    return line


def _series(trial: Trial, metric: str) -> list[tuple[int, float]]:
    """Epochs, counted from 1, and the finite values that a metric had at their ends."""
    found = ((epoch, metrics.get(metric, math.nan)) for epoch, metrics in enumerate(trial.epochs, start=1))
    return [(epoch, value) for epoch, value in found if math.isfinite(value)]


def mutual_information(studies: Sequence[Study], place: str) -> Figure | None:
    """Normalised mutual information of prompts and patch tokens by epoch: a panel a task, a line a method.

    Of the final trials, their mean over seeds, or of the chosen trial while there are none. Lines are means over
    layers, bands go from the lowest layer to the highest.

    Args:
        studies: of one backbone and train size, which `place` names.
    """
    found = {(study.plan.task, study.plan.method): _layers(study) for study in studies}
    found = {key: layers for key, layers in found.items() if layers}
    tasks = list(dict.fromkeys(task for task, _ in found))
    if not tasks:
        return None
    columns = columns_for(len(tasks))
    width = NARROW if columns == 1 else WIDE
    figure, axes = panels(len(tasks), width=width, height=2.3 if columns == 1 else 1.7, columns=columns, share_y=True)
    entries: dict[str, Artist] = {}
    for (task, method), layers in found.items():
        ax, style = axes[tasks.index(task)], style_of(method)
        epochs = [epoch for epoch, _ in layers]
        means = [statistics.mean(values) for _, values in layers]
        (entries[method],) = ax.plot(
            epochs,
            means,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=max(1, len(epochs) // 6),
            markersize=3,
            linewidth=1.2,
        )
        if len(layers[0][1]) > 1:
            low, high = [min(values) for _, values in layers], [max(values) for _, values in layers]
            ax.fill_between(epochs, low, high, color=style.color, alpha=0.15, linewidth=0)
    for task, ax in zip(tasks, axes, strict=True):
        first = axes.index(ax) % columns == 0
        name_axes(ax, "epoch" if axes.index(ax) + columns >= len(axes) else "", "NMI, 0 to 1" if first else "")
        _epochs(ax, max(epoch for layers in found.values() for epoch, _ in layers), bins=4)
        if len(tasks) > 1:
            ax.set_title(task, fontsize=7)
    of = f"{tasks[0]}, " if len(tasks) == 1 else ""
    return finish(
        figure, f"mutual information of prompts and patch tokens\n{of}{place}; band: lowest to highest layer", entries
    )


def _layers(study: Study) -> list[tuple[int, list[float]]]:
    """Each epoch with the values of the layers, averaged over final trials."""
    finals = [trial for trial in study.requested_final_trials if _measured(trial.epochs)]
    trials = finals or ([study.best] if study.best is not None else [])
    by_epoch: dict[int, dict[str, list[float]]] = {}
    for trial in trials:
        for epoch, metrics in enumerate(trial.epochs, start=1):
            for name, value in metrics.items():
                if name.startswith(LAYERS) and math.isfinite(value):
                    by_epoch.setdefault(epoch, {}).setdefault(name, []).append(value)
    return [(epoch, [statistics.mean(values) for values in layers.values()]) for epoch, layers in by_epoch.items()]


def _measured(epochs: Iterable[dict[str, float]]) -> bool:
    return any(name.startswith(LAYERS) for metrics in epochs for name in metrics)
