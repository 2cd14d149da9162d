"""Style of all figures: widths of a paper's columns, colours that everybody can tell apart, one style per method.

No module of this folder uses pyplot or changes matplotlib's settings, so figures can be drawn in any thread. The
exception is `draw.save_figure`, which takes a lock.
"""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from trainer.catalog import METHODS
from trainer.plain_text import printable

# Width of one column and of two, in inches.
NARROW = 3.3
WIDE = 6.8

# Font sizes in points: TEXT of titles and axis names, SMALL of ticks and legends.
TEXT = 8
SMALL = 6.5

POINTS_PER_INCH = 72
GREY = "#8c8c8c"

PALETTE = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#000000", "#009E73", "#CC79A7")
"""Colours of Okabe and Ito (Color universal design, 2008) without the yellow, which is invisible on white paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), "-.", (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)),
    (0, (10, 1)), (0, (4, 4)), (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)), (0, (10, 1, 2, 1)), (0, (3, 3, 1, 3)),
    (0, (12, 4)), (0, (5, 1, 5, 3)), (0, (8, 1, 1, 1, 1, 1, 1, 1)),
    (0, (2, 1, 6, 1)), (0, (1, 5)),
)  # fmt: skip
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++")


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """What distinguishes a line or bar from the others, with and without colour."""

    color: str
    marker: str
    line: Any
    hatch: str


def style_at(index: int) -> MethodStyle:
    """Return the style of the first, second, ... of a few things. Eighteen differ in line, and more in the rest."""
    # The second round of colours has other markers and hatches than the first.
    shifted = index + index // len(PALETTE)
    return MethodStyle(
        color=PALETTE[index % len(PALETTE)],
        marker=MARKERS[shifted % len(MARKERS)],
        line=LINES[index % len(LINES)],
        hatch=HATCHES[shifted % len(HATCHES)],
    )


def style_of(method: str) -> MethodStyle:
    """Return the style of a method. It is the same in every figure of every sweep."""
    return style_at([*METHODS].index(method))


def panels(
    count: int, *, width: float, height: float, columns: int = 1, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes in a grid.

    Args:
        count: number of axes.
        width: width of the whole figure, in inches.
        height: height of one row, in inches.
        columns: number of columns of the grid.
        share_y: whether all axes have the y axis of the first.
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")

    # Without pyplot a figure has no canvas, and it needs one to be drawn.
    FigureCanvasAgg(figure)

    axes: list[Axes] = []
    for index in range(count):
        shared = axes[0] if axes and share_y else None
        axes.append(figure.add_subplot(rows, columns, index + 1, sharey=shared))

    for ax in axes:
        ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_linewidth(0.6)
        ax.grid(visible=True, color="0.9", linewidth=0.5)
        ax.set_axisbelow(True)
    return figure, axes


def columns_for(count: int, most: int = 4) -> int:
    """Return the number of columns for so many panels, at most `most`, with rows as even as possible."""
    rows = math.ceil(count / most)
    return math.ceil(count / rows)


def name_axes(ax: Axes, x: str = "", y: str = "") -> None:
    """Label both axes."""
    ax.set_xlabel(plain(x), fontsize=TEXT)
    ax.set_ylabel(plain(y), fontsize=TEXT)


def finish(
    figure: Figure, title: str, legend: Mapping[str, Artist] | None = None, *, of: str = "", columns: int | None = None
) -> Figure:
    """Add a title, wrapped to the width of the figure, and a legend below the figure.

    Args:
        figure: the figure.
        title: one or more lines.
        legend: the artist of each entry of the legend.
        of: title of the legend: the parameter that its entries are values of.
        columns: number of columns of the legend; by default as many as fit.
    """
    # The average character is 0.56 of the font size wide.
    width_points = figure.get_figwidth() * POINTS_PER_INCH
    lines = [textwrap.fill(line, int(width_points / (0.56 * TEXT))) for line in title.splitlines()]
    figure.suptitle(plain("\n".join(lines)), fontsize=TEXT)

    if legend:
        # An entry is as wide as the longest one, plus its symbol and the space between columns.
        entry_points = max(len(word) for word in legend) * 0.56 * SMALL + 31
        max_columns = columns or max(1, int(width_points / entry_points))
        rows = math.ceil(len(legend) / max_columns)

        box = figure.legend(
            [*legend.values()],
            # Matplotlib leaves out entries that begin with an underscore, so the text is set afterwards.
            [f" {plain(word)}" for word in legend],
            loc="outside lower center",
            ncols=math.ceil(len(legend) / rows),
            fontsize=SMALL,
            title=plain(of) or None,
            title_fontsize=SMALL,
            frameon=False,
            handlelength=2.6,
            columnspacing=1.2,
        )
        for entry, word in zip(box.get_texts(), legend, strict=True):
            entry.set_text(plain(word))
    return figure


def categories(ax: Axes, names: Sequence[str], room: float) -> None:
    """Write names at 0, 1, 2, ... of the x axis, rotated if they would overlap.

    Args:
        ax: the axes.
        names: text of each tick.
        room: width of the axes, in inches.
    """
    ax.set_xticks(range(len(names)))

    is_rotated = sum(len(name) + 1 for name in names) * 0.62 * SMALL > room * POINTS_PER_INCH
    ax.set_xticklabels(
        [plain(name) for name in names],
        rotation=40 if is_rotated else 0,
        ha="right" if is_rotated else "center",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="x")


def log_x(ax: Axes, ticks: Iterable[float], *, share: float = 0.06) -> None:
    """Make the x axis logarithmic, with these ticks only and a margin on both sides."""
    marks = sorted(set(ticks))
    ax.set_xscale("log")

    margin = (marks[-1] / marks[0]) ** share if len(marks) > 1 else 1.5
    ax.set_xlim(marks[0] / margin, marks[-1] * margin)
    ax.set_xticks(marks, [number(mark) for mark in marks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def log_y(ax: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic around these values, with at least two ticks at 1, 2 and 5 times powers of ten."""
    low = min(values) / 1.3
    high = max(values) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    # Take the coarsest set of steps that has two ticks inside the axis.
    for steps in ((1,), (1, 5), (1, 2, 5)):
        marks = [float(f"{step}e{power}") for power in powers for step in steps]
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) > 1:
            break
    marks = inside if len(inside) > 1 else [min(values), max(values)]

    # At most six ticks.
    marks = marks[:: math.ceil(len(marks) / 6)]

    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.set_yticks(marks, [number(mark) for mark in marks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def decades(low: float, high: float, most: int = 4) -> list[float]:
    """Return the powers of ten in a range, at most `most`, or the ends of the range if there are fewer than two."""
    # The margin keeps an end that is a power of ten despite rounding.
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))

    marks = [float(f"1e{power}") for power in range(first, last + 1, step)]
    return marks if len(marks) > 1 else [low, high]


def number(value: float) -> str:
    """Return a number as the label of a tick: 1,000 and 0.05, 1e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plain(text: str) -> str:
    """Return text with dollar signs escaped, which would start a formula, and without control characters."""
    return printable(text, keep="\n").replace("$", r"\$")


def jitter(number: int) -> float:
    """Return the horizontal offset of a trial from its category, -0.2 to 0.2. It is the same in every drawing."""
    return 0.4 * (hashlib.sha256(str(number).encode()).digest()[0] / 255 - 0.5)


def slug(text: str) -> str:
    """Return text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
