"""Colours of the plots."""

from __future__ import annotations

BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"
"""Colours that colour-blind readers tell apart (Okabe and Ito)."""
