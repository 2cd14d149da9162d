"""Figures of accuracy over the size of the tuning set, and over the size of the network."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist

from orchestrator.figures.style import LINES, NARROW, finish, log_x, name_axes, panels, style_of
from orchestrator.report.data_efficiency import curves, fit_power_law, intervals_over
from orchestrator.report.draws import mean_score, replicates, spread_unit
from trainer.catalog import BACKBONES
from trainer.metric_names import LEARNABLE_PARAMETERS, LEARNABLE_SHARE
from trainer.plain_text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.report.data_efficiency import Curve, PowerLaw, SizeUnit
    from orchestrator.report.draws import Unit
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

AXIS_NAMES: dict[SizeUnit, str] = {"labels": "labels used (train + val)", "images": "training images"}
NUM_LAW_STEPS = 60
"""Number of segments that a power law is drawn with."""


def tuning_size(studies: Sequence[Study], backbone: str) -> Figure | None:
    """Draw test accuracy by tuning-set size: a line per method with its 95 % band, its power law dotted.

    The size is the number of labels of train and val, or of training images if a trial did not count its labels.

    Args:
        studies: studies on one backbone, with all train sizes.
        backbone: name of the backbone, for the title.
    """
    # A curve of one point is in the report, but it is no line.
    measured = [curve for curve in curves([study.summary() for study in studies]) if len(curve.points) > 1]
    if not measured:
        return None

    figure, (ax,) = panels(1, width=NARROW, height=2.9)
    legend: dict[str, Artist] = {}
    for curve in measured:
        law = fit_power_law(curve.points)
        line = _draw_curve(ax, curve, law)
        legend[f"{curve.label}: {law}" if law is not None else curve.label] = line

    points = [point for curve in measured for point in curve.points]
    log_x(ax, _spread_out([point.size for point in points]))
    name_axes(ax, AXIS_NAMES[measured[0].unit], "test accuracy, %")

    # Methods may have scores on different numbers of tasks.
    left_out = {task for curve in measured for task in curve.left_out}
    counts = sorted({len(curve.tasks) for curve in measured})
    over = measured[0].tasks[0] if counts == [1] else f"mean of {' or '.join(map(str, counts))} tasks"
    missing = f", {len(left_out)} left out (not scored at every size)" if left_out else ""
    title = f"tuning-set size: {over}{missing}, {backbone}; band: 95 % over {intervals_over(points)}"
    return finish(figure, title, legend, columns=1)


def _draw_curve(ax: Axes, curve: Curve, law: PowerLaw | None) -> Artist:
    """Draw the line, the band and the law of one method. Return the line."""
    style = style_of(curve.method)
    sizes = [point.size for point in curve.points]
    (line,) = ax.plot(
        sizes,
        [100 * point.mean for point in curve.points],
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markersize=4,
        linewidth=1.2,
    )

    band = [
        (point.size, 100 * point.low, 100 * point.high)
        for point in curve.points
        if point.low is not None and point.high is not None
    ]
    if band:
        xs, lows, highs = zip(*band, strict=True)
        ax.fill_between(xs, lows, highs, color=style.color, alpha=0.18, linewidth=0)

    # The law is drawn only between the smallest and the largest measured size.
    if law is not None:
        growth = sizes[-1] / sizes[0]
        steps = [sizes[0] * growth ** (step / NUM_LAW_STEPS) for step in range(NUM_LAW_STEPS + 1)]
        fitted = [100 * (1 - law.error(size)) for size in steps]
        ax.plot(steps, fitted, color=style.color, linestyle=(0, (1, 1.2)), linewidth=0.8)
    return line


def _spread_out(marks: Sequence[float], share: float = 0.07) -> list[float]:
    """Return the marks of a logarithmic axis without those whose labels would touch the previous one.

    Both ends are kept.
    """
    ordered = sorted(set(marks))
    least_ratio = (ordered[-1] / ordered[0]) ** share

    kept = [ordered[0]]
    for mark in ordered[1:]:
        if mark >= kept[-1] * least_ratio**2:
            kept.append(mark)

    # If the last mark was dropped, it replaces the last one that was kept.
    if kept[-1] == ordered[-1] or len(kept) == 1:
        return kept
    return [*kept[:-1], ordered[-1]]


def model_size(studies: Sequence[Study], train_size: str) -> Figure | None:
    """Draw test accuracy by parameters of the whole network: a line per method and pre-training.

    Bars are the std over draws, or over seeds where there is one draw. Values are means over the tasks that all methods
    and backbones have.

    Args:
        studies: studies with one train size, on all backbones.
        train_size: the train size in words, for the title.
    """
    finals = _finals_with_size(studies)
    all_tasks = dict.fromkeys(task for by_task in finals.values() for task in by_task)
    # Means over different tasks are not comparable.
    tasks = [task for task in all_tasks if all(task in by_task for by_task in finals.values())]

    over = spread_unit(study.plan for study in studies)
    # Points (millions of parameters, accuracy, std) of each line.
    lines: dict[tuple[str, str], list[tuple[float, float, float | None]]] = {}
    if tasks:
        for (method, backbone), by_task in finals.items():
            point = _model_point([by_task[task] for task in tasks], over)
            lines.setdefault((method, BACKBONES[backbone].pretraining), []).append(point)
    if not any(len(points) > 1 for points in lines.values()):
        return None

    figure, (ax,) = panels(1, width=NARROW, height=2.7)
    pretrainings = list(dict.fromkeys(pretraining for _, pretraining in lines))
    has_several = len(pretrainings) > 1
    legend: dict[str, Artist] = {}
    for (method, pretraining), points in lines.items():
        style = style_of(method)
        ordered = sorted(points)
        name = f"{method}, {pretraining}" if has_several else method

        # With several pre-trainings the colour stands for the method and the line for the pre-training.
        (legend[name],) = ax.plot(
            [x for x, _, _ in ordered],
            [y for _, y, _ in ordered],
            color=style.color,
            marker=style.marker,
            markersize=4,
            linewidth=1.2,
            linestyle=LINES[pretrainings.index(pretraining)] if has_several else style.line,
        )
        bars = [(x, y, spread) for x, y, spread in ordered if spread is not None]
        if bars:
            xs, ys, spreads = zip(*bars, strict=True)
            ax.errorbar(xs, ys, yerr=spreads, fmt="none", ecolor=style.color, elinewidth=0.8, capsize=2)

    log_x(ax, _spread_out([x for points in lines.values() for x, _, _ in points]), share=0.1)
    name_axes(ax, "parameters of the network, millions", "test accuracy, %")

    averaged = tasks[0] if len(tasks) == 1 else f"mean of the {counted(len(tasks), 'task')} that all have"
    pretraining_text = "" if has_several else f", {pretrainings[0]}"
    title = f"model size: {averaged}{pretraining_text}, {train_size}; bars: std over {over}"
    return finish(figure, title, legend)


def _finals_with_size(studies: Sequence[Study]) -> dict[tuple[str, str], dict[str, list[Trial]]]:
    """Return scored final trials that know their learnable share: by method and backbone, then by task."""
    finals: dict[tuple[str, str], dict[str, list[Trial]]] = {}
    for study in studies:
        scored = [
            trial
            for trial in study.requested_final_trials
            if trial.score is not None and LEARNABLE_SHARE in trial.last_metrics
        ]
        if scored:
            by_task = finals.setdefault((study.plan.method, study.plan.backbone), {})
            by_task.setdefault(study.plan.task, []).extend(scored)
    return finals


def _model_point(trials_of_tasks: Sequence[Sequence[Trial]], over: Unit) -> tuple[float, float, float | None]:
    """Return millions of parameters, mean accuracy in percent, and its std over draws or seeds."""
    millions = statistics.mean(_millions(trial) for trials in trials_of_tasks for trial in trials)
    mean = statistics.mean(mean_score(trials) for trials in trials_of_tasks)

    scores = replicates(trials_of_tasks, over)
    spread = 100 * statistics.stdev(scores) if len(scores) > 1 else None
    return millions, 100 * mean, spread


def _millions(trial: Trial) -> float:
    """Return the parameters of the whole network: the learnable ones divided by their share."""
    return trial.last_metrics[LEARNABLE_PARAMETERS] / trial.last_metrics[LEARNABLE_SHARE] / 1e6
