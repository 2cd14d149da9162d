"""Colours of the plots."""

from __future__ import annotations

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE = "#0072B2"
ORANGE = "#D55E00"
YELLOW = "#F0E442"
