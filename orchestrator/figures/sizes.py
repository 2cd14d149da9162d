"""Accuracy against the number of training images, and against the size of the network."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist

from orchestrator.figures.style import LINES, NARROW, finish, log_x, name_axes, panels, style_of
from orchestrator.report.data_efficiency import curves, fit_power_law, over_seeds
from trainer.catalog import BACKBONES
from trainer.metric_names import LEARNABLE_PARAMETERS, LEARNABLE_SHARE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial


def tuning_size(studies: Sequence[Study], backbone: str) -> Figure | None:
    """Test accuracy by number of training images: a line a method with its 95 % band, its power law dotted.

    Args:
        studies: of one backbone, of all train sizes.
    """
    found = [curve for curve in curves([study.summary() for study in studies]) if len(curve.points) > 1]
    if not found:
        return None
    figure, (ax,) = panels(1, width=NARROW, height=2.9)
    entries: dict[str, Artist] = {}
    for curve in found:
        style = style_of(curve.method)
        images = [point.images for point in curve.points]
        (line,) = ax.plot(
            images,
            [100 * point.mean for point in curve.points],
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=4,
            linewidth=1.2,
        )
        band = [(p.images, 100 * p.low, 100 * p.high) for p in curve.points if p.low is not None and p.high is not None]
        if band:
            xs, lows, highs = zip(*band, strict=True)
            ax.fill_between(xs, lows, highs, color=style.color, alpha=0.18, linewidth=0)
        law = fit_power_law(curve.points)
        if law is not None:
            steps = [images[0] * (images[-1] / images[0]) ** (step / 60) for step in range(61)]
            fitted = [100 * (1 - law.error(n)) for n in steps]
            ax.plot(steps, fitted, color=style.color, linestyle=(0, (1, 1.2)), linewidth=0.8)
        entries[f"{curve.label}: {law}" if law is not None else curve.label] = line
    log_x(ax, _apart([point.images for curve in found for point in curve.points]))
    name_axes(ax, "training images", "test accuracy, %")
    left_out = {task for curve in found for task in curve.left_out}
    counts = sorted({len(curve.tasks) for curve in found})
    over = found[0].tasks[0] if counts == [1] else f"mean of {' or '.join(map(str, counts))} tasks"
    missing = f", {len(left_out)} left out (not scored at every size)" if left_out else ""
    return finish(figure, f"tuning-set size: {over}{missing}, {backbone}; band: 95 % over seeds", entries, columns=1)


def _apart(marks: Sequence[float], share: float = 0.07) -> list[float]:
    """Marks of a logarithmic axis without those whose labels would touch the one before; both ends stay."""
    ordered = sorted(set(marks))
    least = (ordered[-1] / ordered[0]) ** share
    kept = [ordered[0]]
    for mark in ordered[1:]:
        if mark >= kept[-1] * least**2:
            kept.append(mark)
    return kept if kept[-1] == ordered[-1] or len(kept) == 1 else [*kept[:-1], ordered[-1]]


def model_size(studies: Sequence[Study], train_size: str) -> Figure | None:
    """Test accuracy by parameters of the whole network: a line a method and pre-training; bars: std over seeds.

    Means over the tasks that all of them have.

    Args:
        studies: of one train size, of all backbones.
    """
    finals: dict[tuple[str, str], dict[str, list[Trial]]] = {}
    for study in studies:
        scored = [
            trial
            for trial in study.requested_final_trials
            if trial.score is not None and LEARNABLE_SHARE in trial.last_metrics
        ]
        if scored:
            finals.setdefault((study.plan.method, study.plan.backbone), {})[study.plan.task] = scored
    tasks = [
        task
        for task in dict.fromkeys(t for own in finals.values() for t in own)
        if all(task in own for own in finals.values())
    ]
    lines: dict[tuple[str, str], list[tuple[float, float, float | None]]] = {}
    for (method, backbone), own in finals.items() if tasks else ():
        parts = [own[task] for task in tasks]
        millions = statistics.mean(_millions(trial) for trials in parts for trial in trials)
        mean = statistics.mean(statistics.mean(t.score for t in trials if t.score is not None) for trials in parts)
        scores = over_seeds(parts)
        spread = 100 * statistics.stdev(scores) if len(scores) > 1 else None
        lines.setdefault((method, BACKBONES[backbone].pretraining), []).append((millions, 100 * mean, spread))
    if not any(len(points) > 1 for points in lines.values()):
        return None
    figure, (ax,) = panels(1, width=NARROW, height=2.7)
    kinds = list(dict.fromkeys(kind for _, kind in lines))
    entries: dict[str, Artist] = {}
    for (method, kind), points in lines.items():
        style = style_of(method)
        ordered = sorted(points)
        name = f"{method}, {kind}" if len(kinds) > 1 else method
        (entries[name],) = ax.plot(
            [x for x, _, _ in ordered],
            [y for _, y, _ in ordered],
            color=style.color,
            marker=style.marker,
            markersize=4,
            linewidth=1.2,
            linestyle=LINES[kinds.index(kind)] if len(kinds) > 1 else style.line,
        )
        if bars := [(x, y, spread) for x, y, spread in ordered if spread is not None]:
            xs, ys, spreads = zip(*bars, strict=True)
            ax.errorbar(xs, ys, yerr=spreads, fmt="none", ecolor=style.color, elinewidth=0.8, capsize=2)
    log_x(ax, _apart([x for points in lines.values() for x, _, _ in points]), share=0.1)
    name_axes(ax, "parameters of the network, millions", "test accuracy, %")
    of = tasks[0] if len(tasks) == 1 else f"mean of the {len(tasks)} tasks that all have"
    kind = f", {kinds[0]}" if len(kinds) == 1 else ""
    return finish(figure, f"model size: {of}{kind}, train size {train_size}; bars: std over seeds", entries)


def _millions(trial: Trial) -> float:
    return trial.last_metrics[LEARNABLE_PARAMETERS] / trial.last_metrics[LEARNABLE_SHARE] / 1e6
