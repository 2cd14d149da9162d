"""Colours of the plots, and letters that their font lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE = "#0072B2"
ORANGE = "#D55E00"
YELLOW = "#F0E442"


@contextmanager
def draw_missing_letters() -> Iterator[None]:
    """Draw letters that the font lacks as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        yield
