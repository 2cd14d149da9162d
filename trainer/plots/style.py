"""Colours of the plots, and how their figures are saved."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE = "#0072B2"
ORANGE = "#D55E00"
YELLOW = "#F0E442"


_SAVING = threading.Lock()


@contextmanager
def saving_figure() -> Iterator[None]:
    """Save one figure at a time in this process. Letters that the font lacks become boxes, without a warning for each.

    Matplotlib's parser of formulas and Python's filters of warnings belong to the process, not to the thread.
    """
    with _SAVING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        yield
