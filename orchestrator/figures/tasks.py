"""Figure of test accuracy by task, with the published numbers beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist

from orchestrator.figures.style import NARROW, SMALL, WIDE, finish, name_axes, panels, plain, style_of
from orchestrator.report.draws import replicates, spread_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

MAX_BARS = 84
"""Number of bars of a row. Narrower bars are hard to tell apart."""


def per_task(studies: Sequence[Study], published: Mapping[tuple[str, str], float], setting: str) -> Figure | None:
    """Draw mean ± std of test accuracy over draws or seeds: a group of bars per task, published numbers as diamonds.

    A method without a score on a task has a dash instead of a bar.

    Args:
        studies: studies on one backbone and train size.
        published: test accuracy in percent by method and task.
        setting: the backbone and the train size, for the title.
    """
    finals: dict[tuple[str, str], list[Trial]] = {}
    for study in studies:
        finals.setdefault((study.plan.method, study.plan.task), []).extend(study.requested_final_trials)
    over = spread_unit(study.plan for study in studies)
    scores = {key: [100 * score for score in replicates([trials], over)] for key, trials in finals.items()}
    groups = {study.plan.task: study.plan.group for study in studies}

    # Tasks and methods with at least one score.
    tasks = [task for task in groups if any(values for (_, name), values in scores.items() if name == task)]
    methods = [
        method
        for method in dict.fromkeys(method for method, _ in scores)
        if any(scores.get((method, task)) for task in tasks)
    ]
    if not tasks:
        return None

    num_bars = len(tasks) * len(methods)
    rows = math.ceil(num_bars / MAX_BARS)
    columns = math.ceil(len(tasks) / rows)
    width = NARROW if num_bars <= 10 else WIDE
    figure, axes = panels(rows, width=width, height=2.6 if rows == 1 else 2.3)

    legend: dict[str, Artist] = {}
    for row, ax in enumerate(axes):
        row_tasks = tasks[row * columns :][:columns]
        legend |= _bars(ax, row_tasks, methods, scores, published)
        _name_tasks(ax, row_tasks, [groups[task] for task in row_tasks], columns, width)
        ax.set_ylim(0, 104)
        name_axes(ax, "", "test accuracy, %")

    # Published numbers are the last entry of the legend.
    if "published" in legend:
        legend["published"] = legend.pop("published")
    return finish(figure, f"test accuracy by task, mean ± std over {over}\n{setting}", legend)


def _bars(
    ax: Axes,
    tasks: Sequence[str],
    methods: Sequence[str],
    scores: Mapping[tuple[str, str], list[float]],
    published: Mapping[tuple[str, str], float],
) -> dict[str, Artist]:
    """Draw the bars of some tasks, and return the artist of each entry of the legend."""
    # The limit keeps the bars of one or two methods narrow.
    step = min(0.35, 0.8 / len(methods))
    legend: dict[str, Artist] = {}

    for row, method in enumerate(methods):
        style = style_of(method)
        offset = step * (row + 0.5 - len(methods) / 2)

        # Scores by x; the bars of a task are centred on its index.
        by_x = {x + offset: scores.get((method, task), []) for x, task in enumerate(tasks)}
        scored = {x: values for x, values in by_x.items() if values}
        if scored:
            legend[method] = ax.bar(
                [*scored],
                [statistics.mean(values) for values in scored.values()],
                step * 0.92,
                color=style.color,
                hatch=style.hatch,
                edgecolor="white",
                linewidth=0,
                hatch_linewidth=0.5,
                label=method,
            )[0]

        # One seed has no standard deviation.
        with_std = {x: values for x, values in scored.items() if len(values) > 1}
        if with_std:
            ax.errorbar(
                [*with_std],
                [statistics.mean(values) for values in with_std.values()],
                yerr=[statistics.stdev(values) for values in with_std.values()],
                fmt="none",
                ecolor="0.25",
                elinewidth=0.7,
                capsize=min(2.0, 12 * step),
                capthick=0.7,
            )

        for x in by_x.keys() - scored.keys():
            ax.text(x, 0.5, "–", ha="center", fontsize=SMALL, color=style.color)

        diamonds = {x + offset: published[method, task] for x, task in enumerate(tasks) if (method, task) in published}
        if diamonds:
            (legend["published"],) = ax.plot(
                [*diamonds],
                [*diamonds.values()],
                linestyle="none",
                marker="d",
                markersize=max(2.5, min(5.0, 20 * step)),
                markerfacecolor="white",
                markeredgecolor="black",
                markeredgewidth=0.7,
                zorder=4,
            )
    return legend


def _name_tasks(ax: Axes, tasks: Sequence[str], groups: Sequence[str], columns: int, width: float) -> None:
    """Write task names below the bars, without their common prefix, and draw lines between groups.

    Args:
        ax: axes of one row.
        tasks: tasks of the row.
        groups: group of each task.
        columns: number of tasks that a row has room for. All rows have bars of the same width.
        width: width of the figure, in inches.
    """
    short_names = [task.rpartition("/")[2] for task in tasks]
    names = short_names if len(set(short_names)) == len(short_names) else list(tasks)

    # Rotate the names if they would overlap.
    is_rotated = sum(len(name) + 1 for name in names) * 0.62 * SMALL > 0.85 * width * 72
    ax.set_xticks(range(len(tasks)))
    ax.set_xticklabels(
        [plain(name) for name in names],
        rotation=45 if is_rotated else 0,
        ha="right" if is_rotated else "center",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.6, columns - 0.4)
    ax.grid(visible=False, axis="x")

    for group in dict.fromkeys(groups):
        positions = [x for x, name in enumerate(groups) if name == group]
        if positions[0] > 0:
            ax.axvline(positions[0] - 0.5, color="0.8", linewidth=0.6)

        # The name of a group needs the width of three tasks.
        if len(positions) > 2:
            ax.text(
                statistics.mean(positions),
                1.0,
                group,
                ha="center",
                va="bottom",
                fontsize=SMALL,
                transform=ax.get_xaxis_transform(),
                color="0.35",
            )
