"""How all figures look: sizes of a paper's columns, colours that everybody can tell apart, one look a method.

Nothing here or in the other figures touches pyplot or matplotlib's settings: figures can be drawn in any thread.
"""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from orchestrator.spec.plan import format_train_size
from trainer.catalog import METHODS

if TYPE_CHECKING:
    from orchestrator.spec.plan import StudyPlan

NARROW, WIDE = 3.3, 6.8
"""Width of one column and of two, in inches."""
TEXT, SMALL = 8, 6.5
"""Sizes of text in points: titles and axes; ticks and legends."""
GREY = "#8c8c8c"

PALETTE = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#000000", "#009E73", "#CC79A7")
"""Okabe and Ito's colours (Color universal design, 2008) without the yellow, which white paper swallows."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++")


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """What tells one line or bar from the others, with and without colour."""

    color: str
    marker: str
    line: Any
    hatch: str


def style_at(place: int) -> MethodStyle:
    """The look of the first, second, ... of a few things."""
    return MethodStyle(*(table[place % len(table)] for table in (PALETTE, MARKERS, LINES, HATCHES)))


def style_of(method: str) -> MethodStyle:
    """The look of a method: the same in every figure of every sweep."""
    return style_at([*METHODS].index(method))


def panels(
    count: int, *, width: float, height: float, columns: int = 1, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes in a grid.

    Args:
        width: of the whole figure, in inches.
        height: of one row, in inches.
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = []
    for place in range(count):
        axes.append(figure.add_subplot(rows, columns, place + 1, sharey=axes[0] if axes and share_y else None))
    for ax in axes:
        ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_linewidth(0.6)
        ax.grid(visible=True, color="0.9", linewidth=0.5)
        ax.set_axisbelow(True)
    return figure, axes


def columns_for(count: int, most: int = 4) -> int:
    """How many columns so many panels stand in: rows as even as can be."""
    return math.ceil(count / math.ceil(count / most))


def name_axes(ax: Axes, x: str = "", y: str = "") -> None:
    """Label both axes."""
    ax.set_xlabel(plain(x), fontsize=TEXT)
    ax.set_ylabel(plain(y), fontsize=TEXT)


def finish(
    figure: Figure, title: str, entries: Mapping[str, Artist] | None = None, *, of: str = "", columns: int | None = None
) -> Figure:
    """Give a figure its title, broken where the width asks for it, and below it a legend.

    Args:
        entries: what each word of the legend stands for.
        of: what the legend's words are values of.
        columns: of the legend; as many as there is room for, if not said.
    """
    points = figure.get_figwidth() * 72
    lines = [textwrap.fill(line, int(points / (0.56 * TEXT))) for line in title.splitlines()]
    figure.suptitle(plain("\n".join(lines)), fontsize=TEXT)
    if entries:
        room = max(len(word) for word in entries) * 0.56 * SMALL + 31
        rows = math.ceil(len(entries) / (columns or max(1, int(points / room))))
        figure.legend(
            [*entries.values()],
            [plain(word) for word in entries],
            loc="outside lower center",
            ncols=math.ceil(len(entries) / rows),
            fontsize=SMALL,
            title=plain(of) or None,
            title_fontsize=SMALL,
            frameon=False,
            handlelength=2.6,
            columnspacing=1.2,
        )
    return figure


def categories(ax: Axes, names: Sequence[str], room: float) -> None:
    """Names at 0, 1, 2, ... of the x axis, turned where they would run into each other.

    Args:
        room: width of the axes, in inches.
    """
    ax.set_xticks(range(len(names)))
    turned = sum(len(name) + 1 for name in names) * 0.62 * SMALL > room * 72
    ax.set_xticklabels(
        [plain(name) for name in names],
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="x")


def log_x(ax: Axes, ticks: Iterable[float], *, share: float = 0.06) -> None:
    """A logarithmic x axis with these ticks and no others, and a margin on both sides."""
    marks = sorted(set(ticks))
    ax.set_xscale("log")
    margin = (marks[-1] / marks[0]) ** share if len(marks) > 1 else 1.5
    ax.set_xlim(marks[0] / margin, marks[-1] * margin)
    ax.set_xticks(marks, [number(mark) for mark in marks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def log_y(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis around these values, with at least two ticks of 1, 2 and 5 times a power of ten."""
    low, high = min(values) / 1.3, max(values) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 5), (1, 2, 5)):
        marks = [float(f"{step}e{power}") for power in powers for step in steps]
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) > 1:
            break
    marks = inside if len(inside) > 1 else [min(values), max(values)]
    marks = marks[:: math.ceil(len(marks) / 6)]
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.set_yticks(marks, [number(mark) for mark in marks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def decades(low: float, high: float, most: int = 4) -> list[float]:
    """The powers of ten in a range, at most so many; its ends if there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    found = [float(f"1e{power}") for power in range(first, last + 1, step)]
    return found if len(found) > 1 else [low, high]


def number(value: float) -> str:
    """A number on an axis: 1,000 and 0.05, 1e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def study_title(plan: StudyPlan) -> str:
    """A study in a title."""
    return f"{plan.task}, {plan.method}, {plan.backbone}, train size {format_train_size(plan.train_size)}"


def plain(text: str) -> str:
    """Text as it is: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def jitter(number: int) -> float:
    """Where beside its category a trial stands, -0.2 to 0.2: the same each time it is drawn."""
    return 0.4 * (hashlib.sha256(str(number).encode()).digest()[0] / 255 - 0.5)


def slug(text: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
