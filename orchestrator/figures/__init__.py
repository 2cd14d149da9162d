"""Figures of sweeps, one file a kind of figure."""
