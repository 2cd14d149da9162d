"""Test accuracy task by task, with the published numbers beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist

from orchestrator.figures.style import NARROW, SMALL, WIDE, finish, name_axes, panels, plain, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study


def per_task(studies: Sequence[Study], published: Mapping[tuple[str, str], float], place: str) -> Figure | None:
    """Bars of mean ± std of test accuracy over seeds, a group of bars a task; published numbers as diamonds.

    Where a method has no score on a task, a dash stands in place of the bar.

    Args:
        studies: of one backbone and train size, which `place` names.
        published: test accuracy in per cent by method and task.
    """
    scores = {
        (study.plan.method, study.plan.task): [
            100 * t.score for t in study.requested_final_trials if t.score is not None
        ]
        for study in studies
    }
    groups = {study.plan.task: study.plan.group for study in studies}
    tasks = [task for task in groups if any(values for (_, of), values in scores.items() if of == task)]
    methods = [m for m in dict.fromkeys(m for m, _ in scores) if any(scores.get((m, task)) for task in tasks)]
    if not tasks:
        return None
    rows = math.ceil(len(tasks) * len(methods) / 84)  # narrower bars than that nobody can tell apart
    columns = math.ceil(len(tasks) / rows)
    width = NARROW if len(tasks) * len(methods) <= 10 else WIDE
    figure, axes = panels(rows, width=width, height=2.6 if rows == 1 else 2.3)
    entries: dict[str, Artist] = {}
    for row, ax in enumerate(axes):
        own = tasks[row * columns :][:columns]
        entries |= _bars(ax, own, methods, scores, published)
        _names(ax, own, [groups[task] for task in own], columns, width)
        ax.set_ylim(0, 104)
        name_axes(ax, "", "test accuracy, %")
    if "published" in entries:
        entries["published"] = entries.pop("published")  # last in the legend
    return finish(figure, f"test accuracy by task, mean ± std over seeds\n{place}", entries)


def _bars(
    ax: Axes,
    tasks: Sequence[str],
    methods: Sequence[str],
    scores: Mapping[tuple[str, str], list[float]],
    published: Mapping[tuple[str, str], float],
) -> dict[str, Artist]:
    """The bars of some tasks, and what each word of the legend stands for."""
    step = min(0.35, 0.8 / len(methods))
    entries: dict[str, Artist] = {}
    for row, method in enumerate(methods):
        style = style_of(method)
        left = step * (row + 0.5 - len(methods) / 2)
        own = {x + left: scores.get((method, task), []) for x, task in enumerate(tasks)}
        there = {x: values for x, values in own.items() if values}
        if there:
            entries[method] = ax.bar(
                [*there],
                [statistics.mean(values) for values in there.values()],
                step * 0.92,
                color=style.color,
                hatch=style.hatch,
                edgecolor="white",
                linewidth=0,
                hatch_linewidth=0.5,
                label=method,
            )[0]
        if bars := {x: values for x, values in there.items() if len(values) > 1}:
            ax.errorbar(
                [*bars],
                [statistics.mean(values) for values in bars.values()],
                yerr=[statistics.stdev(values) for values in bars.values()],
                fmt="none",
                ecolor="0.25",
                elinewidth=0.7,
                capsize=min(2.0, 12 * step),
                capthick=0.7,
            )
        for x in own.keys() - there.keys():
            ax.text(x, 0.5, "–", ha="center", fontsize=SMALL, color=style.color)
        if known := {x + left: published[method, task] for x, task in enumerate(tasks) if (method, task) in published}:
            (entries["published"],) = ax.plot(
                [*known],
                [*known.values()],
                linestyle="none",
                marker="d",
                markersize=max(2.5, min(5.0, 20 * step)),
                markerfacecolor="white",
                markeredgecolor="black",
                markeredgewidth=0.7,
                zorder=4,
            )
    return entries


def _names(ax: Axes, tasks: Sequence[str], groups: Sequence[str], places: int, width: float) -> None:
    """Tasks below the bars, without what all their names begin with; lines between groups.

    Args:
        places: tasks that there is room for, so that all rows have bars of one width.
        width: of the figure, in inches.
    """
    short = [task.rpartition("/")[2] for task in tasks]
    names = short if len(set(short)) == len(short) else list(tasks)
    turned = sum(len(name) + 1 for name in names) * 0.62 * SMALL > 0.85 * width * 72
    ax.set_xticks(range(len(tasks)))
    ax.set_xticklabels(
        [plain(name) for name in names],
        rotation=45 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.6, places - 0.4)
    ax.grid(visible=False, axis="x")
    for group in dict.fromkeys(groups):
        found = [x for x, own in enumerate(groups) if own == group]
        if found[0] > 0:
            ax.axvline(found[0] - 0.5, color="0.8", linewidth=0.6)
        if len(found) > 2:
            ax.text(statistics.mean(found), 1.0, group, ha="center", va="bottom", fontsize=SMALL,
                    transform=ax.get_xaxis_transform(), color="0.35")  # fmt: skip
