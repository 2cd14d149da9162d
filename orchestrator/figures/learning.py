"""Figures over epochs: learning curves of a search, and mutual information of prompts and patch tokens."""

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
    style_of,
)
from orchestrator.spec.labels import setting_text
from orchestrator.study.trial import TrialState
from trainer.metric_names import NMI_LAYER, TRAIN_LOSS, VAL_ACCURACY, metrics_by_epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

LINE_OF_STATE = {TrialState.PRUNED: (0, (4, 2)), TrialState.FAILED: (0, (1, 1.5)), TrialState.COMPLETE: "-"}
UNFINISHED_LINE = "-."


def learning_curves(study: Study) -> Figure | None:
    """Draw val accuracy and training loss of every search trial by epoch, the chosen trial in bold."""
    best = study.best
    trials = [trial for trial in study.search_table.trials if trial.duplicate_of is None and trial != best]

    # The chosen trial is drawn last, on top of the others.
    if best:
        trials.append(best)
    trials = [trial for trial in trials if finite_series(trial, VAL_ACCURACY)]
    if not trials:
        return None

    figure, (left, right) = panels(2, width=WIDE, height=2.4, columns=2)
    color = style_of(study.plan.method).color
    legend: dict[str, Artist] = {}
    for trial in trials:
        word = f"chosen (trial {trial.number})" if trial == best else state_word(trial.state)
        for ax, metric, scale in ((left, VAL_ACCURACY, 100.0), (right, TRAIN_LOSS, 1.0)):
            series = finite_series(trial, metric)
            if series:
                line = _draw(ax, trial, series, scale, is_best=trial == best, color=color)
                legend.setdefault(word, line)

    # Both axes end at the last epoch of the longest trial, so that they can be compared.
    name_axes(left, "epoch", "val accuracy, %")
    name_axes(right, "epoch", "train loss")
    for ax in (left, right):
        _set_epochs(ax, max(len(trial.epochs) for trial in trials))
    return finish(figure, f"search: {setting_text(study.plan)}", legend)


def _set_epochs(ax: Axes, last: int, bins: int = 6) -> None:
    """Set an x axis from 0 to the last epoch, with whole numbers."""
    ax.set_xlim(0, last + max(0.5, 0.02 * last))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=bins, min_n_ticks=1))


def state_word(state: TrialState) -> str:
    """Return a state as the legend names it."""
    return state.value if state.is_finished else "unfinished"


def _draw(
    ax: Axes, trial: Trial, series: list[tuple[int, float]], scale: float, *, is_best: bool, color: str
) -> Line2D:
    if not is_best:
        color = "0.7" if trial.state is TrialState.PRUNED else GREY

    (line,) = ax.plot(
        [epoch for epoch, _ in series],
        [scale * value for _, value in series],
        color=color,
        linestyle=LINE_OF_STATE.get(trial.state, UNFINISHED_LINE),
        linewidth=2.0 if is_best else 0.7,
        # A line of one point would be invisible without a marker.
        marker="o" if len(series) == 1 else None,
        markersize=3,
        zorder=3 if is_best else 2,
    )
    return line


def finite_series(trial: Trial, metric: str) -> list[tuple[int, float]]:
    """Return the finite values of a metric with their epochs, counted from 1."""
    values = ((epoch, metrics.get(metric, math.nan)) for epoch, metrics in enumerate(trial.epochs, start=1))
    return [(epoch, value) for epoch, value in values if math.isfinite(value)]


def mutual_information(studies: Sequence[Study], setting: str) -> Figure | None:
    """Draw normalised mutual information of prompts and patch tokens by epoch: a panel per task, a line per method.

    Lines start at epoch 0, the prompt before the first step. Trials of sptune 0.1.0 have no such value.

    The values are those of the final trials, averaged over draws and seeds, or of the chosen trial if there are no
    final trials yet. Lines are means over layers; bands reach from the lowest to the highest layer.

    Args:
        studies: studies on one backbone and train size.
        setting: the backbone and the train size, for the title.
    """
    # The draws of a task belong to one line.
    draws_of: dict[tuple[str, str], list[Study]] = {}
    for study in studies:
        draws_of.setdefault((study.plan.task, study.plan.method), []).append(study)
    layers_of = {key: _layers(draws) for key, draws in draws_of.items()}
    # Methods without prompts have no mutual information.
    layers_of = {key: layers for key, layers in layers_of.items() if layers}
    tasks = list(dict.fromkeys(task for task, _ in layers_of))
    if not tasks:
        return None

    columns = columns_for(len(tasks))
    is_single = columns == 1
    figure, axes = panels(
        len(tasks),
        width=NARROW if is_single else WIDE,
        height=2.3 if is_single else 1.7,
        columns=columns,
        share_y=True,
    )

    legend: dict[str, Artist] = {}
    for (task, method), layers in layers_of.items():
        ax = axes[tasks.index(task)]
        style = style_of(method)
        epochs = [epoch for epoch, _ in layers]
        means = [statistics.mean(values) for _, values in layers]

        (legend[method],) = ax.plot(
            epochs,
            means,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=max(1, len(epochs) // 6),
            markersize=3,
            linewidth=1.2,
            # The marker of epoch 0 lies on the axis.
            clip_on=False,
        )
        # Shallow prompts have one layer, and one layer has no band.
        if len(layers[0][1]) > 1:
            lowest = [min(values) for _, values in layers]
            highest = [max(values) for _, values in layers]
            ax.fill_between(epochs, lowest, highest, color=style.color, alpha=0.15, linewidth=0)

    # All panels share the last epoch; only outer panels have axis names.
    last_epoch = max(epoch for layers in layers_of.values() for epoch, _ in layers)
    for index, (task, ax) in enumerate(zip(tasks, axes, strict=True)):
        is_left = index % columns == 0
        is_bottom = index + columns >= len(axes)
        name_axes(ax, "epoch" if is_bottom else "", "NMI, 0 to 1" if is_left else "")
        _set_epochs(ax, last_epoch, bins=4)
        if len(tasks) > 1:
            ax.set_title(task, fontsize=7)

    prefix = f"{tasks[0]}, " if len(tasks) == 1 else ""
    title = f"mutual information of prompts and patch tokens\n{prefix}{setting}; band: lowest to highest layer"
    return finish(figure, title, legend)


def _layers(draws: Sequence[Study]) -> list[tuple[int, list[float]]]:
    """Return each epoch, from 0, with the value of each layer, averaged over the final trials."""
    trials = [trial for study in draws for trial in study.requested_final_trials if _has_layers(trial.epochs)]
    if not trials:
        trials = [study.best for study in draws if study.best is not None]

    by_epoch: dict[int, dict[str, list[float]]] = {}
    for trial in trials:
        for epoch, metrics in metrics_by_epoch(trial.epochs).items():
            for name, value in metrics.items():
                if name.startswith(NMI_LAYER) and math.isfinite(value):
                    by_epoch.setdefault(epoch, {}).setdefault(name, []).append(value)

    return [(epoch, [statistics.mean(values) for values in by_epoch[epoch].values()]) for epoch in sorted(by_epoch)]


def _has_layers(epochs: Iterable[dict[str, float]]) -> bool:
    return any(name.startswith(NMI_LAYER) for metrics in epochs for name in metrics)
