"""A figure as SVG inside a page: its text stays text, and its colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import matplotlib

from orchestrator.figures.style import POINTS_PER_INCH
from trainer.plots.style import saving_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_POINT = 1.5
"""Width of a figure in a page. Its text, of 6.5 and 8 points, is then 10 and 12 pixels high."""
GREY = re.compile(r"#([0-9a-f]{2})\1\1")
"""Black, white and what is between."""
FONT = re.compile(r'font-family: [^;"]*;?\s*')
"""Figures in a page have the page's font."""
UNUSED_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(figure: Figure, key: str) -> str:
    """Return a figure as an `<svg>` element that loads nothing and whose ids are its own in the page.

    Args:
        figure: the figure.
        key: differs between the figures of a page. The same figure and key give the same text.
    """
    buffer = io.StringIO()
    # Both settings belong to the process, and the lock is that of all figures that are saved. Text as text is a tenth
    # of the size of its outlines, can be searched, and has all letters that the reader's fonts have.
    with saving_figure(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=UNUSED_METADATA)

    # Without the XML declaration, and no wider than its text is readable.
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width = figure.get_figwidth() * POINTS_PER_INCH * PIXELS_PER_POINT
    text = re.sub(r' width="[^"]*" height="[^"]*"', f' style="width: {width:.0f}px"', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    # A style sheet in an element of a page is one for the whole page: the page has this rule for its figures.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    # Names of groups are the same in every figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)

    # Only in attributes: a text may look like a colour.
    text = re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', text)
    return re.sub(r'style="[^"]*"', lambda style: GREY.sub(_themed, FONT.sub("", style[0])), text)


def _themed(color: re.Match[str]) -> str:
    """Return a grey as its place between the page's ink and paper. Colours of data stay as they are."""
    share = 1 - int(color[1], 16) / 255
    return f"color-mix(in srgb, var(--ink) {100 * share:.0f}%, var(--paper))"
