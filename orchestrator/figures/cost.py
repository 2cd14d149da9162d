"""Figure of accuracy against cost: a point for each method, and the front of those that no other method beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist

from orchestrator.figures.style import GREY, WIDE, decades, finish, log_x, name_axes, number, panels, style_of
from orchestrator.report.cost import MethodCost, method_costs, pareto_front
from trainer.plain_text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study

FRONT = "Pareto front"


def accuracy_by_cost(studies: Sequence[Study], setting: str) -> Figure | None:
    """Draw mean test accuracy against learnable parameters and against hours, a point for each method.

    It exists if at least two methods have scores on the same tasks.

    Args:
        studies: studies on one backbone and train size.
        setting: the backbone and the train size, for the title.
    """
    costs = [cost for cost in method_costs(studies) if cost.share]
    if len(costs) < 2:
        return None

    on_gpus = all(cost.gpu_hours for cost in costs)
    hours = {cost.names[0]: (cost.gpu_hours if on_gpus else cost.worker_hours) or 0.0 for cost in costs}
    has_hours = all(hours.values())
    figure, axes = panels(2 if has_hours else 1, width=WIDE, height=2.6, columns=2, share_y=True)

    legend = _draw(axes[0], costs, {cost.names[0]: cost.share or 0.0 for cost in costs})
    name_axes(axes[0], "learnable parameters, % of the network", "test accuracy, %")
    if has_hours:
        _draw(axes[1], costs, hours)
        name_axes(axes[1], f"{'GPU' if on_gpus else 'worker'} hours per task, search and final trials")

    tasks = f"mean of {counted(costs[0].num_tasks, 'task')}"
    return finish(figure, f"accuracy by cost, {tasks}\n{setting}", legend)


def _draw(ax: Axes, costs: Sequence[MethodCost], spent: dict[str, float]) -> dict[str, Artist]:
    """Draw a point for each method, and return the artist of each entry of the legend."""
    log_x(ax, spent.values())
    marks = decades(min(spent.values()), max(spent.values()))
    ax.set_xticks(marks, [number(mark) for mark in marks])

    legend: dict[str, Artist] = {}
    for cost in costs:
        method = cost.names[0]
        style = style_of(method)
        (legend[method],) = ax.plot(
            spent[method],
            cost.accuracy,
            linestyle="none",
            marker=style.marker,
            markersize=5,
            color=style.color,
            zorder=3,
        )

    front = pareto_front([(spent[cost.names[0]], cost.accuracy) for cost in costs])
    (legend[FRONT],) = ax.step(
        *zip(*front, strict=True), where="post", color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5
    )
    return legend
